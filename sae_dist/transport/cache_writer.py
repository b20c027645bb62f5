"""Writes an activation cache: shards that are complete or absent, whichever rank computes them.

A shard is a function of its chunks alone: no times, owners or ranks in it. So a harvest that was killed and
continued, and one of several ranks, leave the same files as one without incident; the floating-point work of
the LLM must be the same for that (machine, library versions, threads per process).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist
from safetensors.torch import save

from sae_dist.core.errors import DataError, TransportError
from sae_dist.core.files import sync
from sae_dist.core.types import ActivationChunk, ChunkSource, Position
from sae_dist.transport.cache_manifest import Shard, layout, sha256_of

POLL_S = 0.05


class _Hashing:
    """A file that knows the sha256 and the number of the bytes written to it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


class LaneWriter:
    """Writes the shards of one lane, those that are not there yet.

    Args:
        chunks: how many chunks the lane shall have.
        dtype: rows are kept in it.
        known: checksums that shards of an earlier manifest had, by name; one that changed is written again.
        tick: called with how many chunks are there more, and whether they were written now: one at a time
            then, else a shard's; may raise to stop.
    """

    def __init__(
        self,
        folder: Path,
        source: ChunkSource,
        lane: int,
        *,
        lanes: int,
        chunks: int,
        shard_chunks: int,
        dtype: torch.dtype,
        known: Mapping[str, str],
        tick: Callable[[int, bool], None],
    ):
        self.folder, self.source, self.lane, self.dtype, self.tick = folder, source, lane, dtype, tick
        self.lanes, self.chunks, self.known = lanes, chunks, known
        self.layout = layout(lane, lanes=lanes, chunks=chunks, shard_chunks=shard_chunks)

    def write(self) -> list[Shard]:
        """All shards of the lane, once they are all there.

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
        """The sha256 of a shard that is there already."""
        if not path.exists():
            return None
        with open(path, "rb") as file:
            return sha256_of(file)

    def _open(self, before: Path | None) -> Iterator[ActivationChunk]:
        """The chunks that follow those of the shard before, whose last one is computed again."""
        if before is None:
            return self.source.open(self.lane, None)
        stream = self.source.open(self.lane, _last_start(before))
        next(stream)
        return stream

    def _write_one(
        self, path: Path, numbers: tuple[int, ...], stream: Iterator[ActivationChunk]
    ) -> tuple[str, int]:
        """Beside its place first; on the disk before it is renamed. Returns sha256 and bytes."""
        from webdataset import TarWriter

        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            with TarWriter(hashing, encoder=False, mtime=0, user="sae_dist", group="sae_dist") as tar:
                for number in numbers:
                    chunk = next(stream, None)
                    if chunk is None:
                        raise DataError(
                            f"the source ran out in lane {self.lane} after {number // self.lanes} chunks of "
                            f"{self.chunks}; allow more passes (tokens.epochs) or harvest fewer tokens "
                            "(train_tokens)"
                        )
                    assert chunk.number == number, "a source gives chunks in their order"
                    tar.write(_sample(chunk, self.dtype))
                    self.tick(1, True)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync(path.parent)
        return hashing.sha256.hexdigest(), hashing.bytes


class Gathering:
    """What the ranks bring together at the end, without a collective: they may end hours apart."""

    def __init__(self, rank: int, world: int, timeout_s: float):
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        self.store = dist.PrefixStore("harvest", dist.distributed_c10d._get_default_store())

    def beat(self) -> None:
        """Say that this rank is alive."""
        self.store.add(f"beat/{self.rank}", 1)

    def bring(self, shards: list[Shard]) -> None:
        """Hand in this rank's shards."""
        self.store.set(f"shards/{self.rank}", json.dumps([asdict(shard) for shard in shards]))

    def collect(self, check: Callable[[], None]) -> list[Shard]:
        """The shards of all ranks, in the order of their names; `check`, called meanwhile, may raise to stop.

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
    """One sample of a tar file: <number>.json and <number>.safetensors."""
    header = {
        "number": chunk.number,
        "start": chunk.start,
        "excluded": chunk.excluded,
        "repeated": chunk.repeated,
    }
    rows_RD = chunk.rows_RD.detach().to("cpu", dtype).contiguous()
    tensors = {"rows": rows_RD, "ids": chunk.ids_R.to("cpu", torch.int64).contiguous()}
    return {
        "__key__": f"{chunk.number:012d}",
        "json": json.dumps(header).encode(),
        "safetensors": save(tensors),
    }


def _last_start(path: Path) -> Position:
    """Where the last chunk of a shard began."""
    from webdataset.tariterators import tar_file_iterator

    with open(path, "rb") as file:
        *_, last = tar_file_iterator(file, select_files=lambda name: name.endswith(".json"))
    return json.loads(last["data"])["start"]
