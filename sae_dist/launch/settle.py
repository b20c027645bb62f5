"""The facts that a config is completed with: the model, its hooks, the source of data, this machine."""

import copy
import dataclasses
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sae_dist.config.grid import captured, names_layers, over_layers
from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.rules.evaluation import check_held_out
from sae_dist.config.rules.sharding import world_formula, world_size_of
from sae_dist.config.rules.sharing import default_lanes
from sae_dist.config.run import Resolved, RunConfig, Single, parse_counts
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.place import launched, place
from sae_dist.launch.compose import compose_config

if TYPE_CHECKING:
    from sae_dist.core.types import LlmFacts


@dataclasses.dataclass(frozen=True)
class Settled:
    """A config with nothing left open.

    Attributes:
        columns: width of the rows that flow.
        members: configs of a grid's dictionaries; empty for another run.
        widths: width of the rows that each of `members` reads.
        note: how hooks' names were translated; None: they were not.
        facts: of the LLM; None if there is none.
    """

    cfg: Resolved
    columns: int
    members: tuple[Single, ...] = ()
    widths: tuple[int, ...] = ()
    note: str | None = None
    facts: "LlmFacts | None" = None

    @classmethod
    def of(
        cls, cfg: RunConfig, facts: "LlmFacts | None", width: int, columns: int, note: str | None = None
    ) -> "Settled":
        """Complete a composed config.

        Raises:
            ConfigError: see `config.resolve`, and `train.warm.check_start`.
        """
        resolved = resolve(cfg, facts, width)
        check_held_out(resolved, columns)
        found = resolved_members(resolved, facts, width)
        widths = tuple(
            facts.only(each.hook, each.target_hook).columns if facts else columns for each in found
        )
        for each, its in zip(found, widths, strict=True):
            if each.sae.start is not None:
                from sae_dist.train.warm import check_start

                check_start(each, each.sae.start, its)
        if not resolved.is_grid:
            return cls(resolved, columns, note=note, facts=facts)
        return cls(resolved, columns, tuple(found), widths, note, facts)


def check_restarts() -> None:
    """Check that ranks which torchrun restarts will find each other.

    By default torchrun keeps one store over all of its restarts, with what the earlier ranks wrote into it:
    where they listened, and that one of them failed.

    Raises:
        ConfigError: they will not.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            f"torchrun --max-restarts={restarts} needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's "
            "environment, so that ranks that are started again do not read what those before them wrote"
        )


def composed(overrides: list[str]) -> RunConfig:
    """Return the config with its counts parsed, a hook for each layer in place of those with a *.

    If it trains from a cache, it has the cache's values.

    Raises:
        ConfigError: see `compose_config`, `from_cache` and `llm.config_file.num_layers`.
    """
    cfg = parse_counts(compose_config(overrides))
    if cfg.reads_cache and cfg.activations.path:
        from sae_dist.launch.cached import from_cache

        return from_cache(cfg, overrides)
    if cfg.runs_llm and names_layers(cfg):
        from sae_dist.llm.config_file import num_layers

        return over_layers(cfg, num_layers(cfg.llm))
    return cfg


def for_cluster(cfg: RunConfig) -> RunConfig:
    """Return the config of a submitted run: for the nodes' devices, and continued at every start."""
    cfg = copy.deepcopy(cfg)
    cfg.resume = "auto"
    if cfg.device == "auto":
        cfg.device = "cuda" if cfg.cluster.gpus_per_task else "cpu"
    if cfg.kernels == "auto" and cfg.device == "cuda":
        cfg.kernels = "triton" if find_spec("triton") else "torch"
    return cfg


