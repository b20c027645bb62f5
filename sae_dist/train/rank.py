"""What one rank does once the run folder is frozen: train, or produce."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sae_dist.config.grid import member_folders, shared_out, varied
from sae_dist.config.needs import consumer_memory
from sae_dist.config.rules.checkpoint import checkpoint_bytes
from sae_dist.config.run import RunConfig, load_config
from sae_dist.core.errors import NumericsError, Preempted, TransportError
from sae_dist.core.files import write_json
from sae_dist.core.place import Place, place
from sae_dist.core.run_folder import CONFIG, DIVERGED, SUMMARY, TRAINED, status
from sae_dist.core.text import gib, print_line
from sae_dist.core.types import ChunkSource, LlmFacts
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.metrics.clock import PhaseClock
from sae_dist.train.build import build_chunks, build_facts, build_producer, build_runs
from sae_dist.train.loop import train
from sae_dist.train.out_of_memory import explained, is_out_of_memory
from sae_dist.train.speed import Watch, peak_memory_bytes, start_telemetry
from sae_dist.train.state import Run
from sae_dist.transport.collective import RemoteChunks

POLL_S = 0.05


def run_rank(folder: Path) -> None:
    """Join the process group, play this rank's role to the end, leave.

    Raises:
        SaeDistError: see `core.errors`.
    """
    cfg = load_config(folder / CONFIG)
    stop = runtime.StopRequest()
    where = place()
    device = runtime.start(where, cfg.device, cfg.topology.timeout_s)
    control = Control(cfg.topology.timeout_s)
    control.start_beating(where.rank)
    try:
        play(cfg, folder, where, device, stop, control)
    except Preempted:
        control.ended.set()
        runtime.finish()
        raise
    except Exception as error:
        # Others wait for this rank: they end with the reason, not with its silence.
        cause = control.tell(where.rank, error)
        if cause is error:
            raise
        raise cause from error
    control.ended.set()
    runtime.finish()


def play(
    cfg: RunConfig,
    folder: Path,
    where: Place,
    device: torch.device,
    stop: runtime.StopRequest,
    control: Control,
) -> None:
    """Train, or produce, whichever this rank is for, and watch that."""
    clock = PhaseClock(device)
    topology = Topology(
        cfg.topology,
        where,
        device.type,
        team_size=cfg.llm.shard_size,
        in_step=cfg.llm.shard == "zero3",
        clock=clock,
    )
    facts = build_facts(cfg)
    watch = Watch(clock, start_telemetry(cfg, where, topology, device, control))
    try:
        work(cfg, folder, facts, topology, device, stop, control, watch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise explained(error, cfg, facts, folder, where, device) from error
    finally:
        watch.close()


def work(
    cfg: RunConfig,
    folder: Path,
    facts: LlmFacts | None,
    topology: Topology,
    device: torch.device,
    stop: runtime.StopRequest,
    control: Control,
    watch: Watch,
) -> None:
    """What is watched."""
    if topology.is_consumer:
        chunks = build_chunks(cfg, facts, topology, device)
        folders = unfinished(cfg, folder, topology.group)
        if folders:
            watch.measure(cfg, topology, device)
        runs = build_runs(cfg, folders, chunks, facts, topology, stop, device, watch)
        if runs:
            control.step = lambda: runs[0].progress.step
        try:
            consume(runs, chunks, give_up if varied(cfg) else None)
        except Preempted:
            await_groups(topology, control, "stopped")
            raise
        await_groups(topology, control, "trained")
    else:
        # A producer ends when its consumers say so: to stop is agreed among them.
        build_producer(cfg, facts, topology, device)()


def await_groups(topology: Topology, control: Control, how: str) -> None:
    """Leave only when every group has trained, or has stopped and saved; one group is every group.

    A launcher that sees a rank leave soon ends the others, which may still be saving. Rank 0 may host the
    store of all, and finishes a grid.

    Args:
        how: what this group has done: `trained` or `stopped`.

    Raises:
        Preempted: another group has stopped, on rank 0.
        TransportError: a rank of another group failed.
    """
    if topology.num_groups == 1:
        return
    if topology.leads:
        control.set(f"{how}/{topology.group}", "")
    waiting, stopped = set(range(topology.num_groups)), False
    while waiting:
        if failure := control.failure():
            raise TransportError(failure)
        for group in list(waiting):
            ended = [word for word in ("trained", "stopped") if control.check(f"{word}/{group}")]
            waiting -= {group} if ended else set()
            stopped |= "stopped" in ended
        time.sleep(POLL_S)
    if stopped and how == "trained" and topology.rank == 0:
        raise Preempted(
            "another group of consumers stopped on request; run the same command with resume=auto"
        )


def unfinished(cfg: RunConfig, folder: Path, group: int) -> list[Path]:
    """The dictionaries that a group of consumers trains: with `resume=auto` not those that were given up."""
    folders = [member_folders(cfg, folder)[number] for number in shared_out(cfg, group)]
    if cfg.resume != "auto" or not varied(cfg):
        return folders
    return [each for each in folders if status(each) != DIVERGED]


def consume(
    runs: list[Run], chunks: ChunkSource, give_up: Callable[[Run, NumericsError], None] | None
) -> None:
    """A consumer's life: train, write down what came of it."""
    if runs and runs[0].topology.leads:
        announce(runs)
    trained_before = [run.progress.step == run.steps and (run.folder / SUMMARY).exists() for run in runs]
    try:
        trained = train(runs, give_up)
        for run, before in zip(runs, trained_before, strict=True):
            if run in trained and not before:
                write_summary(run)
        if trained and trained[0].topology.leads and (balance := trained[0].meter.balance_in_words()):
            print(balance, file=sys.stderr, flush=True)
    except Preempted:
        close(chunks)
        raise
    except NumericsError as error:
        runs[0].meter.alert("training has ended", str(error))
        raise
    finally:
        for run in runs:
            run.meter.close()
    close(chunks)


