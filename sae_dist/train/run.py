"""What one rank does once the run folder is frozen: train, or produce."""

import json
import os
import resource
import sys
from pathlib import Path

import torch

from sae_dist.core.config import load_config
from sae_dist.core.errors import Preempted
from sae_dist.core.memory import consumer_memory
from sae_dist.core.types import ChunkSource
from sae_dist.dist import runtime
from sae_dist.dist.mesh import Topology
from sae_dist.train.build import build_chunks, build_facts, build_producer, build_run
from sae_dist.train.loop import train
from sae_dist.train.state import Run
from sae_dist.transport.collective import RemoteChunks


def run_rank(folder: Path) -> None:
    """Join the process group, play this rank's role to the end, leave.

    Raises:
        SaeDistError: see `core.errors`.
    """
    cfg = load_config(folder / "config.yaml")
    stop = runtime.StopRequest()
    where = runtime.place()
    device = runtime.start(where, cfg.device, cfg.topology.timeout_s)
    topology = Topology(
        cfg.topology,
        where,
        device.type,
        team_size=cfg.llm.shard_size,
        in_step=cfg.llm.shard == "zero3",
    )
    facts = build_facts(cfg)
    try:
        if topology.is_consumer:
            chunks = build_chunks(cfg, facts, topology, device)
            consume(build_run(cfg, folder, chunks, facts, topology, stop, device), chunks)
        else:
            # A producer ends when its consumers say so: to stop is agreed among them.
            build_producer(cfg, facts, topology, device)()
    except Preempted:
        runtime.finish()
        raise
    runtime.finish()


def consume(run: Run, chunks: ChunkSource) -> None:
    """A consumer's life: train, write down what came of it."""
    if run.topology.rank == 0:
        announce(run)
    trained_before = run.progress.step == run.steps and (run.folder / "summary.json").exists()
    try:
        train(run)
        if not trained_before:
            write_summary(run)
    except Preempted:
        close(chunks)
        raise
    finally:
        run.meter.close()
    close(chunks)


def close(chunks: ChunkSource) -> None:
    """Tell producers, where there are any, that this consumer has had its last chunk."""
    if isinstance(chunks, RemoteChunks):
        chunks.close()


def announce(run: Run) -> None:
    """What was chosen, said once."""
    cfg = run.cfg
    law = f"the law for {run.steps} steps and {cfg.sae.num_latents} latents"
    print(
        f"{run.folder}\n  {run.topology.describe()}; {run.device.type}, {cfg.precision}, "
        f"{cfg.kernels} kernels\n  {run.steps} steps of {cfg.batch}, from step {run.progress.step}; "
        f"lr {run.lr:.2e} ({law if cfg.optim.lr is None else 'given'}); activations x "
        + ", ".join(f"{scale:.4g}" for scale in run.scales)
        + f"\n  {memory_in_words(run)}",
        file=sys.stderr,
        flush=True,
    )


def memory_in_words(run: Run) -> str:
    """What a consumer will hold."""
    held = consumer_memory(run.cfg, sum(run.widths), run.widths[-1])
    gib = [f"{count / 2**30:.2f}" for count in (held.dictionary, held.rows)]
    return (
        f"each consumer holds {gib[0]} GiB of dictionary and optimizer, {gib[1]} GiB of activations that wait"
    )


def write_summary(run: Run) -> None:
    """summary.json as far as training knows it, and a line on who waited; evaluation adds its part."""
    memory = torch.tensor([peak_memory_bytes(run.device)], dtype=torch.int64)
    memory = run.topology.consumers.max(memory.to(run.device))
    if run.topology.rank:
        return
    summary = {
        "tokens": run.progress.tokens,
        "steps": run.progress.step,
        "tokens_per_second": run.progress.rate(),
        "peak_memory_bytes": int(memory),
        "world_size": run.topology.world,
        "lr": run.lr,
        "scales": run.scales,
        "status": "trained",
    }
    summary |= run.meter.summary()
    if balance := run.meter.balance_in_words():
        print(balance, file=sys.stderr, flush=True)
    temporary = run.folder / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, run.folder / "summary.json")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process held: of the device, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
