"""Reads the .wandb files that an offline run leaves: LevelDB's log format, records of W&B's own protobuf."""

import json
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
WITHIN_S = 20.0
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Record]:
    """Every record of a .wandb file."""
    data = path.read_bytes()
    assert data[:4] in (b"", b":W&B")
    found, place, parts = [], HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if place + HEADER + length > len(data):
            break
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def of_folder(folder: Path) -> list[Record]:
    """Records of all parts of a run, in the order in which they were begun.

    A run's `finish` returns before W&B's own process has written the last of them.
    """
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        until = time.monotonic() + WITHIN_S
        while not of_kind(part := records(path), "exit"):
            assert time.monotonic() < until, f"{path} has no end"
            time.sleep(0.05)
        found += part
    return found


def history(found: list[Record]) -> list[dict[str, Any]]:
    """The rows that were logged."""
    return [nested(row.item) for row in of_kind(found, "history")]


def summary(found: list[Record]) -> dict[str, Any]:
    """What was set in the run's summary."""
    return nested([item for each in of_kind(found, "summary") for item in each.update])


def nested(items: Iterable[Any]) -> dict[str, Any]:
    """Values by their keys; those of a dictionary come one by one, with a path of keys each."""
    result: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return result


def of_kind(found: list[Record], kind: str) -> list[Any]:
    """Records of one kind, such as run, metric, alert, artifact."""
    return [getattr(each, kind) for each in found if each.WhichOneof("record_type") == kind]
