"""An export takes memory for a few latents, not for the dictionary."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_dist.checkpoint.storage import PLACES, checksum, seal
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.export.formats import FORMATS

F, D = 1 << 15, 768
MATRIX_BYTES = 4 * F * D
MEASURED = """
import resource, sys
from pathlib import Path
import sae_dist.train.export as finish
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from sae_dist.llm import facts
before = peak()
finish.export_run(Path(sys.argv[1]), sys.argv[2:])
print((peak() - before) * (1 if sys.platform == "darwin" else 1024))
"""


def make_run(folder: Path, num_latents: int, width: int, kind: str, parts: int) -> None:
    """A finished run of random weights, its checkpoint written by several ranks; no LLM is in it."""
    cfg = RunConfig(train_tokens=2048)
    cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "none", "text", "synthetic"
    cfg.sae.kind, cfg.sae.num_latents, cfg.optim.kind = kind, num_latents, "adam"
    cfg.sae.prefixes = [0.25, 1.0] if kind == "matryoshka" else None
    checkpoint = folder / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    save_config(resolve(cfg, None, width), folder / "config.yaml")
    files, rows = {}, num_latents // parts
    for part in range(parts):
        torch.manual_seed(part)
        tensors = {name: torch.randn(rows, width) for name in ("W_enc", "W_dec")} | {
            "b_enc": torch.randn(rows)
        }
        if part == 0:
            tensors |= {"b_dec": torch.randn(width), "threshold": torch.tensor(0.5)}
        first = {"W_enc": [part * rows, 0], "W_dec": [part * rows, 0], "b_enc": [part * rows]}
        places = {name: {"saved_offsets": first.get(name, [0] * t.dim())} for name, t in tensors.items()}
        file = checkpoint / f"rows_{part:05d}.safetensors"
        save_file(tensors, file, metadata={PLACES: json.dumps(places), "format": "pt"})
        files[file.name] = checksum(file)
    seal(checkpoint, json.dumps({"step": 1, "tokens": 2048, "scales": [0.5]}), files)


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
@pytest.mark.parametrize(
    ("kind", "formats"), [("topk", list(FORMATS)[:3]), ("matryoshka", ["dictionary_learning"])]
)
def test_an_export_holds_less_than_two_thirds_of_the_dictionary(tmp_path, kind, formats):
    """1 GiB at 2^18 x 768 is two thirds of its two matrices: here, at an eighth, 128 MiB."""
    make_run(tmp_path, F, D, kind, parts=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path, *formats], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in formats:
        files = (tmp_path / "export" / FORMATS[name].folder).iterdir()
        assert sum(file.stat().st_size for file in files if file.is_file()) > 2 * MATRIX_BYTES
    grown = int(done.stdout.splitlines()[-1])
    assert grown < 2 * MATRIX_BYTES * 2 / 3, f"{grown / 2**20:.0f} MiB"
