"""Transcoders of all layers on one stream: each is the one trained alone, and together they are a set."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sae_dist as sd
from tests.helpers.commands import TINY, rows, train
from tests.helpers.runs import same_weights, wait_for_checkpoint
from tests.helpers.small_llm import LAYERS, SMALL
from tests.helpers.warm import Command, warm
from tests.integration.test_handed_on import owner, told

LENGTH = [*SMALL, "train_tokens=1920", "tokens.max_norm_multiple=null"]
PLACES = ["grid.hook=[layers.*.mlp:in]", "grid.target_hook=[layers.*.mlp]"]
OWN = ["grid.hook_num_latents=[256,512,256,384]", "grid.hook_k=[4,8,4,6]"]
WORDS = [word for word in ("train", *TINY) if not word.startswith(("sae.num_latents=", "sae.k="))]
LOADER = """
import json
from pathlib import Path
import numpy as np, torch, yaml
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
config = yaml.safe_load(Path("config.yaml").read_text())
paths = {n: f"layer_{n}.safetensors" for n in range(len(list(Path(".").glob("layer_*.safetensors"))))}
hooks = {key: config[key] for key in ("feature_input_hook", "feature_output_hook")}
found = load_transcoder_set(paths, "x", device=torch.device("cpu"), **hooks)
x = torch.from_numpy(np.load("x.npy"))
with torch.no_grad():
    y = found.decode(found.encode(x), x)
np.save("y.npy", y.numpy())
print(json.dumps([len(found), found.d_transcoder, found.skip_connection]))
"""
EVALUATED = ["eval.every=1920", "eval.rows=300", "eval.ce=100"]
CURVE = "step loss/total loss/fvu sparsity/l0 latents/dead_fraction stream/batch_hash".split()


def name(layer):
    return f"hook=layers.{layer}.mlp_in,target_hook=layers.{layer}.mlp_out"


def curve(run):
    return [[row[key] for key in CURVE] for row in rows(run)]


@pytest.fixture(scope="module")
def whole(folder):
    """A grid's folder, and what the command printed."""
    words = [*LENGTH, *PLACES, *OWN, "sae.skip=true", "eval.tokens=1k", "eval.ce_tokens=256", *EVALUATED]
    done = warm(folder, *WORDS, *words, "name=grid")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "grid", done.stdout


@pytest.mark.parametrize("layer", [1, pytest.param(3, marks=pytest.mark.long)])
def test_each_transcoder_is_the_one_trained_alone(folder, whole, layer):
    run, _ = whole
    words = [
        "sae.skip=true",
        f"sae.num_latents={[256, 512, 256, 384][layer]}",
        f"sae.k={[4, 8, 4, 6][layer]}",
    ]
    words += [f"hook=layers.{layer}.mlp:in", f"target_hook=layers.{layer}.mlp"]
    words += ["eval.tokens=1k", "eval.ce_tokens=256", *EVALUATED]
    train(folder, f"alone{layer}", *LENGTH, *words)
    alone = folder / "outputs" / f"alone{layer}"
    assert len(curve(alone)) == 10 and curve(run / name(layer)) == curve(alone)
    assert same_weights(run / name(layer), alone)
    measured = [
        [{key: row[key] for key in row if key.startswith("eval/")} for row in rows(each) if "eval/kl" in row]
        for each in (run / name(layer), alone)
    ]
    assert len(measured[0]) == 1 and measured[0] == [pytest.approx(each, rel=1e-5) for each in measured[1]]
    ours, theirs = (json.loads((each / "summary.json").read_text()) for each in (run / name(layer), alone))
    for key in ("fvu", "l0", "ce_recovered", "ce_clean"):
        assert ours[key] == theirs[key], key


def test_the_table_names_each_pair_and_the_set_is_opened(whole):
    run, printed = whole
    assert list(json.loads((run / "summary.json").read_text())["dictionaries"]) == list(
        map(name, range(LAYERS))
    )
    assert all(name(layer) in printed for layer in range(LAYERS)) and "one stream for all" in printed
    found = sd.load_set(run)
    assert found.hooks == tuple((f"layers.{n}.mlp:in", f"layers.{n}.mlp:out") for n in range(LAYERS))
    assert [(each.num_latents, each.k) for each in found] == [(256, 4), (512, 8), (256, 4), (384, 6)]
    assert found.model_name == "llm" or found.model_name.endswith("/llm")
    lm = sd.model(found)
    with torch.no_grad(), found[2].attach(lm) as attached:
        clean = lm(input_ids=lm.ids(" an example of some text")[None]).logits
    assert attached.codes.shape[-1] == 256 and clean.isfinite().all()