def settle(cfg: RunConfig, *, submitted: bool = False) -> Settled:
    """Fill in what the model, the data and this machine decide.

    Opens the source of data and reads a chunk of tokens, so that errors in it are found here.

    Args:
        submitted: the run will have another machine's memory.

    Raises:
        ConfigError: the model, the hook or the source of data is wrong.
    """
    if cfg.sae.start is not None:
        from sae_dist.train.warm import with_start

        cfg = with_start(cfg, cfg.sae.start)
    if cfg.reads_file:
        import torch

        from sae_dist.transport.file import FileChunkSource, open_array

        array = open_array(cfg.activations.path or "", cfg.activations.key)
        lanes, rows = cfg.shuffle.lanes or default_lanes(cfg), cfg.shuffle.chunk_rows
        source = FileChunkSource(array, lanes=lanes, rows=rows, seed=0, held_out=False, dtype=torch.float32)
        cfg.shuffle.chunk_rows = source.rows
        note = in_passes(f"activations.path={cfg.activations.path}", source.passes(cfg.train_tokens))
        return Settled.of(cfg, None, source.width, source.width, note)
    if cfg.is_synthetic:
        from sae_dist.transport.ground_truth import GroundTruth

        width = GroundTruth.of(cfg.activations, cfg.seed).width
        return Settled.of(cfg, None, width, width)
    if cfg.reads_cache:
        from sae_dist.launch.cached import check_cached

        facts = check_cached(cfg)
        return Settled.of(cfg, facts, facts.width, facts.columns)
    from sae_dist.llm.choose import choose_packing
    from sae_dist.llm.facts import llm_facts
    from sae_dist.llm.fit import check_memory
    from sae_dist.llm.tensor_parallel import check_plan

    first, more = captured(cfg)
    facts, note = llm_facts(cfg.llm, *first, more)
    check_plan(cfg.llm, facts)
    facts, mixed = choose_packing(cfg.llm, facts)
    note = "\n".join(filter(None, (note, mixed))) or None
    settled = Settled.of(cfg, facts, facts.width, facts.columns, note)
    if not submitted:
        check_memory(settled.cfg, facts, place().local_world if launched() else None)
    said = check_tokens(settled.cfg, facts)
    return dataclasses.replace(settled, note="\n".join(filter(None, (note, *said))) or None)


def in_passes(source: str, passes: float) -> str | None:
    """Say how often a run reads its data, if it reads some of them more than once."""
    if passes <= 1.05:
        return None
    return (
        f"{source}: about {passes:.1f} passes over the data; held-out FVU shows what the later ones are worth"
    )


def check_tokens(cfg: Resolved, facts: "LlmFacts") -> list[str]:
    """Read the first chunk to train on, and the first held-out one, as training and evaluation will.

    Returns:
        How often the run reads its text, if that is known and more than once; and how much of what the LLM
        computes is padding, where each document has a sequence of its own.

    Raises:
        ConfigError: the source of tokens is wrong, or has too little to evaluate on.
    """
    try:
        return _read_first(cfg, facts)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _read_first(cfg: Resolved, facts: "LlmFacts") -> list[str]:
    from sae_dist.llm.batches import padding_share
    from sae_dist.llm.capture import spare_rows
    from sae_dist.tokens.hf_files import check_files
    from sae_dist.tokens.source import held_out_tokens, open_tokens

    if cfg.tokens.kind == "hf":
        check_files(cfg.tokens, f"tokens.dataset={cfg.tokens.dataset}")
    rows = cfg.shuffle.chunk_rows + spare_rows(cfg.shuffle.chunk_rows, cfg.tokens)
    lanes = cfg.shuffle.lanes
    tokens = open_tokens(cfg.tokens, facts, lanes=lanes, seed=cfg.seed, rows=rows, held_out=False)
    first = next(tokens.open(0, None), None)
    notes = []
    if first is not None and not facts.packed:
        share = padding_share(first, packed=False)
        notes.append(f"{share:.0%} of what the LLM computes is padding, in the first chunk")
    if amount := tokens.amount():
        notes.append(in_passes(tokens.field, cfg.train_tokens / amount) or "")
    if cfg.eval.tokens == 0:
        return notes
    tokens = held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=rows)
    if next(tokens.open(0, None), None) is None:
        raise ConfigError(
            f"{tokens.field}: the held-out part (one document in eight) has too little text for one chunk of "
            f"shuffle.chunk_rows={cfg.shuffle.chunk_rows}; give more text, make shuffle.chunk_rows smaller, "
            "or switch evaluation off with eval.tokens=0 eval.ce_tokens=0"
        )
    return notes


def check_devices(cfg: Resolved, world_size: int | None) -> None:
    """Check that each rank on this machine has a GPU of its own, whoever starts it.

    Raises:
        ConfigError: there are fewer.
    """
    if cfg.device != "cuda":
        return
    import torch

    if world_size is not None:
        from sae_dist.distributed.runtime import gpu_of

        gpu_of(place(), torch.cuda.device_count())
        return
    needed, found = world_size_of(cfg), torch.cuda.device_count()
    if needed > found:
        raise ConfigError(
            f"device=cuda: {world_formula(cfg)} = {needed} processes need a GPU each, and there are {found}; "
            "use fewer, or device=cpu"
        )
