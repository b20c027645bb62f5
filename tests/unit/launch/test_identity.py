"""A run goes on with the data that it was begun with, or says what changed."""

import json
import tarfile

import numpy as np
import pytest

from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.launch.identity import (
    SAMPLE_BYTES,
    SAMPLES,
    caution,
    check_identity,
    identity_of,
    write_identity,
)


def text(folder, **fields):
    (folder / "texts").mkdir()
    for name in "abcd":
        (folder / "texts" / f"{name}.txt").write_text(f"the words of {name}\n" * 20)
    return {"kind": "text", "path": str(folder / "texts")}


def arrays(folder):
    (folder / "texts").mkdir()
    for name in "abcd":
        np.save(folder / "texts" / f"{name}.npy", np.full((9, 4), ord(name), np.float32))
    return {"path": str(folder / "texts")}


def shards(folder):
    (folder / "texts").mkdir()
    for name in "abcd":
        (folder / name).write_text(name)
        with tarfile.open(folder / "texts" / f"{name}.tar", "w") as tar:
            tar.add(folder / name, f"{name}.ids.json")
    return {"kind": "webdataset", "path": str(folder / "texts" / "*.tar")}


def lines(folder):
    (folder / "texts").mkdir()
    for name in "abcd":
        (folder / "texts" / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    return {"kind": "hf", "dataset": "json", "data_files": str(folder / "texts" / "*.jsonl")}


def config(kind, folder):
    cfg = RunConfig()
    cfg.activations.kind, cfg.tokens.kind = "file" if kind is arrays else "llm", "text"
    section = cfg.activations if kind is arrays else cfg.tokens
    for key, value in kind(folder).items():
        setattr(section, key, value)
    return cfg


@pytest.mark.parametrize("kind", [text, arrays, shards, lines])
def test_what_changed_is_named_with_the_ways_on(tmp_path, kind):
    cfg = config(kind, tmp_path)
    run, files = tmp_path / "run", sorted((tmp_path / "texts").iterdir())
    run.mkdir()
    write_identity(identity_of(cfg), run)
    check_identity(identity_of(cfg), run)
    content = bytearray(files[0].read_bytes())
    content[-2] ^= 1
    files[0].write_bytes(content)
    files[1].rename(files[1].with_stem("new"))
    with pytest.raises(ConfigError) as refusal:
        check_identity(identity_of(cfg), run)
    said, ending = str(refusal.value), files[0].suffix
    assert f"1 changed (a{ending}); 1 missing (b{ending}); 1 new (new{ending})" in said
    assert f"remove {run / 'data_files.json'}" in said and "\n" not in said
    (run / "data_files.json").unlink()
    check_identity(identity_of(cfg), run)
    check_identity(identity_of(cfg), run)


def test_a_large_file_is_sampled_from_end_to_end(tmp_path):
    cfg, path = config(text, tmp_path), tmp_path / "texts" / "large.txt"
    size = 3 * SAMPLES * SAMPLE_BYTES
    path.write_bytes(b"x" * size)
    before = identity_of(cfg)
    for place in (0, size - 1, (size - SAMPLE_BYTES) // (SAMPLES - 1) + 5):
        content = bytearray(b"x" * size)
        content[place] = ord("y")
        path.write_bytes(content)
        assert identity_of(cfg) != before


def test_the_text_of_this_python():
    cfg = RunConfig()
    cfg.activations.kind, cfg.tokens.kind = "llm", "text"
    assert identity_of(cfg) == identity_of(cfg) and identity_of(cfg)["Python's own text"][0] > 5_000_000


def test_what_is_made_has_no_identity(tmp_path):
    cfg = RunConfig()
    cfg.activations.kind = "synthetic"
    write_identity(identity_of(cfg), tmp_path)
    assert identity_of(cfg) == {} and list(tmp_path.iterdir()) == []


def test_an_evaluation_on_other_data_is_cautioned(tmp_path, capsys):
    cfg = config(text, tmp_path)
    member = tmp_path / "run" / "k=16"
    member.mkdir(parents=True)
    caution(cfg, member)
    write_identity(identity_of(cfg), member.parent)
    caution(cfg, member)
    assert capsys.readouterr().err == ""
    (tmp_path / "texts" / "a.txt").unlink()
    caution(cfg, member)
    assert "caution: " in (said := capsys.readouterr().err) and "1 missing (a.txt)" in said
