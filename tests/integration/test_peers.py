"""The real sparsify and dictionary_learning, in environments of their own: they read our exports and compute
what we compute, and what they save is read and computes what they compute.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_dist as sd
from sae_dist.export.formats import FORMATS
from sae_dist.kernels.reference import encode_topk
from tests.helpers.dictionaries import random_sae, to_dense

pytestmark = pytest.mark.long

F, D, K, LEVELS = 512, 48, 6, [128, 256, 512]
SPARSIFY = [("topk", "autoencoder"), ("topk", "transcoder"), ("topk", "skip")]
LEARNED = [
    (kind, "autoencoder") for kind in ("topk", "relu", "free", "jumprelu", "gated", "batchtopk", "matryoshka")
]
READ = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
x = load_file("x.safetensors")["x"]
found = {}
for folder in sorted(p for p in Path("exports").iterdir()):
    with torch.no_grad():
        theirs, name = compute(folder, x)
        save_file({k: v.contiguous() for k, v in theirs.items()}, f"{folder.name}.safetensors")
    found[folder.name] = name
print(json.dumps(found))
"""
SPARSIFY_READS = """
def compute(folder, x):
    from sparsify import Sae
    sae = Sae.load_from_disk(folder)
    top, at, _ = sae.encode(x)
    codes = torch.zeros(len(x), sae.num_latents).scatter_(1, at, top)
    return {"codes": codes, "output": sae(x).sae_out}, type(sae).__name__
"""
LEARNING_READS = """
def compute(folder, x):
    from dictionary_learning.utils import load_dictionary
    sae, config = load_dictionary(str(folder), "cpu")
    return {"codes": sae.encode(x), "output": sae(x)}, type(sae).__name__
"""
SPARSIFY_SAVES = """
from sparsify import Sae, SparseCoderConfig
torch.manual_seed(1)
for form in ("autoencoder", "transcoder", "skip"):
    forms = {"transcode": form != "autoencoder", "skip_connection": form == "skip"}
    sae = Sae(48, SparseCoderConfig(num_latents=512, k=6, **forms))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter) / 4
    sae.encoder.bias.data -= 8
    sae.save_to_disk(f"exports/theirs-{form}")
"""
LEARNING_SAVES = """
import dictionary_learning.dictionary as d
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
torch.manual_seed(1)
made = {
    "AutoEncoder": d.AutoEncoder(48, 512), "AutoEncoderNew": d.AutoEncoderNew(48, 512),
    "GatedAutoEncoder": d.GatedAutoEncoder(48, 512), "JumpReluAutoEncoder": d.JumpReluAutoEncoder(48, 512),
    "AutoEncoderTopK": AutoEncoderTopK(48, 512, 6), "BatchTopKSAE": BatchTopKSAE(48, 512, 6),
    "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(48, 512, 6, [128, 384]),
}
for name, sae in made.items():
    for key, parameter in sae.named_parameters():
        if key != "threshold":
            parameter.data = torch.randn_like(parameter) / 4
        if key in ("encoder.bias", "b_enc", "gate_bias", "mag_bias"):
            parameter.data -= 5
    if name == "BatchTopKSAE":
        sae.threshold.fill_(3.0)
    folder = Path("exports") / f"theirs-{name}"
    folder.mkdir()
    torch.save(sae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": 48, "dict_size": 512, "k": 6}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
"""


def python_of(request, peer: str) -> str:
    given = request.config.getoption("--peer-python", default=None) or ""
    pythons = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    if peer not in pythons:
        pytest.skip(f"an environment with {peer} is needed: --peer-python {peer}=/path/bin/python")
    return pythons[peer]


def make(kind: str, form: str):
    """Sparse, as trained ones are: sums of few codes, whose rounding stays below the measure."""
    used = {"batchtopk": "jumprelu", "matryoshka": "jumprelu", "free": "relu"}.get(kind, kind)
    sae = random_sae(used, form, F=F, D=D, out=D, k=K)
    for bias_F in (sae.b_enc_F, sae.b_gate_F):
        if bias_F is not None:
            bias_F.sub_(10.0 if kind == "topk" else 5.0)
    if kind in ("batchtopk", "matryoshka"):
        sae.trained_as, sae.metadata = kind, {"training_k": K, "matryoshka_prefixes": LEVELS}
        sae.threshold_F.fill_(0.8)
    if kind == "free":
        sae.W_dec_FE *= torch.linspace(0.5, 2, F)[:, None]
    return sae


def run_peer(folder: Path, python: str, program: str) -> dict[str, str]:
    """Save x and run a program of a peer's in the folder; what it prints."""
    torch.manual_seed(0)
    save_file({"x": torch.randn(300, D) * 2}, folder / "x.safetensors")
    run = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=folder, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def ours(sae, x):
    codes = sae.encode(x, encode_topk)
    return to_dense(codes, F), sae.decode(codes, x)


PEERS = [
    ("sparsify", SPARSIFY, SPARSIFY_READS, SPARSIFY_SAVES),
    ("dictionary_learning", LEARNED, LEARNING_READS, LEARNING_SAVES),
]


@pytest.mark.parametrize(("peer", "made", "reads", "saves"), PEERS, ids=[each[0] for each in PEERS])
def test_round_trips(request, tmp_path, peer, made, reads, saves, record_property):
    python = python_of(request, peer)
    (tmp_path / "exports").mkdir()
    saes = {f"{kind}-{form}": make(kind, form) for kind, form in made}
    for name, sae in saes.items():
        FORMATS[peer].write(tmp_path / "exports" / name, sae)
    imports = READ.split("x = load_file")[0]
    said = run_peer(tmp_path, python, imports + saves + reads + READ)
    theirs = {name: load_file(tmp_path / f"{name}.safetensors") for name in said}
    x = load_file(tmp_path / "x.safetensors")["x"]
    assert len([name for name in said if name.startswith("theirs-")]) == (3 if peer == "sparsify" else 7)
    for name, result in theirs.items():
        sae = saes.get(name) or FORMATS[peer].read(tmp_path / "exports" / name)
        codes, output = ours(sae, x)
        share = float((codes > 0).float().mean())
        assert 0.001 < share < 0.2, f"{name}: some latents fire, and some do not"
        assert torch.equal(result["codes"] > 0, codes > 0), f"{name}: the same latents"
        record_property(name, float((result["codes"] - codes).abs().max()))
        torch.testing.assert_close(result["codes"], codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result["output"], output, atol=1e-5, rtol=1e-5)
        again = FORMATS[peer].read(tmp_path / "exports" / name)
        torch.testing.assert_close(ours(again, x)[0], codes, atol=1e-5, rtol=1e-5)
        used = sd.load(tmp_path / "exports" / name)
        torch.testing.assert_close(used.encode(x).dense(), result["codes"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(used(x), result["output"], atol=1e-5, rtol=1e-5)
    if peer == "dictionary_learning":
        classes = {name.partition("-")[0]: each for name, each in said.items() if name in saes}
        assert classes["free"] == "AutoEncoderNew" and classes["matryoshka"] == "MatryoshkaBatchTopKSAE"
