"""Reads the .wandb files that an offline run leaves: LevelDB's log format, records of W&B's own protobuf."""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Record]:
    """Every record of a .wandb file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, place, parts = [], HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def of_folder(folder: Path) -> list[Record]:
    """Records of all parts of a run, in the order in which they were begun."""
    return [each for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for each in records(path)]


def history(found: list[Record]) -> list[dict[str, Any]]:
    """The rows that were logged."""
    rows = [record.history for record in found if record.WhichOneof("record_type") == "history"]
    return [{key_of(item): json.loads(item.value_json) for item in row.item} for row in rows]


def summary(found: list[Record]) -> dict[str, Any]:
    """What was set in the run's summary, last value first."""
    items = [
        item
        for record in found
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    ]
    return {key_of(item): json.loads(item.value_json) for item in items}


def key_of(item: Any) -> str:
    """Of a key, or a path of keys."""
    return item.key or ".".join(item.nested_key)


def of_kind(found: list[Record], kind: str) -> list[Any]:
    """Records of one kind, such as run, metric, alert, artifact."""
    return [getattr(each, kind) for each in found if each.WhichOneof("record_type") == kind]
