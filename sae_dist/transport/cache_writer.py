"""The writer of an activation cache: its shards are complete or absent, whichever rank computes them.

A shard is a function of its chunks alone: it records no time, owner or rank. So a harvest that was killed and
continued, and one of several ranks, write the same files as an undisturbed one; for that, the floating-point
work of the LLM must be the same (machine, library versions, threads per process).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist
from safetensors.torch import save

from sae_dist.core.errors import DataError, TransportError
from sae_dist.core.files import sync
from sae_dist.core.parsing import parse_json, reading
from sae_dist.core.types import ActivationChunk, ChunkSource, Position
from sae_dist.transport.cache_manifest import Shard, layout, sha256_of

POLL_S = 0.05


class _Hashing:
    """A file that computes the sha256 and the number of the bytes written to it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


@dataclass(frozen=True)
class CacheSize:
    """The size of a cache: its lanes, the chunks of each, the chunks of a shard, the dtype of stored rows."""

    lanes: int
    chunks: int
    shard_chunks: int
    dtype: torch.dtype


class LaneWriter:
    """The writer of one lane's shards; a shard that exists already is kept.

    Args:
        known: checksums of shards in an earlier manifest, by name; a shard that differs is written again.
        tick: called with the number of chunks that are newly complete, and whether they were written now: one
            at a time if so, else all of a shard; may raise to stop.
    """

    def __init__(
        self,
        folder: Path,
        source: ChunkSource,
        lane: int,
        size: CacheSize,
        *,
        known: Mapping[str, str],
        tick: Callable[[int, bool], None],
    ):
        self.folder, self.source, self.lane, self.size = folder, source, lane, size
        self.known, self.tick = known, tick
        self.layout = layout(lane, lanes=size.lanes, chunks=size.chunks, shard_chunks=size.shard_chunks)

    def write(self) -> list[Shard]:
        """Write the shards that are missing; return all shards of the lane.

        Raises:
            DataError: the source ends before.
        """
        (self.folder / "shards").mkdir(exist_ok=True)
        found, stream, before = [], None, None
        for name, numbers in self.layout.items():
            path = self.folder / name
            digest = self._digest(path)
            if digest is not None and digest == self.known.get(name, digest):
                found.append(Shard(name, self.lane, numbers, digest, path.stat().st_size))
                stream = None
                self.tick(len(numbers), False)
            else:
                stream = stream or self._open(before)
                found.append(Shard(name, self.lane, numbers, *self._write_one(path, numbers, stream)))
            before = path
        return found

    def _digest(self, path: Path) -> str | None:
        """Return the sha256 of a shard that exists already; None: it does not."""
        if not path.exists():
            return None
        with open(path, "rb") as file:
            return sha256_of(file)

    def _open(self, before: Path | None) -> Iterator[ActivationChunk]:
        """Open the source after the shard `before`, whose last chunk is computed again to find the place."""
        if before is None:
            return self.source.open(self.lane, None)
        stream = self.source.open(self.lane, _last_start(before))
        next(stream)
        return stream

    def _write_one(
        self, path: Path, numbers: tuple[int, ...], stream: Iterator[ActivationChunk]
    ) -> tuple[str, int]:
        """Write a shard under a temporary name, sync it, and rename it; return its sha256 and bytes."""
        from webdataset import TarWriter

        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            with TarWriter(hashing, encoder=False, mtime=0, user="sae_dist", group="sae_dist") as tar:
                for number in numbers:
                    chunk = next(stream, None)
                    if chunk is None:
                        raise DataError(
                            f"the source ran out in lane {self.lane} after {number // self.size.lanes} "
                            f"chunks of {self.size.chunks}; allow more passes (tokens.epochs) or harvest "
                            "fewer tokens (train_tokens)"
                        )
                    assert chunk.number == number, "a source gives chunks in their order"
                    tar.write(_sample(chunk, self.size.dtype))
                    self.tick(1, True)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync(path.parent)
        return hashing.sha256.hexdigest(), hashing.bytes


class Gathering:
    """The exchange of finished shards through the store, without a collective: ranks may end hours apart."""

    def __init__(self, rank: int, world: int, timeout_s: float):
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        self.store = dist.PrefixStore("harvest", dist.distributed_c10d._get_default_store())

    def beat(self) -> None:
        """Send a sign of life of this rank."""
        self.store.add(f"beat/{self.rank}", 1)

    def bring(self, shards: list[Shard]) -> None:
        """Publish the shards of this rank."""
        self.store.set(f"shards/{self.rank}", json.dumps([asdict(shard) for shard in shards]))

    def collect(self, check: Callable[[], None]) -> list[Shard]:
        """Wait for the shards of all ranks; return them in the order of their names.

        `check` is called meanwhile and may raise to stop.

        Raises:
            TransportError: a rank was silent for `timeout_s`.
        """
        found: list[Shard] = []
        for rank in range(self.world):
            self._wait(rank, check)
            found += [
                Shard(**each | {"chunks": tuple(each["chunks"])})
                for each in json.loads(self.store.get(f"shards/{rank}"))
            ]
        return sorted(found, key=lambda shard: shard.name)

    def _wait(self, rank: int, check: Callable[[], None]) -> None:
        beats, since = -1, time.monotonic()
        while not self.store.check([f"shards/{rank}"]):
            check()
            now = self.store.add(f"beat/{rank}", 0)
            if now != beats:
                beats, since = now, time.monotonic()
            if time.monotonic() - since > self.timeout_s:
                raise TransportError(f"rank {rank} was silent for {self.timeout_s:g} s (topology.timeout_s)")
            time.sleep(POLL_S)


def _sample(chunk: ActivationChunk, dtype: torch.dtype) -> dict[str, str | bytes]:
    """Return one sample of a tar file: <number>.json and <number>.safetensors."""
    header = {
        "number": chunk.number,
        "start": chunk.start,
        "excluded": chunk.excluded,
        "repeated": chunk.repeated,
    }
    if chunk.left_out:
        header["left_out"] = chunk.left_out
    rows_RD = chunk.rows_RD.detach().to("cpu", dtype).contiguous()
    tensors = {"rows": rows_RD, "ids": chunk.ids_R.to("cpu", torch.int64).contiguous()}
    return {
        "__key__": f"{chunk.number:012d}",
        "json": json.dumps(header).encode(),
        "safetensors": save(tensors),
    }


def _last_start(path: Path) -> Position:
    """Return the position at which the last chunk of a shard began."""
    from webdataset.tariterators import tar_file_iterator

    with reading(path, "is no shard of this cache ({reason}); delete it and go on", DataError):
        with open(path, "rb") as file:
            *_, last = tar_file_iterator(file, select_files=lambda name: name.endswith(".json"))
        return parse_json(last["data"])["start"]
