"""Wrong input: exit code 2, one line that names field and fix, and nothing written."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, LlamaConfig

from sae_dist import cli
from tests.helpers.commands import answer, sae_dist
from tests.helpers.tiny_llms import EMBEDDED


def make_inputs(folder: Path) -> None:
    """Inputs that are wrong, each in its own way, and a few that are right."""
    (folder / "empty").mkdir()
    (folder / "no_text").mkdir()
    (folder / "no_text" / "a.png").write_bytes(b"\x89PNG")
    (folder / "blank").mkdir()
    (folder / "blank" / "a.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 100)
    (folder / "broken.jsonl").write_text("no json\n" * 100)
    (folder / "few.txt").write_text("One short text.")
    (folder / "no_model").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("years of work")
    np.save(folder / "cube.npy", np.zeros((4, 4, 4), np.float32))
    np.save(folder / "whole_numbers.npy", np.zeros((4, 4), np.int64))
    np.save(folder / "good.npy", np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32))
    np.save(folder / "few.npy", np.zeros((10, 4), np.float32))
    np.save(folder / "nan.npy", np.where(np.arange(400)[:, None] == 7, np.nan, np.ones((400, 4), np.float32)))
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:1000])
    (folder / "acts.csv").write_text("1,2")
    save_file({"a": torch.zeros(0, 4)}, folder / "no_rows.safetensors")
    (folder / "short").mkdir()
    for number in range(64):
        (folder / "short" / f"{number}.txt").write_text("The quick brown fox jumps over the lazy dog.")
    save_file({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}, folder / "two.safetensors")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number in range(100):
            content = f"[{number}, 1, 2]".encode()
            member = tarfile.TarInfo(f"{number}.ids.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "cut.tar").write_bytes((folder / "shard.tar").read_bytes()[:5000])
    (folder / "a_file").write_text("")
    save_configs(folder)


def save_configs(folder: Path) -> None:
    """Models without weights: one that tensor parallelism has no plan for, one that no machine holds."""
    sizes = dict(hidden_size=32768, intermediate_size=131072, num_hidden_layers=48, num_attention_heads=256)
    for name, config in (("gpt2", GPT2Config(n_layer=2)), ("huge", LlamaConfig(**sizes))):
        config.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EMBEDDED / file, folder / name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


TABLE = [
    ("sae.num_latnts=64", "sae.num_latnts", "sae.num_latents"),
    ("d_sae=64", "d_sae", "sae.num_latents"),
    ("hook_name=blocks.1.hook_resid_post", "hook_name", "called hook"),
    ("training_tokens=1M", "training_tokens", "train_tokens"),
    ("sae.k=many", "sae.k=many", "a whole number"),
    ("optim.lr=fast", "optim.lr=fast", "a number"),
    ("train_tokens=2G", "train_tokens=2G", "500k, 2M"),
    ("sae.k=8,16", "sae.k=8,16", "write 'grid.k=[8,16]' to train all on one stream, or add -m"),
    ("batch=512,1024", "batch=512,1024", "add -m to start a run for each"),
    ("llm=gtp2", "llm=gtp2", "embedded, hf, minilm"),
    ("--batch=3", "--batch", "key"),
    ("sae.num_latents=64 sae.k=65", "sae.k=65", "at most 64"),
    ("sae.num_latents=24577 topology.shard=2", "sae.num_latents=24577", "use sae.num_latents=24576"),
    ("sae.num_latents=64 sae.expansion=2", "sae.expansion=2", "give one"),
    ("topology.shard=7", "topology.shard=7", "use shuffle.lanes=7 batch=511 sae.num_latents="),
    ("batch=513 topology.dp=2", "batch=513", "use batch=512"),
    ("topology.producers=9", "topology.producers=9", "at most 8"),
    ("train_tokens=100", "train_tokens=100", "batch=512"),
    ("optim.beta1=1", "optim.beta1=1", "below 1"),
    ("precision=fp32", "precision=fp32", "precision=float32"),
    ("kernels=triton", "kernels=triton", "torch"),
    ("resume=yes", "resume=yes", "never, auto"),
    ("hook=layers.9", "hook=layers.9", "the layers are 0 to 3"),
    ("hook=layers.1.mpl", "hook=layers.1.mpl", "nearest: layers.1.mlp"),
    ("llm.shard=zero2", "llm.shard=zero2", "none, zero3, tp"),
    ("llm.shard=zero3 topology=split", "llm.shard_size=1", "llm.shard_size=2"),
    ("llm.shard_size=2", "llm.shard_size=2", "llm.shard=zero3 or llm.shard=tp"),
    ("llm.shard=zero3 llm.shard_size=2", "llm.shard=zero3", "set topology.producers=1"),
    ("llm.shard=tp llm.shard_size=2 topology=split llm.offload=true", "llm.offload=true", "llm.shard=zero3"),
    ("llm.offload=true", "llm.offload=true", "llm.shard=zero3"),
    ("llm.shard=tp llm.shard_size=2 topology=split llm.compile=true", "llm.compile=true", "leave it out"),
    ("llm.shard=tp llm.shard_size=3 topology=split", "llm.shard_size=3", "2, 4"),
    ("llm.shard=tp llm.shard_size=2 topology=split llm.name={inputs}/gpt2", "GPT2Model", "llm.shard=zero3"),
    ("llm.shard=zero3 llm.shard_size=5 topology.producers=2", "llm.shard_size=5", "shuffle.lanes=8"),
    ("llm.name={inputs}/huge", "in float32, and this machine has", "llm.shard=zero3 llm.shard_size="),
    ("activations=synthetic llm.shard=tp", "llm.shard=tp", "leave llm.shard out"),
    ("target_hook=layers.9", "target_hook=layers.9", "the layers are 0 to 3"),
    ("hook=layers.1 target_hook=layers.1:out", "target_hook=layers.1:out", "leave target_hook out"),
    ("sae.skip=true", "sae.skip=true", "give target_hook"),
    ("hook=layers.1:sideways", "hook=layers.1:sideways", "layers.1:in or layers.1:out"),
    ("llm.name=/no/such/model", "llm.name=/no/such/model", "give the folder"),
    ("llm.name={inputs}/no_model", "no_model", "config.json"),
    ("llm.name=nobody/nothing", "llm.name=nobody/nothing", "give the folder"),
    ("tokens.context=100000", "tokens.context=100000", "at most 256"),
    ("tokens.path={inputs}/nowhere", "nowhere does not exist", "folder of text"),
    ("tokens.path={inputs}/empty", "empty has no text", ".txt"),
    ("tokens.path={inputs}/no_text", "no_text has no text", ".txt"),
    ("tokens.path={inputs}/blank", "blank holds only empty files", "folder of text"),
    ("tokens.path={inputs}/binary.txt", "binary.txt", "UTF-8"),
    ("tokens.path={inputs}/broken.jsonl", "broken.jsonl", "tokens.path"),
    ("tokens.path={inputs}/few.txt", "few.txt", "lanes"),
    ("tokens.path={inputs}/short", "shuffle.chunk_rows=256", "eval.tokens=0"),
    ("tokens=webdataset", "tokens.path must be given", ".tar"),
    ("tokens=webdataset tokens.path={inputs}/cut.tar", "cut.tar", "write it again"),
    ("tokens=webdataset tokens.path={inputs}/x-{{0..3}}.tar", "x-0.tar", "give tar files"),
    ("tokens=hf tokens.dataset={inputs}/nowhere", "tokens.dataset", "nowhere"),
    ("activations=file", "activations.path must be given", "acts.npy"),
    ("activations.path={inputs}/good.npy", "activations.path", "activations=file"),
    ("activations=file activations.path={inputs}/nowhere.npy", "nowhere.npy does not exist", ".safetensors"),
    ("activations=file activations.path={inputs}/cube.npy", "[4, 4, 4]", "[N, D]"),
    ("activations=file activations.path={inputs}/whole_numbers.npy", "int64", "floating-point"),
    ("activations=file activations.path={inputs}/nan.npy", "row 7", "remove it"),
    ("activations=file activations.path={inputs}/cut.npy", "cut.npy", "readable"),
    ("activations=file activations.path={inputs}/few.npy", "10 rows", "at least 16"),
    ("activations=file activations.path={inputs}/acts.csv", "acts.csv", ".npy"),
    ("activations=file activations.path={inputs}/no_rows.safetensors", "[0, 4]", "N > 0"),
    ("activations=file activations.path={inputs}/two.safetensors", "activations.key", "a, b"),
    ("activations=file activations.path={inputs}/good.npy hook=layers.1", "hook=layers.1", "leave hook out"),
    ("activations=file activations.path={inputs}/good.npy topology=split", "topology.producers=1", "=0"),
    ("activations=synthetic topology=split", "topology.producers=1", "=0"),
    ("activations=synthetic activations.zipf=2", "activations.mean_active=10", "use at most 1.6"),
    ("activations.mean_active=3", "activations.mean_active=3", "activations=synthetic"),
    ("output={inputs}/a_file", "a_file", "choose another output="),
    ("output={inputs} name=foreign", "foreign exists and is no run folder", "another name="),
    (f"name={'n' * 300}", "name=nnn", "choose another"),
    ("tokens.max_norm_multiple=0.5", "tokens.max_norm_multiple=0.5", "more than 1"),
    ("name=a/b", "name=a/b", "one folder"),
    ("sae.num_latents=4000000000", "GiB free", "choose another output="),
    ("eval.every=100", "eval.every=100", "batch=512"),
    ("eval.every=often", "eval.every=often", "500k, 2M"),
    ("eval.every=1k eval.rows=0", "eval.rows=0", "greater than 0"),
    ("eval.every=1k eval.rows=9M", "eval.rows=9000000", "use at most"),
    ("eval.ce=1k", "eval.ce=1000", "give eval.every"),
    ("eval.corpus={inputs}/nowhere", "eval.corpus=", "folder of text"),
    ("eval.probes={inputs}/nowhere.jsonl", "eval.probes=", "text and label, or python"),
    ("eval.every=1k eval.ce=1k activations=synthetic", "eval.ce=1000", "leave it out"),
    (
        "llm.shard=tp llm.shard_size=2 topology=split llm.random_init=true",
        "llm.random_init",
        "llm.shard=none",
    ),
    ("llm.shard=tp llm.shard_size=2 topology=split eval.every=1k", "eval.every=1000", "leave it out"),
]


@pytest.mark.parametrize(("overrides", "names", "fix"), TABLE, ids=[row[0] for row in TABLE])
def test_one_line_and_nothing_written(overrides, names, fix, inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = sorted(inputs.rglob("*"))
    words = [word.format(inputs=inputs) for word in overrides.split()]

    assert cli.main(["train", "debug=tiny", *words]) == 2

    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and err.startswith("sae-dist: error: "), err
    assert names in err and fix in err
    assert out == ""
    assert list(tmp_path.iterdir()) == [] and sorted(inputs.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "device=cuda"]) == 2
    assert "device=cpu" in capfd.readouterr().err


@pytest.mark.parametrize(
    "line", ["eval", "export absent", "eval absent", "eval a b", "trian", "train job", "train --cfg"]
)
def test_other_commands(line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("sae-dist: error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sae.num_latents=24577", "topology.shard=2"], "use sae.num_latents=24576"),
        (["tokens.path=nowhere"], "nowhere does not exist"),
        (["activations=file", "activations.path=nowhere.npy", "topology.shard=2"], "nowhere.npy"),
    ],
)
def test_the_real_command(overrides, says, tmp_path):
    done = sae_dist(tmp_path, "train", *overrides)
    assert (done.returncode, done.stdout) == (2, "")
    said = answer(done.stderr)
    assert said.count("\n") == 1 and said.startswith("sae-dist: error: ") and says in said
    assert list(tmp_path.iterdir()) == []
