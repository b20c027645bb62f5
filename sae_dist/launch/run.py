"""compose -> facts -> resolve -> validate -> freeze -> spawn here, or join -> export -> evaluate."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from sae_dist.core.config import RunConfig, load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.resolve import parse_counts, resolve
from sae_dist.core.validate import validate
from sae_dist.dist.runtime import Place, place
from sae_dist.launch.compose import compose_config, expand, sweep_keys
from sae_dist.launch.freeze import check_folder, command_line, folder_of, frozen


def train_command(overrides: list[str]) -> None:
    """`sae-dist train`: one run, from its overrides to its table."""
    where = place()
    if where.world > 1:
        from sae_dist.launch.join import agree_on_folder

        folder = agree_on_folder(where, lambda: prepare(overrides, where.world))
    else:
        folder = prepare(overrides, None)
    if folder is None:
        return
    run(folder, where)
    if where.rank == 0:
        finish(folder)


def multirun_command(overrides: list[str]) -> None:
    """`sae-dist train -m`: the product of the comma lists, one run after the other."""
    keys = sweep_keys(overrides)
    jobs = expand(overrides)
    base = compose_config(jobs[0])
    sweep = base.name or "sweep_" + "_".join(key.split(".")[-1] for key in keys)
    for number, job in enumerate(jobs):
        chosen = [text for text in job if text.split("=")[0] in keys]
        name = re.sub(r"[^A-Za-z0-9._=,-]+", "_", ",".join(chosen)) or str(number)
        print(f"[{number + 1}/{len(jobs)}] {' '.join(chosen)}", file=sys.stderr, flush=True)
        rest = [text for text in job if not text.startswith(("name=", "output="))]
        train_command([*rest, f"output={base.output}/{sweep}", f"name='{name}'"])


def prepare(overrides: list[str], world_size: int | None) -> Path | None:
    """Check everything that can be checked before a process starts, and freeze the run folder.

    Returns:
        The run folder; None if the run is finished already, which is said.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    cfg, note = settle(compose_config(overrides))
    validate(cfg, world_size)
    if note:
        print(note, file=sys.stderr)
    if check_folder(cfg) == "finished":
        print(f"{folder_of(cfg)} is finished; see summary.json there, or choose another name")
        return None
    with frozen(cfg, command_line()) as folder:
        return folder


def settle(cfg: RunConfig) -> tuple[RunConfig, str | None]:
    """The config with nothing left open, and what was translated on the way.

    Raises:
        ConfigError: a value, the model, the hook or the source of data is wrong.
    """
    import torch

    cfg = parse_counts(cfg)
    validate(cfg)
    cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not cuda:
        raise ConfigError("device=cuda, but no CUDA device is here; use device=cpu")
    if cfg.activations.kind == "file":
        from sae_dist.transport.file import FileChunkSource, open_array

        array = open_array(cfg.activations.path or "", cfg.activations.key)
        source = FileChunkSource(
            array, lanes=cfg.shuffle.lanes, rows=cfg.shuffle.chunk_rows, seed=0, held_out=False, dtype=torch.float32
        )
        cfg.shuffle.chunk_rows = source.rows
        return resolve(cfg, None, source.width, cuda), None
    from sae_dist.llm.facts import llm_facts
    from sae_dist.tokens.source import open_tokens

    facts, note = llm_facts(cfg.llm, cfg.hook)
    cfg = resolve(cfg, facts, facts.width, cuda)
    for held_out in (False, True):
        lanes = 1 if held_out else cfg.shuffle.lanes
        source_of_tokens = open_tokens(
            cfg.tokens, facts, lanes=lanes, seed=cfg.seed, rows=cfg.shuffle.chunk_rows, held_out=held_out
        )
        next(source_of_tokens.open(0, None), None)
    return cfg, note


def run(folder: Path, where: Place) -> None:
    """Train: join as a rank, be the only one, or spawn them all."""
    topology = load_config(folder / "config.yaml").topology
    world = topology.producers + topology.shard * topology.dp
    if where.world > 1 or world == 1:
        from sae_dist.train.run import run_rank

        run_rank(folder)
    else:
        from sae_dist.launch.spawn import spawn

        spawn(folder, world)


def finish(folder: Path) -> dict[str, Any]:
    """Export the newest checkpoint, evaluate the export, print the table."""
    from sae_dist.analysis.run import evaluate_run
    from sae_dist.analysis.table import format_table
    from sae_dist.train.finish import export_run

    export_run(folder)
    summary = evaluate_run(folder)
    print(f"{os.path.relpath(folder)}\n{format_table(summary)}")
    return summary
