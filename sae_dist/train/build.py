"""The composition root: the only file that knows every concrete class. Reads as the data flows."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from sae_dist.checkpoint.background import Background
from sae_dist.checkpoint.store import Checkpoints
from sae_dist.config.grid import captured
from sae_dist.config.needs import step_flops
from sae_dist.config.run import RunConfig, load_config
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.types import ChunkSource, LlmFacts, Precision
from sae_dist.dictionary.base import Dictionary, Setting, dictionary_class
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import StopRequest
from sae_dist.kernels.choose import choose_kernels, choose_row_update
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.metrics.clock import PhaseClock
from sae_dist.metrics.profiler import ProfileWindow
from sae_dist.metrics.recorder import Recorder
from sae_dist.metrics.sinks import make_console, make_sinks
from sae_dist.optim.engine import Engine, FusedAdam
from sae_dist.optim.offload import HostAdam
from sae_dist.optim.row_adam import RowAdam
from sae_dist.optim.schedule import law
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.tokens.source import open_tokens
from sae_dist.train.balance import Balance
from sae_dist.train.evaluator import evaluate_all
from sae_dist.train.meter import RunMeter
from sae_dist.train.speed import Speed, Watch
from sae_dist.train.start import start
from sae_dist.train.state import Agreement, Progress, Run
from sae_dist.train.stream import Columns, SharedStream
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import read_manifest
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.file import FileChunkSource, open_array
from sae_dist.transport.ground_truth import GroundTruth
from sae_dist.transport.in_step import produce_in_step
from sae_dist.transport.synthetic import SyntheticChunkSource
from sae_dist.transport.timed import Timed
from sae_dist.transport.wire import Stream


def build_facts(cfg: RunConfig) -> LlmFacts | None:
    """What is known of the LLM before its weights are loaded; None where there is no LLM."""
    if cfg.activations.kind == "cache":
        return read_manifest(cfg.activations.path or "").facts
    if cfg.activations.kind != "llm":
        return None
    hook, more = captured(cfg)
    return llm_facts(cfg.llm, hook, cfg.target_hook, more)[0]


def build_source(
    cfg: RunConfig, facts: LlmFacts | None, device: torch.device, team: Axis | None = None
) -> ChunkSource:
    """Tokens -> frozen LLM -> activation chunks; or chunks of a cache or a file; or synthetic ones.

    Args:
        team: the ranks that hold the LLM together with this one.
    """
    wire = Precision.of(cfg.precision).wire
    if cfg.activations.kind == "synthetic":
        return SyntheticChunkSource(
            GroundTruth.of(cfg.activations, cfg.seed),
            lanes=cfg.shuffle.lanes,
            rows=cfg.shuffle.chunk_rows,
            seed=cfg.seed,
            held_out=False,
            dtype=wire,
        )
    if cfg.activations.kind == "cache":
        assert cfg.activations.path is not None
        return CachedChunkSource(cfg.activations.path, read_manifest(cfg.activations.path), dtype=wire)
    if facts is None:
        assert cfg.activations.path is not None
        array = open_array(cfg.activations.path, cfg.activations.key)
        return FileChunkSource(
            array,
            lanes=cfg.shuffle.lanes,
            rows=cfg.shuffle.chunk_rows,
            seed=cfg.seed,
            held_out=False,
            dtype=wire,
        )
    spare = spare_rows(cfg.shuffle.chunk_rows, cfg.tokens.max_norm_multiple)
    tokens = open_tokens(
        cfg.tokens,
        facts,
        lanes=cfg.shuffle.lanes,
        seed=cfg.seed,
        rows=cfg.shuffle.chunk_rows + spare,
        held_out=False,
    )
    assert cfg.llm.dtype is not None, "filled in by config.resolve"
    dtype = getattr(torch, cfg.llm.dtype)
    llm = FrozenLlm.load(cfg.llm, facts, device=device, dtype=dtype, with_head=False, team=team)
    return LlmChunkSource(
        llm,
        tokens,
        rows=cfg.shuffle.chunk_rows,
        spare=spare,
        max_norm_multiple=cfg.tokens.max_norm_multiple,
        wire=wire,
    )


def build_stream(cfg: RunConfig, topology: Topology, width: int, device: torch.device) -> Stream:
    """The link between producers and consumers."""
    return Stream(
        topology,
        lanes=cfg.shuffle.lanes,
        rows=cfg.shuffle.chunk_rows,
        width=width,
        dtype=Precision.of(cfg.precision).wire,
        device=device,
        timeout_s=cfg.topology.timeout_s,
    )


def build_chunks(
    cfg: RunConfig, facts: LlmFacts | None, topology: Topology, device: torch.device
) -> ChunkSource:
    """Where a consumer's chunks come from: itself, or the producers."""
    if topology.num_producers == 0:
        return build_source(cfg, facts, device)
    assert facts is not None, "checked by config.validate"
    assert cfg.shuffle.block_chunks is not None, "filled in by config.resolve"
    return RemoteChunks(
        build_stream(cfg, topology, facts.columns, device),
        lanes=topology.lanes_of_consumer(topology.index, cfg.shuffle.lanes),
        ahead=2 * cfg.shuffle.block_chunks + 1,
        in_flight=cfg.topology.in_flight,
    )