def give_up(run: Run, error: NumericsError) -> None:
    """One dictionary of a grid is over, and its memory free; the rest of the grid goes on."""
    run.checkpoints.wait()
    del run.dictionary, run.optimizer
    if run.topology.leads:
        print_line(f"{run.folder.name}: given up: {error}")
        run.meter.alert("given up", str(error))
        summary = {"tokens": run.progress.tokens, "steps": run.progress.step, "lr": run.lr}
        write_json(run.folder / SUMMARY, summary | {"status": DIVERGED, "reason": str(error)})


def close(chunks: ChunkSource) -> None:
    """Tell producers, where there are any, that this consumer has had its last chunk."""
    if isinstance(chunks, RemoteChunks):
        chunks.close()


def announce(runs: list[Run]) -> None:
    """What was chosen, said once."""
    first, cfg = runs[0], runs[0].cfg
    print(
        f"{first.folder if len(runs) == 1 else first.folder.parent}\n  {first.topology.describe()}; "
        f"{first.device.type}, {cfg.precision}, {cfg.kernels} kernels\n  {first.steps} steps of {cfg.batch}, "
        f"from step {first.progress.step}",
        file=sys.stderr,
    )
    for run in runs:
        sae, lr = run.cfg.sae, run.cfg.optim.lr
        law = f"the law for {run.steps} steps and {sae.num_latents} latents" if lr is None else "given"
        scales = ", ".join(f"{scale:.4g}" for scale in run.scales)
        name = f"{run.folder.name}: " if len(runs) > 1 else ""
        print(f"  {name}lr {run.lr:.2e} ({law}); activations x {scales}", file=sys.stderr)
    print(f"  {memory_in_words(runs)}", file=sys.stderr)
    if cfg.metrics.telemetry_s is not None:
        gpus = "GPUs and hosts" if first.device.type == "cuda" else "hosts; no GPU in this run"
        print(f"  telemetry every {cfg.metrics.telemetry_s:g} s: {gpus}", file=sys.stderr, flush=True)


def memory_in_words(runs: list[Run]) -> str:
    """What a consumer will hold: its dictionaries, and the rows of each of their hooks once."""
    held = [consumer_memory(run.cfg, sum(run.widths), run.widths[-1]) for run in runs]
    waiting = {run.cfg.hook: each.rows for run, each in zip(runs, held, strict=True)}
    parts = (sum(each.dictionary for each in held), sum(waiting.values()))
    dictionary, rows = (gib(count, 2) for count in parts)
    said = f"each consumer holds {dictionary} of dictionary and optimizer, {rows} of activations that wait"
    if runs[0].cfg.checkpoint.background:
        copies = sum(checkpoint_bytes(run.cfg, width_of_rows(run)) for run in runs)
        copy = gib(copies / runs[0].topology.num_consumers, 2)
        said += f", {copy} more on the host while a checkpoint is written"
    return said


def width_of_rows(run: Run) -> int:
    """Of a latent's rows, as `config.rules.checkpoint` counts: a transcoder's have two widths."""
    return sum(run.widths) if run.cfg.target_hook else run.widths[-1]


def write_summary(run: Run) -> None:
    """summary.json as far as training knows it; evaluation adds its part."""
    memory = torch.tensor([peak_memory_bytes(run.device)], dtype=torch.int64)
    memory = run.topology.consumers.max(memory.to(run.device))
    if not run.topology.leads:
        return
    summary = {
        "tokens": run.progress.tokens,
        "steps": run.progress.step,
        "tokens_per_second": run.progress.rate(),
        "peak_memory_bytes": int(memory),
        "world_size": run.topology.world,
        "lr": run.lr,
        "scales": run.scales,
        "stream_seconds": run.shuffle.seconds(),
        "dictionary_seconds": run.seconds,
        "checkpoint_pauses": {
            "number": len(run.pauses),
            "seconds": sum(run.pauses),
            "longest": max(run.pauses, default=0.0),
        },
        "status": TRAINED,
    }
    write_json(run.folder / SUMMARY, summary | run.meter.summary(run.progress.tokens))
