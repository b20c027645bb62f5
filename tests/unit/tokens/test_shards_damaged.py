"""Tar files of token ids that are damaged: no sample is left out without a word."""

import io
import tarfile

import pytest
from test_tokens_sources import npy, write_tar

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens.kept import UnusableDocument
from sae_dist.tokens.shards import BLOCK_BYTES, ShardCorpus

SAMPLES = {f"{n:03d}.ids.npy": npy(range(n, n + 9)) for n in range(6)}


def opened(folder) -> ShardCorpus:
    return ShardCorpus(str(folder / "a.tar"), 100)


def headers(path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


@pytest.mark.parametrize("byte", [0, 3, 100, 124, 130, 148, 156, 257, 300, 511])
@pytest.mark.parametrize("member", [0, 1, 5])
def test_a_bit_of_a_header(tmp_path, member, byte):
    """Without the look at the end, the samples behind it were left out."""
    write_tar(tmp_path / "a.tar", SAMPLES)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    at = headers(tmp_path / "a.tar")[member] + byte
    data[at] ^= 4
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ConfigError, match="a.tar is not a whole, uncompressed tar file") as refusal:
        opened(tmp_path)
    if member:
        assert f"follows its {member} members, at byte {at - byte}, is neither" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-10240] if len(data) > 10240 else data[: 6 * 1024], "truncated after 6 members"),
        (lambda data: data + data, "neither a member nor the end"),
        (lambda data: data[: 2 * 1024 + 100], "truncated|unexpected end"),
        (lambda data: data[:-1] + b"\1", "neither a member nor the end"),
    ],
)
def test_where_a_tar_ends(tmp_path, change, says):
    write_tar(tmp_path / "a.tar", SAMPLES)
    (tmp_path / "a.tar").write_bytes(change((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path)


def test_a_tar_as_others_write_it(tmp_path):
    """With one block of zeros at its end, with none more than needed, or with many."""
    write_tar(tmp_path / "a.tar", SAMPLES)
    data = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    data += b"\0" * (-len(data) % BLOCK_BYTES)
    for blocks in (1, 2, 5000):
        (tmp_path / "a.tar").write_bytes(data + b"\0" * BLOCK_BYTES * blocks)
        assert len(opened(tmp_path)) == 6


def test_a_member_that_goes_backwards(tmp_path):
    """tarfile of some releases of Python reads such a tar for ever."""
    write_tar(tmp_path / "a.tar", SAMPLES)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    at = headers(tmp_path / "a.tar")[2]
    data[at + 124 : at + 136] = (-1024).to_bytes(12, "big", signed=True)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ConfigError, match="a member of negative size"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 5000,
        b"[1, 2",
        b'{"a": 1}',
        b"[1e400]",
        b"[" + b"9" * 30 + b"]",
        b"\x93NUMPY\1\0\xff\xff",
        b"\xff\xfe",
    ],
)
def test_what_is_in_a_sample(tmp_path, content):
    write_tar(tmp_path / "a.tar", SAMPLES | {"010.ids.json": content})
    with pytest.raises(UnusableDocument, match="cannot be read") as refusal:
        opened(tmp_path).read(6)
    assert "\n" not in str(refusal.value)
    write_tar(tmp_path / "a.tar", {"010.ids.json": content})
    with pytest.raises((ConfigError, DataError)):
        opened(tmp_path)


def test_an_array_that_asks_for_more_than_there_is(tmp_path):
    data = io.BytesIO(npy(range(9))).getvalue().replace(b"(9,)", b"(9999999999999,)")
    write_tar(tmp_path / "a.tar", {"0.ids.npy": data})
    with pytest.raises(ConfigError, match="needs 19999999999998 bytes|header is damaged"):
        opened(tmp_path)


def test_names_that_are_not_utf_8(tmp_path):
    write_tar(tmp_path / "a.tar", {"caf\udce9.ids.npy": npy(range(9))} | SAMPLES)
    assert len(opened(tmp_path)) == 7
