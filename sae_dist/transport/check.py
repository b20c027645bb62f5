"""Checks the stream between two processes, and compares its speed with bare sends of the same bytes.

    sae-dist check --device cuda                                              two GPUs of this machine, NCCL
    torchrun --nproc-per-node 2 -m sae_dist.transport.check --device cuda     the same; or --device cpu, gloo

Rank 1 produces and rank 0 consumes: order and contents of every chunk are compared with what was sent.
Over NCCL this has not been run yet.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.errors import ConfigError, SaeDistError, TransportError
from sae_dist.core.place import place
from sae_dist.core.text import print_line, show
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.distributed import runtime
from sae_dist.distributed.mesh import Topology
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.wire import Stream

LANES, IN_FLIGHT, WARM_UP, PATTERNS = 4, 2, 8, 7
LARGEST = 251


class Patterns:
    """A source of chunks that cost nothing to compute: small integers, exact in bfloat16.

    rows_RD of chunk c are (row + column + c mod 7) mod 251, on the device.
    """

    def __init__(self, stream: Stream, chunks: int):
        self.width, self.rows, self.chunks = stream.width, stream.rows, chunks
        sums = torch.arange(stream.rows)[:, None] + torch.arange(stream.width)
        shifted = [(sums + shift) % LARGEST for shift in range(PATTERNS)]
        self.patterns = [each.to(stream.device, stream.dtype) for each in shifted]

    def chunk(self, number: int) -> ActivationChunk:
        """Return chunk `number`, as it is sent and as it has to arrive."""
        ids = torch.arange(number * self.rows, (number + 1) * self.rows)
        start = {"chunk": number // LANES}
        return ActivationChunk(number, number % LANES, self.patterns[number % PATTERNS], ids, start)

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`."""
        for number in range(lane, self.chunks, LANES):
            yield self.chunk(number)


def consume(stream: Stream, expected: Patterns) -> float:
    """Receive all chunks; return the seconds for those after the first WARM_UP.

    Raises:
        TransportError: a chunk differs from the one that was sent.
    """
    remote = RemoteChunks(stream, lanes=list(range(LANES)), ahead=2, in_flight=IN_FLIGHT)
    lanes = [remote.open(lane, None) for lane in range(LANES)]
    began = 0.0
    for number in range(expected.chunks):
        if number == WARM_UP:
            began = time.perf_counter()
        found, sent = next(lanes[number % LANES]), expected.chunk(number)
        same = torch.equal(found.rows_RD, sent.rows_RD) and torch.equal(found.ids_R, sent.ids_R)
        if not same or found.number != number or found.start != sent.start:
            raise TransportError(f"chunk {number} arrived as chunk {found.number}, or with other contents")
    seconds = time.perf_counter() - began
    remote.close()
    return seconds


def move(stream: Stream, expected: Patterns, peer: int) -> float:
    """Move the same bytes by isend and irecv alone; return the seconds for those after the first WARM_UP."""
    group = stream.topology.stream_groups[0, 0]
    chunk = expected.chunk(0)
    ids = chunk.ids_R.to(stream.device)
    under_way: deque[list[dist.Work | None]] = deque()
    began = 0.0
    for number in range(expected.chunks):
        if number == WARM_UP:
            began = time.perf_counter()
        if stream.topology.is_consumer:
            tensors = [torch.empty_like(ids), torch.empty_like(chunk.rows_RD)]
            under_way.append([dist.irecv(each, peer, group=group) for each in tensors])
        else:
            under_way.append([dist.isend(each, peer, group=group) for each in (ids, chunk.rows_RD)])
        while len(under_way) > (IN_FLIGHT if number < expected.chunks - 1 else 0):
            for work in under_way.popleft():
                assert work is not None, "both ranks are in the group"
                work.wait()
            if stream.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
    return time.perf_counter() - began


def check(options: argparse.Namespace) -> None:
    """Run both measurements on this rank, the stream first; rank 0 prints the result.

    Raises:
        ConfigError: there are not exactly two processes.
        TransportError: the stream is broken.
    """
    where = place()
    if where.world != 2:
        raise ConfigError(f"{where.world} processes: start two, with torchrun --nproc-per-node 2")
    device = runtime.start(where, options.device, options.timeout_s)
    topology = Topology(TopologyConfig(producers=1, timeout_s=options.timeout_s), where, device.type)
    topology.meet(device)
    stream = Stream(
        topology,
        lanes=LANES,
        rows=options.rows,
        width=options.width,
        dtype=getattr(torch, options.dtype),
        device=device,
        timeout_s=options.timeout_s,
    )
    patterns = Patterns(stream, options.chunks)
    if topology.is_consumer:
        seconds, alone = consume(stream, patterns), move(stream, patterns, 1)
        ids, rows = patterns.chunk(0).ids_R, patterns.chunk(0).rows_RD
        megabytes = (options.chunks - WARM_UP) * (ids.nbytes + rows.nbytes) / 1e6
        over = "NCCL" if device.type == "cuda" else "gloo"
        show(
            f"{options.chunks} chunks of {rows.nbytes / 1e6:.2f} MB over {over}: all in order and equal; "
            f"{megabytes / seconds:.0f} MB/s, isend and irecv alone {megabytes / alone:.0f} MB/s"
        )
    else:
        produce(stream, patterns, IN_FLIGHT)
        move(stream, patterns, 0)
    runtime.finish()


def options_of(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Read the options of the check; None: those of this process."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--chunks", type=int, default=400, help="at least 16")
    parser.add_argument("--rows", type=int, default=1024, help="activations of a chunk")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--timeout-s", type=float, default=60.0)
    options = parser.parse_args(arguments)
    if options.chunks < 2 * WARM_UP:
        parser.error(f"--chunks {options.chunks} is too few; give {2 * WARM_UP} or more")
    for name in ("rows", "width"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} must be greater than 0")
    return options


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sae_dist.transport.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = options_of(parser, None)
    try:
        check(options)
    except SaeDistError as error:
        print_line(f"sae_dist.transport.check: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