def build_producer(
    cfg: RunConfig, facts: LlmFacts | None, topology: Topology, device: torch.device
) -> Callable[[], int]:
    """A producer's whole life, ready to begin: alone, or in a group that holds the LLM together."""
    assert facts is not None, "checked by config.validate"
    source = build_source(cfg, facts, device, topology.team)
    stream = build_stream(cfg, topology, facts.columns, device)
    if not topology.in_step:
        return partial(produce, stream, source, cfg.topology.in_flight)
    assert isinstance(source, LlmChunkSource)
    return partial(produce_in_step, stream, source, cfg.topology.in_flight)


def build_runs(
    cfg: RunConfig,
    folders: Sequence[Path],
    chunks: ChunkSource,
    facts: LlmFacts | None,
    topology: Topology,
    stop: StopRequest,
    device: torch.device,
    watch: Watch | None = None,
) -> list[Run]:
    """Shuffle -> dictionaries -> optimizers -> checkpoints and metrics, new or resumed.

    Args:
        cfg: of the stream, which every dictionary shares.
        folders: of the dictionaries, each with its own config.
        watch: the process's; None: nothing but phases is watched.
    """
    assert cfg.shuffle.block_chunks is not None, "filled in by config.resolve"
    steps = cfg.train_tokens // cfg.batch
    timed = Timed(chunks)
    shuffle = Shuffle(
        timed,
        topology.lanes_of_consumer(topology.index, cfg.shuffle.lanes),
        num_lanes=cfg.shuffle.lanes,
        rows_per_step=cfg.batch // topology.num_consumers,
        steps=steps,
        seed=cfg.seed,
        block_chunks=cfg.shuffle.block_chunks,
    )
    stream = SharedStream(shuffle)
    watch = watch or Watch(PhaseClock(device))
    background = Background() if cfg.checkpoint.background else None
    runs = []
    for folder in folders:
        member = load_config(folder / CONFIG)
        columns = facts.stretch(member.hook) if facts else slice(0, chunks.width)
        widths = facts.only(member.hook).widths if facts else (chunks.width,)
        balance = Balance(cfg, topology, timed, chunks.stream if isinstance(chunks, RemoteChunks) else None)
        draw = Columns(stream, columns)
        runs.append(
            build_run(member, folder, draw, widths, topology, stop, device, balance, background, watch)
        )
    if not runs:
        return runs
    start(runs)
    watch_first(runs[0], watch)
    if cfg.eval.every is not None:
        evaluate_all(runs, cfg, facts, chunks.width)
    if topology.leads:
        step = runs[0].progress.step
        console = make_console(cfg, step, len(runs))
        for run in runs:
            run.meter.sinks = make_sinks(
                run.cfg, run.folder, resume_step=step, run_id=run.wandb_id, console=console
            )
    return runs


def watch_first(run: Run, watch: Watch) -> None:
    """The window of torch's profiler, which a process has one of, is its first dictionary's."""
    if run.cfg.metrics.profile:
        trace = run.folder / "traces" / f"rank_{run.topology.rank}.json.gz"
        first, number = run.cfg.metrics.profile
        run.meter.speed.profile = ProfileWindow(first, number, trace, run.device, watch.clock)


def build_run(
    cfg: RunConfig,
    folder: Path,
    draw: Columns,
    widths: tuple[int, ...],
    topology: Topology,
    stop: StopRequest,
    device: torch.device,
    balance: Balance,
    background: Background | None = None,
    watch: Watch | None = None,
) -> Run:
    """One dictionary with all that it has for itself; `watch` is the process's."""
    steps = cfg.train_tokens // cfg.batch
    dictionary = build_dictionary(cfg, widths, topology, device)
    assert cfg.sae.num_latents is not None
    every, kept = cfg.checkpoint.every, cfg.checkpoint.keep_every
    save_every = max(1, every // cfg.batch) if every else steps + 1
    keep_steps = save_every * (kept // every) if every and kept else None
    gpus = topology.world if device.type == "cuda" else 0
    watch = watch or Watch(PhaseClock(device))
    speed = Speed(watch, step_flops(cfg, widths), device, gpus)
    return Run(
        cfg=cfg,
        folder=folder,
        topology=topology,
        shuffle=draw,
        dictionary=dictionary,
        optimizer=build_optimizer(cfg, dictionary, topology),
        meter=RunMeter(
            Recorder(lambda values, kind: getattr(topology.consumers, kind)(values)), balance, speed
        ),
        checkpoints=Checkpoints(folder, topology, cfg.checkpoint.keep, keep_steps, background),
        agreement=Agreement(topology, stop),
        device=device,
        progress=Progress(),
        steps=steps,
        save_every=save_every,
        lr=cfg.optim.lr if cfg.optim.lr is not None else law(steps, cfg.sae.num_latents, widths[-1]),
        widths=widths,
        scales=[1.0 for _ in widths],
        shift_C=torch.zeros(sum(widths), dtype=Precision.of(cfg.precision).master, device=device),
        wandb_id=secrets.token_hex(4),
    )


def build_dictionary(
    cfg: RunConfig, widths: tuple[int, ...], topology: Topology, device: torch.device
) -> Dictionary:
    """The dictionary of the kind that the config names."""
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
        )
    )


def build_optimizer(cfg: RunConfig, dictionary: Dictionary, topology: Topology) -> Engine | RowAdam:
    """The optimizer that the config names."""
    if cfg.optim.kind == "row_adam":
        return RowAdam(cfg.optim, dictionary, topology, choose_row_update(cfg.kernels), topology.clock)
    updater = HostAdam if cfg.optim.kind == "offload" else FusedAdam
    return Engine(cfg.optim, dictionary, topology, updater, topology.clock)
