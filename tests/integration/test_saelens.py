"""The real SAELens, in its own environment, reads our export and computes what we compute."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from sae_dist.kernels.reference import encode_topk

ROOT = Path(__file__).parents[2]
READER = """
import sys, torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
folder = sys.argv[1]
sae = SAE.load_from_disk(folder + "/export")
x = load_file(folder + "/x.safetensors")["x"]
with torch.no_grad():
    codes = sae.encode(x)
    theirs = {"codes": codes.contiguous(), "x_hat": sae.decode(codes).contiguous()}
    save_file(theirs, folder + "/theirs.safetensors")
print(sae.cfg.architecture(), sae.cfg.metadata.hook_name)
"""


@pytest.fixture
def saelens_python(request) -> Path:
    given = request.config.getoption("--saelens-python", default=None)
    python = Path(given) if given else ROOT / ".venv-saelens" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist: an environment with sae-lens is needed (see CONTRIBUTING)")
    return python


def test_saelens_encodes_and_decodes_an_export_as_we_do(tmp_path, saelens_python):
    draw = torch.Generator().manual_seed(0)
    F, D, K = 512, 48, 6
    W_enc, W_dec = (torch.randn(F, D, generator=draw) / D**0.5 for _ in range(2))
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.randn(F, generator=draw) - 8.0, torch.randn(D, generator=draw)
    sae = ExportedSae(W_enc, b_enc, W_dec, b_dec, K, {"hook_name": "layers.1:out", "model_name": "embedded"})
    x = torch.randn(300, D, generator=draw) * 2
    export_saelens(tmp_path / "export", sae)
    save_file({"x": x}, tmp_path / "x.safetensors")

    run = subprocess.run(
        [saelens_python, "-c", READER, tmp_path], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["topk", "layers.1:out"]

    theirs = load_file(tmp_path / "theirs.safetensors")
    val, idx = sae.encode(x, encode_topk)
    assert (val == 0).any() and (val > 0).any(), "the ReLU after TopK must matter here"
    torch.testing.assert_close(
        theirs["codes"], torch.zeros(300, F).scatter_(1, idx, val), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(theirs["x_hat"], sae.decode(val, idx), atol=1e-5, rtol=1e-5)
