"""One process of a run, once the run folder is frozen: it trains, or produces activations."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch

from sae_dist.config.grid import member_folders, shared_out
from sae_dist.config.run import Resolved, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import NumericsError, Preempted, SaeDistError, TransportError
from sae_dist.core.hidden import masked
from sae_dist.core.place import place
from sae_dist.core.process import pause
from sae_dist.core.progress import waiting
from sae_dist.core.run_folder import CONFIG, DIVERGED, LOGS, SUMMARY, status
from sae_dist.core.text import print_line, quoted
from sae_dist.core.types import ChunkSource
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.lookout import start_lookout
from sae_dist.distributed.mesh import Topology
from sae_dist.metrics.clock import PhaseClock
from sae_dist.train.announce import announce
from sae_dist.train.build import build_runs
from sae_dist.train.loop import train
from sae_dist.train.out_of_memory import explained, is_out_of_memory
from sae_dist.train.sources import build_chunks, build_facts, build_producer
from sae_dist.train.speed import Watch, start_telemetry
from sae_dist.train.state import Rank, Run
from sae_dist.train.summary import write_summary
from sae_dist.transport.collective import RemoteChunks

POLL_S = 0.05


def run_rank(folder: Path, granted: Granted = NOTHING) -> None:
    """Join the process group, play this rank's role to the end, and leave.

    Args:
        granted: what of the config may run code; see `config.trust`.

    Raises:
        SaeDistError: see `core.errors`.
    """
    cfg = load_config(folder / CONFIG, granted)
    joined(
        cfg,
        folder / LOGS,
        lambda device, stop, control: run_role(make_rank(cfg, folder, device, stop, control)),
    )


def joined(
    cfg: Resolved, logs: Path, work: Callable[[torch.device, runtime.StopRequest, Control], None]
) -> None:
    """Join the process group, work in it, and leave; the other ranks learn of a failure.

    Args:
        logs: where the reason is left if this process must be ended from outside of `work`.

    Raises:
        SaeDistError: see `core.errors`.
    """
    stop = runtime.StopRequest()
    where = place()
    device = runtime.start(where, cfg.device, cfg.topology.timeout_s)
    control = Control(cfg.topology.timeout_s)
    control.start_beating(where.rank)
    start_lookout(control, where.rank, device.type == "cuda", partial(leave, logs, where.rank))
    try:
        work(device, stop, control)
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


def leave(logs: Path, rank: int, error: Exception) -> None:
    """Exit for a main thread that stands still, with the reason where the parent process reads it."""
    if logs.is_dir():
        with suppress(OSError):
            (logs / f"rank_{rank}.error").write_text(masked(str(error)), encoding="utf-8")
    print_line(str(error))
    sys.stdout.flush()
    os._exit(error.exit_code if isinstance(error, SaeDistError) else 1)


def make_rank(
    cfg: Resolved, folder: Path, device: torch.device, stop: runtime.StopRequest, control: Control
) -> Rank:
    """Find this process's place in the topology, and begin to watch it."""
    clock, where = PhaseClock(device), place()
    topology = Topology(
        cfg.topology,
        where,
        device.type,
        team_size=cfg.llm.shard_size,
        in_step=cfg.llm.shard == "zero3",
        clock=clock,
    )
    topology.meet(device)
    facts = build_facts(cfg)
    watch = Watch(clock, start_telemetry(cfg, where, topology, device, control))
    return Rank(cfg, folder, facts, where, topology, device, stop, control, watch)


def run_role(rank: Rank) -> None:
    """Train or produce, whichever this rank is for; explain an error of memory."""
    try:
        if rank.topology.is_consumer:
            consume(rank)
        else:
            # A producer ends when its consumers say so: to stop is agreed among them.
            build_producer(rank)()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise explained(error, rank) from error
    finally:
        rank.watch.close()


def consume(rank: Rank) -> None:
    """Build what this group of consumers trains, train it, and wait for the other groups."""
    leads = rank.topology.leads
    loads = rank.cfg.runs_llm and not rank.cfg.topology.producers
    with waiting("loading the language model" if loads else "opening the stream") if leads else nullcontext():
        chunks = build_chunks(rank)
    folders = unfinished(rank)
    if folders:
        rank.watch.measure(rank.cfg, rank.topology, rank.device)
    with waiting("waiting for the first activations") if leads else nullcontext():
        runs = build_runs(rank, folders, chunks)
    if runs:
        rank.control.step = lambda: runs[0].progress.step
    try:
        train_and_summarise(rank, runs, chunks)
    except Preempted:
        await_groups(rank, "stopped")
        raise
    await_groups(rank, "trained")


def await_groups(rank: Rank, how: str) -> None:
    """Wait until every group of consumers has trained, or has stopped and saved.

    A launcher that sees a rank leave ends the others soon, which may still be saving. Rank 0 may host the
    store of all, and it finishes a grid.

    Args:
        how: what this group has done, `trained` or `stopped`.

    Raises:
        Preempted: another group has stopped, on rank 0.
        TransportError: a rank of another group failed.
    """
    topology, control = rank.topology, rank.control
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
        pause(POLL_S)
    if stopped and how == "trained" and topology.rank == 0:
        raise Preempted(
            "another group of consumers stopped as asked; checkpoints saved. "
            f"Go on: sae-dist resume {quoted(rank.folder)}"
        )


def unfinished(rank: Rank) -> list[Path]:
    """Return the folders of this group's dictionaries; with `resume=auto` without those given up before."""
    cfg = rank.cfg
    folders = [member_folders(cfg, rank.folder)[number] for number in shared_out(cfg, rank.topology.group)]
    if cfg.resume != "auto" or not cfg.is_grid:
        return folders
    return [each for each in folders if status(each) != DIVERGED]


def train_and_summarise(rank: Rank, runs: list[Run], chunks: ChunkSource) -> None:
    """Train to the end, and write the summary of each dictionary that came there."""
    if runs and runs[0].topology.leads:
        announce(runs, rank.facts)
    trained_before = [run.progress.step == run.steps and (run.folder / SUMMARY).exists() for run in runs]
    try:
        trained = train(runs, in_grid=rank.cfg.is_grid)
        for run, before in zip(runs, trained_before, strict=True):
            if run in trained and not before:
                write_summary(run)
        if trained and trained[0].topology.leads and (balance := trained[0].meter.balance_in_words()):
            print_line(balance)
        for run in trained:
            run.meter.check()
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


def close(chunks: ChunkSource) -> None:
    """Tell producers, where there are any, that this consumer needs no more chunks."""
    if isinstance(chunks, RemoteChunks):
        chunks.close()
