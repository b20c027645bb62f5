"""Mutations of a file's bytes, drawn by a number: of bytes as they are, and of what formats are made of.

What formats protect by a length or a checksum is put right again, so that what is behind it is reached.
"""

import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

TOKENS = [
    b"-1", b"0", b"1e999", b"-0.5", b"9" * 40, b"NaN", b"Infinity", b"null", b"true", b"{}", b"[]", b"''",
    b'"', b"'", b"\\", b"[" * 3000, b'{"a":' * 3000, b"(" * 200, b"- " * 500, b"\0" * 8, b"\xff" * 8,
    b"${oc.env:HOME}", b"*a", b"&a ", b"!!python/object/apply:os.system ['true']", b"../", b"/etc/passwd",
    b"\x1b[2J", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\r\n", b"???", b"4294967296", b"1e21", b"0x10", b"1_0",
]  # fmt: skip
LEAVES: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, 1e308, float("nan"), float("inf"), 1e21, 2**31, 2**63, -(2**63), 10**30,
    "", "x", "x" * 3000, "../x", "/etc/passwd", "pipe:true", "\x1b[2J", "\u202e", "\ud800", "${oc.env:HOME}",
    [], {}, [[]], [None], [1e400], {"": 0}, [0] * 300, "topk", "relu", 7, 40, 12,
]  # fmt: skip


def mutated(name: str, data: bytes, draw: random.Random) -> bytes:
    """Return other bytes for a file of this name."""
    if draw.random() < 0.5:
        for ending, act in FORMATS.items():
            if name.endswith(ending):
                try:
                    return act(data, draw)
                except (
                    ValueError,
                    KeyError,
                    IndexError,
                    tarfile.TarError,
                    zipfile.BadZipFile,
                    RecursionError,
                ):
                    break
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        data = draw.choice(BYTES)(data, draw)
    return data


def _flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data)) if data else 0
    return data[:at] + bytes(each ^ 1 << draw.randrange(8) for each in data[at : at + 1]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _without(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + draw.choice([1, 4, 64, 512]) :]


def _twice(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data) + 1), draw.choice([1, 8, 64, 512])
    return data[: at + size] + data[at : at + size] + data[at + size :]


def _with_token(data: bytes, draw: random.Random) -> bytes:
    at, over = draw.randrange(len(data) + 1), draw.choice([0, 0, 1, 8])
    return data[:at] + draw.choice(TOKENS) + data[at + over :]


def _other_number(data: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb"\d+", data[:20_000]))
    if not found:
        return _flipped(data, draw)
    place = draw.choice(found)
    return data[: place.start()] + draw.choice(TOKENS) + data[place.end() :]


def _other_integer(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data) + 1), draw.choice([1, 2, 4, 8])
    value = draw.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    return data[:at] + (value % 256**size).to_bytes(size, "little") + data[at + size :]


BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    _flipped, _flipped, _cut, _without, _twice, _with_token, _other_number, _other_integer,
]  # fmt: skip


def _json(data: bytes, draw: random.Random) -> bytes:
    return json.dumps(_changed(json.loads(data), draw)).encode()


def _json_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    return b"\n".join([*lines[:at], _json(lines[at], draw), *lines[at + 1 :]]) + b"\n"


def _yaml(data: bytes, draw: random.Random) -> bytes:
    import yaml

    return yaml.safe_dump(_changed(yaml.safe_load(data), draw), sort_keys=False).encode(
        "utf-8", "surrogatepass"
    )


def _changed(value: Any, draw: random.Random) -> Any:
    """Return a value of JSON with one of its parts replaced, left out, or named otherwise."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value, key=str))
        if draw.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if draw.random() < 0.1:
            return {(str(draw.choice(LEAVES)) if name == key else name): each for name, each in value.items()}
        return value | {key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    return draw.choice(LEAVES)


def _safetensors(data: bytes, draw: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + size], draw) if draw.random() < 0.7 else mutated("", data[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _npy(data: bytes, draw: random.Random) -> bytes:
    size = int.from_bytes(data[8:10], "little")
    header = mutated("", data[10 : 10 + size].strip(), draw)[:60_000]
    return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + size :]


def _tar(data: bytes, draw: random.Random) -> bytes:
    """Return a tar with another member, or with another header whose checksum is right."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    member, content = draw.choice(members)
    if draw.random() < 0.5:
        at = member.offset
        header = bytearray(mutated("", data[at : at + 512], draw).ljust(512, b"\0")[:512])
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        return data[:at] + bytes(header) + data[at + 512 :]
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for each, its in members:
            its = mutated(each.name, its, draw) if each is member else its
            each.size = len(its)
            tar.addfile(each, io.BytesIO(its))
    return target.getvalue()


def _zip(data: bytes, draw: random.Random) -> bytes:
    """Return an archive with another entry, whose checksum is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(target, "w") as other:
        names = archive.namelist()
        chosen = draw.choice(
            [each for each in names if draw.random() < 0.5 or each.endswith(".pkl")] or names
        )
        for name in names:
            its = archive.read(name)
            other.writestr(name, mutated(name, its, draw) if name == chosen else its)
    return target.getvalue()


FORMATS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json, ".jsonl": _json_lines, ".yaml": _yaml, ".safetensors": _safetensors, ".npy": _npy,
    ".tar": _tar, ".pt": _zip, ".npz": _zip,
}  # fmt: skip