def test_it_is_exported_as_a_set(whole):
    run, _ = whole
    formats = [word for each in ("saelens", "sparsify") for word in ("--format", each)]
    done = warm(run, "export", ".", *formats)
    assert done.returncode == 0, done.stderr
    x = torch.randn(7, 64)
    for each in ("saelens", "sparsify"):
        assert (run / "export" / each / "layers.3.mlp" / "cfg.json").is_file()
        back = sd.load_set(run / "export" / each)
        for ours, theirs in zip(sd.load_set(run), back, strict=True):
            assert torch.equal(ours(x), theirs(x)) and theirs.k == ours.k
    done = warm(run, "export", ".", "--format", "circuit_tracer")
    assert done.returncode == 2 and "cannot hold a topk dictionary" in done.stderr
    assert not (run / "export" / "circuit_tracer").exists()


@pytest.mark.long
def test_a_killed_grid_of_pairs_goes_on_and_producers_train_the_same(folder, whole):
    run, _ = whole
    words = [*WORDS, *LENGTH, *PLACES, *OWN, "sae.skip=true", "checkpoint.every=576"]
    process = Command(folder, *words, "name=killed")
    killed = folder / "outputs" / "killed"
    wait_for_checkpoint(process, killed / name(0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = warm(folder, *words, "name=killed", "resume=auto")
    assert done.returncode == 0, done.stderr
    topology = ["topology.producers=1", "topology.groups=2", "topology.shard=2"]
    done = warm(folder, *words, "name=split", *topology, ranks=5)
    assert done.returncode == 0, done.stderr
    for layer in range(LAYERS):
        assert curve(killed / name(layer)) == curve(run / name(layer))
        assert same_weights(killed / name(layer), run / name(layer))
        split, alone = rows(folder / "outputs" / "split" / name(layer)), rows(run / name(layer))
        assert [row["stream/batch_hash"] for row in split] == [row["stream/batch_hash"] for row in alone]
        off = [abs(a["loss/total"] / b["loss/total"] - 1) for a, b in zip(split, alone, strict=True)]
        assert max(off[:3]) < 1e-4, off


@pytest.fixture(scope="module")
def of_circuit_tracer(folder):
    """A grid that circuit-tracer can hold, and its set."""
    words = ["sae=batchtopk", "sae.num_latents=256", "sae.k=8", "sae.skip=true", "eval.tokens=0"]
    done = warm(folder, *WORDS, *LENGTH, *PLACES, *words, "name=batch")
    assert done.returncode == 0, done.stderr
    run = folder / "outputs" / "batch"
    done = warm(run, "export", ".", "--format", "circuit_tracer")
    assert done.returncode == 0, done.stderr
    return run, run / "export" / "circuit_tracer"


@pytest.mark.long
def test_circuit_tracers_set_computes_the_same(of_circuit_tracer):
    run, place = of_circuit_tracer
    assert len(list(place.glob("layer_*.safetensors"))) == LAYERS
    x = torch.randn(7, 64)
    for layer, (ours, theirs) in enumerate(zip(sd.load_set(run), sd.load_set(place), strict=True)):
        weights = load_file(place / f"layer_{layer}.safetensors")
        pre = x @ weights["W_enc"].T + weights["b_enc"]
        codes = pre * (pre > weights["activation_function.threshold"])
        y = codes @ weights["W_dec"] + weights["b_dec"] + x @ weights["W_skip"].T
        torch.testing.assert_close(y, ours(x))
        torch.testing.assert_close(theirs(x), ours(x))
        assert theirs.hook.endswith(f"layers.{layer}.mlp:in")


@pytest.mark.long
def test_circuit_tracer_loads_the_set(request, of_circuit_tracer):
    python = owner(request, "circuit_tracer")
    run, place = of_circuit_tracer
    x = torch.randn(LAYERS, 7, 64)
    np.save(place / "x.npy", x.numpy())
    assert told(python, LOADER, place) == [LAYERS, 256, True]
    y = torch.from_numpy(np.load(place / "y.npy"))
    for each, own, theirs in zip(sd.load_set(run), x, y, strict=True):
        torch.testing.assert_close(each(own), theirs)
