"""Our own trial: `sae-dist train activations=file` with the default configuration, started like a peer.

python -m sae_dist.bench.quality.ours job.json
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from sae_dist.bench.quality.contestants import TRAINED
from sae_dist.bench.quality.plan import CHUNK_ROWS
from sae_dist.core.errors import SaeDistError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import CHECKPOINTS, EXPORT, read_summary


def overrides(job: dict[str, Any]) -> list[str]:
    """Return the words after `sae-dist train`; all other settings are the defaults."""
    return [
        "activations=file",
        f"activations.path='{job['rows']}'",
        f"train_tokens={job['tokens'] // job['batch'] * job['batch']}",
        f"batch={job['batch']}",
        f"sae.num_latents={job['num_latents']}",
        f"sae.k={job['k']}",
        f"sae.dead_after={job['dead_after']}",
        f"optim.lr={job['lr']}",
        f"seed={job['seed']}",
        f"device={job['device']}",
        f"shuffle.chunk_rows={CHUNK_ROWS}",
        f"output='{job['folder']}'",
        "name=run",
        "eval.tokens=0",
        "checkpoint.every=null",
        "metrics.wandb=off",
        "metrics.console=false",
        *job["variant"].split(),
    ]


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from sae_dist.launch.run import train_command

    try:
        train_command(overrides(job))
    except SaeDistError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    write_own_result(job)
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def write_own_result(job: dict[str, Any]) -> None:
    """Write the run's export in the layout of the benchmark; remove its checkpoints."""
    import torch
    from safetensors.torch import save_file

    from sae_dist.bench.quality.evaluate import weights_of_export
    from sae_dist.launch.provenance import provenance

    folder = Path(job["folder"])
    run = folder / "run"
    weights = weights_of_export(run / EXPORT)
    save_file(weights.tensors(), folder / "weights.safetensors")
    summary = read_summary(run)
    origin = provenance()
    commit = f"commit {origin['commit'][:10]}" if origin["commit"] else "no commit"
    trained = {
        "k": weights.k,
        "scale": weights.scale,
        "train_seconds": summary["tokens"] / summary["tokens_per_second"],
        "settings": job["variant"] or "defaults",
        "version": f"{origin['versions']['sae-dist']}, {commit}"
        + (" with changes" if origin["diff"] else ""),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    write_json(folder / TRAINED, trained)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
