"""What users get wrong about token sources: one line that names the field, the value and the fix."""

import json
from itertools import islice

import numpy as np
import pytest
from test_tokens_sources import FACTS, npy, write_tar

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens.source import open_tokens


def fails(expected, error=ConfigError, *, chunks=0, lanes=2, held_out=False, **fields) -> None:
    fields.setdefault("kind", "text")
    with pytest.raises(error, match=expected) as caught:
        cfg = TokensConfig(**fields)
        source = open_tokens(cfg, FACTS, lanes=lanes, seed=0, rows=20, held_out=held_out)
        list(islice(source.open(0, None), chunks))
    assert "\n" not in str(caught.value)


def test_paths(tmp_path):
    fails("tokens.path=/nope does not exist; give a file or folder of text", path="/nope")
    fails("has no text in it; expected files ending in .txt", path=str(tmp_path))
    (tmp_path / "a.txt").touch()
    fails("holds only empty files", path=str(tmp_path))
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    fails("a.txt is not text", path=str(tmp_path))


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x\n" * 5000)
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    fails("a.txt cannot be read; check its permissions", path=str(path))


def test_too_few_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some words\n" * 500)
    fails("has 4 documents to train on, fewer than shuffle.lanes=48; use fewer", lanes=48, path=str(path))
    path.write_text("some words\n")
    fails("has 0 documents held out", lanes=1, held_out=True, path=str(path))


def test_documents_without_a_token(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 50)
    fails("has no text for lane 0 of shuffle.lanes=2", chunks=1, path=str(path))


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n' * 50)
    fails('a.jsonl line 1 is not an object with a "text"', path=str(path))
    path.write_text('{"text": "x y z"}\n' + "broken\n" * 49)
    fails("a.jsonl, line .* is not an object", (ConfigError, DataError), chunks=9, path=str(path))


def test_context_and_kind():
    fails("tokens.context=1 leaves no room next to 1 special tokens; use at least 2", context=1)
    fails("tokens.kind=tar is unknown; use text, webdataset or hf", kind="tar")


def test_tar_files(tmp_path):
    fails("tokens.path is missing", kind="webdataset")
    missing = str(tmp_path / "x-{0..1}.tar")
    fails("names .*x-0.tar, which is not a file", kind="webdataset", path=missing)
    fails("matches no file", kind="webdataset", path=str(tmp_path / "*.tar"))
    tar = tmp_path / "a.tar"
    write_tar(tar, {"0.txt": b"text"})
    fails(r"holds no samples named \*.ids.npy", kind="webdataset", path=str(tar))
    write_tar(tar, {"0.ids.npy": npy([1, 5000]), "1.ids.npy": npy([1, 2])})
    fails("a.tar, sample 0.ids.npy .* token ids from 1 to 5000", kind="webdataset", path=str(tar))
    write_tar(tar, {"0.ids.json": json.dumps([[1, 2]]).encode()})
    fails("sample 0.ids.json .* expected a list of token ids", kind="webdataset", path=str(tar))
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    fails("a.tar.gz is not a whole, uncompressed tar", kind="webdataset", path=str(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize("cut", ["header", "member", "between"])
def test_a_truncated_tar(tmp_path, cut):
    tar = tmp_path / "a.tar"
    write_tar(tar, {f"{i}.ids.npy": npy(np.arange(1, 500)) for i in range(6)})
    whole = tar.read_bytes()
    size = 512 + -(-len(npy(np.arange(1, 500))) // 512) * 512
    tar.write_bytes(whole[: 3 * size + {"header": 100, "member": 700, "between": 0}[cut]])
    fails("a.tar is (truncated|not a whole)", kind="webdataset", path=str(tar))


@pytest.mark.parametrize("bad", [npy([9999] * 8), npy([[1, 2]]), b"\x93NUMPY\x01\x00v", b"{"])
def test_damage_that_shows_in_the_run(tmp_path, bad):
    tar = tmp_path / "a.tar"
    samples = {f"{i}.ids.npy": bad for i in range(1, 20)}
    write_tar(tar, {"0.ids.npy": npy([1, 2, 3]), **samples})
    expected = r"a.tar, sample \d+.ids.npy(:| cannot be read:) "
    fails(expected, (ConfigError, DataError), chunks=9, kind="webdataset", path=str(tar))


def test_a_stream_that_breaks_in_the_run(tmp_path):
    (tmp_path / "0.jsonl").write_text('{"text": "a few words of text"}\n' * 40)
    (tmp_path / "1.jsonl").write_text('{"text": "a few words of text"}\n' * 9 + "broken\n" * 40)
    hf = dict(kind="hf", dataset="json", data_files=str(tmp_path / "*.jsonl"))
    fails(
        "tokens.dataset=json, after example .* cannot be read: .*1.jsonl, line 10 is not JSON",
        DataError,
        chunks=90,
        lanes=1,
        **hf,
    )


def test_datasets(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "x", "n": 1}\n' * 9)
    hf = dict(kind="hf", dataset="json", data_files=str(file))
    fails("tokens.dataset is missing", kind="hf")
    fails("tokens.column=text is not a column of tokens.dataset=json; its columns: body, n", **hf)
    fails("tokens.column=n: .*example 0 is not text: expected a list of token ids", column="n", **hf)
    # Older versions of the library find no example in files that are not there.
    nothing = "tokens.dataset=json (cannot be loaded|has no examples)"
    fails(nothing, kind="hf", dataset="json", data_files="/nope/*.jsonl")
    fails("tokens.dataset=json cannot be loaded", column="body", split="nope", **hf)
    fails("fewer than shuffle.lanes=20", column="body", lanes=20, streaming=False, **hf)
    fails("has no text for lane 0 of shuffle.lanes=2", chunks=9, column="n2", **_few(tmp_path))


def _few(folder):
    file = folder / "few.jsonl"
    file.write_text('{"n2": ""}\n' * 3)
    return dict(kind="hf", dataset="json", data_files=str(file))
