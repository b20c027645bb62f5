"""One rank of `sae-dist bench stream`, which moves chunks, or trains, on a core of its own.

Letters: as core.types.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_dist.bench.stream.raw_wire import meet, move_raw
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import place
from sae_dist.core.types import ActivationChunk, Position, Precision
from sae_dist.distributed import runtime
from sae_dist.distributed.mesh import Topology
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.wire import Stream

JOB, OUT = "job.json", "out.json"
LANES = 8
HEADER_BYTES = 512


class SameChunk:
    """A `core.types.ChunkSource` of the same rows again and again."""

    def __init__(self, rows_RD: torch.Tensor, chunks: int):
        self.rows_RD, self.chunks, self.width = rows_RD, chunks, rows_RD.shape[1]
        self.ids_R = torch.arange(len(rows_RD))

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield as many chunks in each lane."""
        for index in range(self.chunks):
            number = index * LANES + lane
            yield ActivationChunk(number, lane, self.rows_RD, self.ids_R, {"chunk": index})


def bench_rank(folder: Path) -> None:
    """Do what the folder's job says; rank 0 may leave a result there."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    where = place()
    if job["cores"]:
        os.sched_setaffinity(0, {job["cores"][where.rank]})
    torch.set_num_threads(1)
    if job["part"] == "train":
        from sae_dist.train.rank import run_rank

        if len(job["runs"]) > 1:
            forget_the_others()
        run_rank(Path(job["runs"][where.rank if len(job["runs"]) > 1 else 0]))
        return
    device = runtime.start(where, job["device"], 600.0)
    cfg = TopologyConfig(producers=1)
    seconds = wire(Topology(cfg, where, device.type), device, job)
    if where.rank == 0:
        (folder / OUT).write_text(json.dumps(seconds), encoding="utf-8")
    runtime.finish()


def forget_the_others() -> None:
    """Make this process the only rank of a run of its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def wire(topology: Topology, device: torch.device, job: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Return rounds of [seconds by the stream, by isend and irecv], by dtype, without the first round."""
    found: dict[str, list[list[float]]] = {}
    per_lane = -(-job["chunks"] // LANES)
    for name in job["dtypes"]:
        dtype = Precision.of(name).wire
        source = SameChunk(torch.ones(job["rows"], job["width"], dtype=dtype, device=device), per_lane)
        packed = torch.zeros(8 * job["rows"] + HEADER_BYTES, dtype=torch.uint8, device=device)
        found[name] = []
        for number in range(job["rounds"] + 1):
            stream = Stream(
                topology,
                lanes=LANES,
                rows=job["rows"],
                width=job["width"],
                dtype=dtype,
                device=device,
                timeout_s=600.0,
                name=f"{name} {number}",
            )
            meet()
            ours = move_by_stream(stream, source, job["in_flight"])
            meet()
            bare = move_raw(stream, [packed, source.rows_RD.clone()], per_lane * LANES, job["in_flight"])
            if number and ours is not None and bare is not None:
                found[name].append([ours, bare])
    return found


def move_by_stream(stream: Stream, source: SameChunk, in_flight: int) -> float | None:
    """Move all chunks; return seconds from the first arrival to the last, on the producer None."""
    if not stream.topology.is_consumer:
        produce(stream, source, in_flight)
        return None
    remote = RemoteChunks(stream, lanes=list(range(LANES)), ahead=2, in_flight=in_flight)
    lanes = itertools.cycle([remote.open(lane, None) for lane in range(LANES)])
    arrived, started = 0, 0.0
    for lane in lanes:
        if next(lane, None) is None:
            break
        arrived += 1
        started = started or time.monotonic()
    if stream.device.type == "cuda":
        torch.cuda.synchronize(stream.device)
    seconds = time.monotonic() - started
    assert arrived == source.chunks * LANES, "nothing is dropped"
    remote.close()
    return seconds
