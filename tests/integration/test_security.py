"""Nothing that is read is unpickled, no path leaves its folder, and no password gets into a run folder."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_dist.cli import main
from sae_dist.config.secrets import check_secrets
from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError, DataError, SaeDistError
from sae_dist.core.sums import OPEN, sealed
from sae_dist.export.saelens import export_saelens, load_exported
from sae_dist.launch.compose import compose_config
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.shards import ShardCorpus
from sae_dist.tokens.source import open_tokens
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import read_manifest
from sae_dist.transport.file import open_array
from tests.helpers.commands import TINY
from tests.helpers.dictionaries import random_sae
from tests.helpers.small_llm import SMALL, SMALL_LLM, save_small_llm
from tests.helpers.tiny_llms import save_tiny
from tests.helpers.warm import warm


class Planted:
    """Unpickled, it would leave a file behind."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def planted(tmp_path):
    """A pickle, and a check that nobody has read it as one."""
    marker = tmp_path / "marker"
    yield pickle.dumps(Planted(marker))
    assert not marker.exists()


@pytest.fixture(scope="module")
def facts():
    return llm_facts(LlmConfig(name="embedded"), None)[0]


def test_it_would_work(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def object_array(path: Path, marker: Path) -> Path:
    """An .npy file of numpy's that holds a pickle."""
    np.save(path, np.array([[Planted(marker)]], dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_activations_of_a_file(tmp_path, planted, name):
    (tmp_path / name).write_bytes(planted)
    with pytest.raises(ConfigError, match="is not a readable"):
        open_array(str(tmp_path / name), None)
    with pytest.raises(ConfigError, match="is not a readable .npy array"):
        open_array(str(object_array(tmp_path / "b.npy", tmp_path / "marker")), None)


@pytest.mark.parametrize("ending", ["ids.npy", "ids.json"])
def test_token_files(tmp_path, planted, ending):
    content = object_array(tmp_path / "o.npy", tmp_path / "marker").read_bytes()
    for number, each in enumerate((planted, content)):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            member = tarfile.TarInfo(f"000.{ending}")
            member.size = len(each)
            tar.addfile(member, io.BytesIO(each))
        with pytest.raises(ConfigError, match="cannot be read") as refusal:
            ShardCorpus(str(tmp_path / f"{number}.tar"), 4096)
        assert "\n" not in str(refusal.value)


def test_text(tmp_path, planted, facts):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(planted)
        with pytest.raises(SaeDistError):
            source = open_tokens(
                TokensConfig(kind="text", path=str(tmp_path / name)),
                facts,
                lanes=1,
                seed=0,
                rows=20,
                held_out=False,
            )
            list(source.open(0, None))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    words = [*SMALL_LLM, "train_tokens=2000", "batch=100", "shuffle.lanes=2", "shuffle.chunk_rows=64"]
    done = warm(save_small_llm(folder), "harvest", *words, "name=cache")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "cache"


def test_a_cache(tmp_path, planted, cache):
    folder = Path(shutil.copytree(cache, tmp_path / "cache"))
    manifest = read_manifest(str(folder))
    (folder / manifest.shards[0].name).write_bytes(planted)
    with pytest.raises(DataError, match="is damaged"):
        next(CachedChunkSource(str(folder), manifest, dtype=torch.float32).open(0, None))
    (folder / "manifest.json").write_bytes(planted)
    with pytest.raises(ConfigError, match="its manifest.json is not readable"):
        read_manifest(str(folder))


def test_a_manifest_names_files_of_its_folder_only(tmp_path, cache):
    folder = Path(shutil.copytree(cache, tmp_path / "cache"))
    content = json.loads((folder / "manifest.json").read_text())
    for name in ("../elsewhere.tar", "/etc/passwd", "pipe:touch marker"):
        content["shards"][0]["name"] = name
        (folder / "manifest.json").write_text(sealed(json.dumps(content | {"sha256": OPEN})))
        with pytest.raises(ConfigError, match="its manifest.json is damaged"):
            read_manifest(str(folder))


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_an_export(tmp_path, planted, name):
    export = tmp_path / "export"
    export_saelens(export, random_sae("topk", F=48, D=16, k=5))
    assert load_exported(export).k == 5 and (export / name).is_file()
    (export / name).write_bytes(planted)
    with pytest.raises(SaeDistError) as refusal:
        load_exported(export)
    assert "\n" not in str(refusal.value)


def load_llm(folder: Path) -> None:
    cfg = LlmConfig(name=str(folder), dtype="float32")
    facts, _ = llm_facts(cfg, "layers.1")
    FrozenLlm.load(cfg, facts, device=torch.device("cpu"), dtype=torch.float32, with_head=False)


def test_a_model(tmp_path, planted):
    """Weights of the older format, which is a pickle."""
    save_tiny("llama", tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").unlink()
    (tmp_path / "llm" / "pytorch_model.bin").write_bytes(planted)
    with pytest.raises(ConfigError) as refusal:
        load_llm(tmp_path / "llm")
    assert "\n" not in str(refusal.value)


def test_the_index_of_a_model_names_files_of_its_folder_only(tmp_path):
    save_tiny("llama", tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    shutil.move(tmp_path / "llm" / "model.safetensors", tmp_path / "elsewhere.safetensors")
    names = dict.fromkeys(weights, "../elsewhere.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (tmp_path / "llm" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="names a file outside of its folder, ../elsewhere.safetensors"):
        load_llm(tmp_path / "llm")


SECRETS = [
    "activations.path=https://me:hunter22@example.org/cache",
    "activations.path='https://example.org/cache?X-Amz-Signature=0123456789abcdef'",
    "activations.path='pipe:curl -H \"Bearer abcdefghijkl\" https://example.org/{}'",
    "tokens.path=s3-from-the-environment-0123456789",
]


@pytest.mark.parametrize("word", SECRETS)
def test_a_password_is_refused_and_not_shown(tmp_path, monkeypatch, capsys, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "s3-from-the-environment-0123456789")
    kind = ["activations=cache"] if word.startswith("activations") else ["tokens=webdataset"]
    for command in ("train", "harvest"):
        assert main([command, *kind, word]) == 2
        said = capsys.readouterr()
        assert f"{word.split('=')[0]} holds a password or token" in said.err
        assert word.split("=", 1)[1] not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_password_is_taken():
    for word in ("tokens.path=a@b:c.txt", "llm.name=org/model-key", "activations.path=s3://bucket/key"):
        check_secrets(compose_config([word]))


def test_the_environment_stays_out_of_the_run_folder(tmp_path, monkeypatch):
    secrets = {"WANDB_API_KEY": "a1b2" * 10, "HF_TOKEN": "hf_" + "x9" * 17}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    words = [*TINY[:-2], *SMALL, "metrics.wandb=offline", "eval.tokens=0", "train_tokens=960"]
    words += ["topology.shard=2"]
    done = warm(save_small_llm(tmp_path), "train", *words, "name=run", ranks=2)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files) and any(path.name == "config.yaml" for path in files)
    for value in secrets.values():
        assert value not in done.stdout + done.stderr
        assert [path for path in files if value.encode() in path.read_bytes()] == []
