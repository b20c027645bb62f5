"""The real SAELens, in its own environment, reads our exports and computes what we compute."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_dist as sd
from sae_dist.export.saelens import export_saelens
from sae_dist.kernels.reference import encode_topk
from tests.helpers.dictionaries import random_sae, to_dense

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
F, D, OUT, K = 512, 48, 40, 6
FORMS = [
    ("topk", "autoencoder", "topk"),
    ("relu", "autoencoder", "standard"),
    ("jumprelu", "autoencoder", "jumprelu"),
    ("gated", "autoencoder", "gated"),
    ("relu", "transcoder", "transcoder"),
    ("relu", "skip", "skip_transcoder"),
    ("jumprelu", "transcoder", "jumprelu_transcoder"),
    ("jumprelu", "skip", "jumprelu_skip_transcoder"),
]
OURS_ALONE = [("topk", "transcoder"), ("topk", "skip"), ("gated", "transcoder"), ("gated", "skip")]
READER = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
x = load_file("x.safetensors")["x"]
found = {}
for folder in sorted(Path("exports").iterdir()):
    try:
        sae = SAE.load_from_disk(folder)
    except (KeyError, ValueError) as error:
        found[folder.name] = {"refused": str(error)}
        continue
    with torch.no_grad():
        codes = sae.encode(x)
        theirs = {"codes": codes, "decoded": sae.decode(codes), "output": sae(x)}
        save_file({k: v.contiguous() for k, v in theirs.items()}, f"{folder.name}.safetensors")
    found[folder.name] = {
        "class": type(sae).__name__,
        "architecture": sae.cfg.architecture(),
        "hook_name": sae.cfg.metadata.hook_name,
        "training_architecture": sae.cfg.metadata.training_architecture,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def saelens_python(request) -> Path:
    given = request.config.getoption("--saelens-python", default=None)
    python = Path(given) if given else ROOT / ".venv-saelens" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist: an environment with sae-lens is needed (see CONTRIBUTING)")
    return python


def make(kind, form):
    """Sparse, as trained ones are: sums of few codes, whose rounding stays below the measure."""
    sae = random_sae(kind, form, F=F, D=D, out=OUT, k=K)
    for bias_F in (sae.b_enc_F, sae.b_gate_F):
        if bias_F is not None:
            bias_F.sub_(10.0 if kind == "topk" else 5.0)
    return sae


@pytest.fixture(scope="module")
def read_by_saelens(tmp_path_factory, saelens_python):
    """Every kind, exported and read in one go: what SAELens says of each, and the folder of its results."""
    folder = tmp_path_factory.mktemp("saelens")
    torch.manual_seed(0)
    x = torch.randn(300, D) * 2
    save_file({"x": x}, folder / "x.safetensors")
    for kind, form in [(kind, form) for kind, form, _ in FORMS] + OURS_ALONE:
        sae = make(kind, form)
        sae.trained_as = "batchtopk" if kind == "jumprelu" else None
        export_saelens(folder / "exports" / f"{kind}-{form}", sae)
    run = subprocess.run(
        [saelens_python, "-c", READER], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return x, json.loads(run.stdout.splitlines()[-1]), folder


@pytest.mark.parametrize(("kind", "form", "architecture"), FORMS)
def test_saelens_encodes_and_decodes_an_export_as_we_do(read_by_saelens, kind, form, architecture):
    x, found, folder = read_by_saelens
    said = found[f"{kind}-{form}"]
    assert said["architecture"] == architecture and said["hook_name"] == "h"
    assert said["training_architecture"] == ("batchtopk" if kind == "jumprelu" else None)
    theirs = load_file(folder / f"{kind}-{form}.safetensors")
    sae = make(kind, form)
    codes = sae.encode(x, encode_topk)
    dense = to_dense(codes, F)
    share = float((dense > 0).float().mean())
    assert 0.001 < share < 0.2, "some latents fire, and some do not"
    if kind == "topk":
        assert share < K / F, "the ReLU after TopK must matter here"
    torch.testing.assert_close(theirs["codes"], dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs["output"], sae.decode(codes, x), atol=1e-5, rtol=1e-5)
    # SAELens adds the skip in its forward alone.
    torch.testing.assert_close(theirs["decoded"], dense @ sae.W_dec_FE + sae.b_dec_E, atol=1e-5, rtol=1e-5)
    used = sd.load(folder / "exports" / f"{kind}-{form}")
    torch.testing.assert_close(used.encode(x).dense(), theirs["codes"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(used(x), theirs["output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "form"), OURS_ALONE)
def test_what_saelens_does_not_know_it_refuses(read_by_saelens, kind, form):
    _, found, _ = read_by_saelens
    assert "transcoder" in found[f"{kind}-{form}"]["refused"]
