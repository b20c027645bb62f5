"""Activation chunks from a cache that `sae-dist harvest` wrote: exactly the chunks that it computed."""

import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from safetensors.torch import load

from sae_dist.core.errors import DataError
from sae_dist.core.parsing import parse_json, reading
from sae_dist.core.text import first_line
from sae_dist.core.typed import of_type
from sae_dist.core.types import ActivationChunk, Position, Precision
from sae_dist.transport.cache_manifest import Location, Manifest, Shard, mend, sha256_of

HEADER: dict[str, Any] = {"excluded": int, "repeated": int, "start": Position, "left_out": dict[str, int]}
"""The types of what a chunk says of itself."""


class CachedChunkSource:
    """The chunks of a cache, lane by lane, from any position on.

    A shard is read twice: to check its checksum, the first time that this process uses it, and for its
    chunks, one at a time. A remote shard is copied to an unnamed temporary file while it is read; each open
    lane needs disk space for one.

    Args:
        dtype: the rows are converted to it, whatever dtype they are stored in.
    """

    def __init__(self, path: str, manifest: Manifest, *, dtype: torch.dtype):
        self.location, self.manifest, self.dtype = Location(path), manifest, dtype
        self.width = sum(manifest.widths)
        self.checked: set[str] = set()
        self.shards: dict[int, list[Shard]] = {lane: [] for lane in range(manifest.lanes)}
        for shard in sorted(manifest.shards, key=lambda shard: shard.chunks):
            self.shards[shard.lane].append(shard)

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`, until the cache ends.

        Raises:
            DataError: a shard is missing or was changed; the message names it and its chunks.
        """
        first = (start["chunk"] if start else 0) * self.manifest.lanes + lane
        for shard in self.shards[lane]:
            if shard.chunks[-1] >= first:
                yield from self._read(shard, first)

    def _read(self, shard: Shard, first: int) -> Iterator[ActivationChunk]:
        """Yield the chunks of one shard, from number `first` on."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        with self._verified(shard) as file:
            samples = group_by_keys(tar_file_expander([{"url": shard.name, "stream": file}]))
            for number in shard.chunks:
                with reading(*self._holds_others(shard)):
                    sample: dict[str, Any] = next(samples, {})
                    chunk = self._decode(shard, number, sample) if number >= first else None
                if chunk is not None:
                    yield chunk

    def _holds_others(self, shard: Shard) -> tuple[str, str, type[DataError]]:
        """Return the parts of the message about a shard whose chunks are not those that the manifest says."""
        where = f"shard {shard.describe()} of {self.location.path}"
        return where, f"holds other chunks ({{reason}}); {mend()}", DataError

    def _decode(self, shard: Shard, number: int, sample: dict[str, Any]) -> ActivationChunk:
        header, tensors = parse_json(sample["json"]), load(sample["safetensors"])
        rows_RD, ids_R = tensors["rows"], tensors["ids"]
        shape, dtype = (self.manifest.rows, self.width), Precision.of(self.manifest.dtype).wire
        ids_fit = ids_R.shape == shape[:1] and ids_R.dtype == torch.int64
        if header["number"] != number or rows_RD.shape != shape or rows_RD.dtype != dtype or not ids_fit:
            raise ValueError(f"chunk {header['number']}")
        for key, kind in HEADER.items():
            if not of_type(kind, header.get(key, {})):
                raise ValueError(f"{key} of chunk {number}")
        return ActivationChunk(
            number=number,
            lane=shard.lane,
            rows_RD=rows_RD.to(self.dtype),
            ids_R=ids_R,
            start=header["start"],
            excluded=header["excluded"],
            repeated=header["repeated"],
            left_out=header.get("left_out", {}),
        )

    def _verified(self, shard: Shard) -> BinaryIO:
        """Open a shard whose sha256 matches the manifest, at its beginning."""
        from webdataset import gopen

        local = self.location.local(shard.name)
        try:
            if local is None:
                with gopen(self.location.url(shard.name)) as stream:
                    file: Any = tempfile.TemporaryFile()
                    digest = sha256_of(stream, file)
            else:
                file = open(local, "rb")
                digest = shard.sha256 if shard.name in self.checked else sha256_of(file)
        except (OSError, ValueError) as error:
            reason = first_line(error)[:200]
            message = f"shard {shard.describe()} of {self.location.path} cannot be read ({reason}); {mend()}"
            raise DataError(message) from None
        if digest != shard.sha256:
            file.close()
            raise DataError(
                f"shard {shard.describe()} of {self.location.path} is damaged: its sha256 is {digest[:16]} "
                f"and the manifest's {shard.sha256[:16]}; {mend()}"
            )
        self.checked.add(shard.name)
        file.seek(0)
        return file
