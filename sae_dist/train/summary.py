"""The summary.json of a dictionary as training leaves it: trained to its end, or given up."""

import torch

from sae_dist.core.errors import NumericsError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import DIVERGED, SUMMARY, TRAINED
from sae_dist.core.text import print_line
from sae_dist.train.speed import peak_memory_bytes
from sae_dist.train.state import Run


def write_summary(run: Run) -> None:
    """Write what training knows; evaluation adds its part. Every consumer rank calls this."""
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


def give_up(run: Run, error: NumericsError) -> None:
    """End the training of one dictionary of a grid, say why, and free its memory."""
    run.checkpoints.wait()
    del run.dictionary, run.optimizer
    if run.topology.leads:
        print_line(f"{run.folder.name}: given up: {error}")
        run.meter.alert("given up", str(error))
        summary = {"tokens": run.progress.tokens, "steps": run.progress.step, "lr": run.lr}
        write_json(run.folder / SUMMARY, summary | {"status": DIVERGED, "reason": str(error)})
