"""The parts that the training scripts of all peers share: the job, the rows in their order, the result.

Runs in a peer's own Python, as the scripts do: imports nothing of sae_dist.

Letters: as core.types.
"""

import importlib.metadata
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file


def read_job() -> SimpleNamespace:
    """Return the job that the benchmark wrote (`quality.contestants.Trial`), from the path in sys.argv.

    From now on the process ends with the benchmark, which holds the other end of stdin.
    """
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if job.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this Python's torch finds no CUDA device; install a CUDA build, or use --device cpu")
    torch.manual_seed(job.seed)
    job.steps = job.tokens // job.batch
    return job


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


class Batches:
    """The rows of every step [batch, D], float32, from the first each time it is iterated."""

    def __init__(self, job: SimpleNamespace):
        self.rows = np.load(job.rows, mmap_mode="r")
        self.order = np.load(job.order)
        self.batch, self.steps, self.device = job.batch, job.steps, job.device
        self.width = self.rows.shape[1]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.at(self.order[s * self.batch : (s + 1) * self.batch]) for s in range(self.steps))

    def at(self, numbers: np.ndarray) -> torch.Tensor:
        """Return a copy of rows, by their numbers in the file."""
        return torch.from_numpy(self.rows[numbers]).to(self.device)


def write_result(
    job: SimpleNamespace,
    *,
    package: str,
    seconds: float,
    settings: str,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    scale: float = 1.0,
) -> None:
    """Write weights.safetensors and trained.json into the job's folder.

    The dictionary is relu(topk_k((scale x - b_dec) W_enc^T + b_enc)) W_dec + b_dec, divided by scale.

    Args:
        package: distribution name of the peer, for its version.
        seconds: of training, reading included.
        settings: what was set otherwise than the peer's defaults, for the report.
    """
    tensors = {"W_enc": W_enc_FD, "b_enc": b_enc_F, "W_dec": W_dec_FD, "b_dec": b_dec_D}
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    folder = Path(job.folder)
    save_file(plain, folder / "weights.safetensors")
    trained: dict[str, Any] = {
        "k": job.k,
        "scale": scale,
        "train_seconds": seconds,
        "settings": settings,
        "version": importlib.metadata.version(package),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    (folder / "trained.json").write_text(json.dumps(trained, indent=1) + "\n", encoding="utf-8")
