"""Builds what a consumer trains: with `train.sources`, the only files that know every concrete class."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from sae_dist.checkpoint.background import Background
from sae_dist.checkpoint.store import Checkpoints
from sae_dist.config.grid import single
from sae_dist.config.needs import step_flops
from sae_dist.config.run import Single, load_config
from sae_dist.config.trust import executing
from sae_dist.core.owner import Standing
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.staging import Staging
from sae_dist.core.types import ChunkSource, Precision
from sae_dist.dictionary.base import Dictionary, Setting, dictionary_class
from sae_dist.distributed.mesh import Topology
from sae_dist.kernels.choose import choose_kernels, choose_row_update
from sae_dist.metrics.profiler import ProfileWindow
from sae_dist.metrics.recorder import Recorder
from sae_dist.metrics.sinks import make_console, make_sinks
from sae_dist.optim.engine import Engine, FusedAdam
from sae_dist.optim.offload import HostAdam
from sae_dist.optim.row_adam import RowAdam
from sae_dist.optim.schedule import law
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.train.balance import Balance
from sae_dist.train.evaluator import evaluate_all
from sae_dist.train.meter import RunMeter
from sae_dist.train.speed import Speed, Watch
from sae_dist.train.start import start
from sae_dist.train.state import Agreement, Progress, Rank, Run
from sae_dist.train.stream import Columns, SharedStream
from sae_dist.transport.collective import RemoteChunks
from sae_dist.transport.timed import Timed


def build_runs(rank: Rank, folders: Sequence[Path], chunks: ChunkSource) -> list[Run]:
    """Build shuffle, dictionaries, optimizers, checkpoints and metrics, and start or resume training.

    Args:
        folders: of the dictionaries, each with its own config.
        chunks: the stream, which all of them share.
    """
    cfg, facts, topology = rank.cfg, rank.facts, rank.topology
    timed = Timed(chunks)
    shuffle = Shuffle(
        timed,
        topology.lanes_of_consumer(topology.index, cfg.shuffle.lanes),
        num_lanes=cfg.shuffle.lanes,
        rows_per_step=cfg.batch // topology.num_consumers,
        steps=cfg.steps,
        seed=cfg.seed,
        block_chunks=cfg.shuffle.block_chunks,
    )
    stream = SharedStream(shuffle)
    background = Background() if cfg.checkpoint.background else None
    # Pinned now: to pin memory in a step would wait for all that the GPU does.
    staging = Staging() if background is not None and rank.device.type == "cuda" else None
    runs = []
    for folder in folders:
        member = single(load_config(folder / CONFIG, executing(cfg)), folder)
        place = member.hook, member.target_hook
        columns = facts.stretch(*place) if facts else slice(0, chunks.width)
        widths = facts.only(*place).widths if facts else (chunks.width,)
        balance = Balance(cfg, topology, timed, chunks.stream if isinstance(chunks, RemoteChunks) else None)
        draw = Columns(stream, columns, widths)
        runs.append(build_run(rank, member, folder, draw, balance, background, staging))
    if not runs:
        return runs
    start(runs)
    profile_first(runs[0], rank.watch)
    if cfg.eval.every is not None:
        evaluate_all(rank, runs, cfg.eval.every, chunks.width)
    if topology.leads:
        step = runs[0].progress.step
        console = make_console(cfg, step, len(runs))
        for run in runs:
            run.meter.sinks = make_sinks(
                run.cfg,
                run.folder,
                resume_step=step,
                run_id=run.wandb_id,
                unwritten=run.meter.kept,
                console=console,
            )
    return runs


def profile_first(run: Run, watch: Watch) -> None:
    """Give the first dictionary the window of torch's profiler, of which a process has one."""
    if run.cfg.metrics.profile:
        trace = run.folder / "traces" / f"rank_{run.topology.rank}.json.gz"
        first, number = run.cfg.metrics.profile
        run.meter.speed.profile = ProfileWindow(first, number, trace, run.device, watch.clock)


def build_run(
    rank: Rank,
    cfg: Single,
    folder: Path,
    draw: Columns,
    balance: Balance,
    background: Background | None,
    staging: Staging | None = None,
) -> Run:
    """Build one dictionary with all that it has for itself.

    Args:
        cfg: of the dictionary; `folder` too.
        background: writes the checkpoints of all dictionaries; None: training waits for them.
        staging: copies for it from the GPU, where there is one.
    """
    topology, device, widths = rank.topology, rank.device, draw.widths
    dictionary = build_dictionary(cfg, widths, topology, device)
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    save_every = max(1, every // cfg.batch) if every else cfg.steps + 1
    keep_steps = save_every * (kept // every) if every and kept else None
    gpus = topology.world if device.type == "cuda" else 0
    speed = Speed(rank.watch, step_flops(cfg, widths), device, gpus)
    recorder = Recorder(lambda values, kind: getattr(topology.consumers, kind)(values))
    return Run(
        cfg=cfg,
        folder=folder,
        topology=topology,
        shuffle=draw,
        dictionary=dictionary,
        optimizer=build_optimizer(cfg, dictionary, topology),
        meter=RunMeter(recorder, balance, speed),
        checkpoints=Checkpoints(
            folder, topology, cfg.checkpoint.keep, keep_steps, background, Standing.of(rank.folder), staging
        ),
        agreement=Agreement(topology, rank.stop),
        device=device,
        progress=Progress(),
        save_every=save_every,
        lr=cfg.optim.lr if cfg.optim.lr is not None else law(cfg.steps, cfg.sae.num_latents, widths[-1]),
        widths=widths,
        scales=[1.0 for _ in widths],
        shift_C=torch.zeros(sum(widths), dtype=Precision.of(cfg.precision).master, device=device),
        wandb_id=secrets.token_hex(4),
    )


def build_dictionary(
    cfg: Single, widths: tuple[int, ...], topology: Topology, device: torch.device
) -> Dictionary:
    """Build the dictionary of the kind that the config names."""
    return dictionary_class(cfg.sae.kind)(
        Setting(
            cfg=cfg.sae,
            widths=widths,
            rows=cfg.batch,
            tokens=cfg.train_tokens,
            seed=cfg.seed if cfg.sae.seed is None else cfg.sae.seed,
            topology=topology,
            kernels=choose_kernels(cfg.kernels),
            device=device,
            dtype=Precision.of(cfg.precision).master,
            clock=topology.clock,
            tf32=cfg.matmul == "tf32",
        )
    )


def build_optimizer(cfg: Single, dictionary: Dictionary, topology: Topology) -> Engine | RowAdam:
    """Build the optimizer that the config names."""
    if cfg.optim.kind == "row_adam":
        return RowAdam(cfg.optim, dictionary, topology, choose_row_update(cfg.kernels), topology.clock)
    updater = HostAdam if cfg.optim.kind == "offload" else FusedAdam
    return Engine(cfg.optim, dictionary, topology, updater, topology.clock)
