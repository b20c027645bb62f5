"""Steps of training on the fake GPU of `fake_cuda`, from the chunk in a lane to the updated weights.

As a program it prints mismatches, copies and reads of a step, for each kind and optimizer.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from sae_dist.config.kinds import KINDS, SELECTED
from sae_dist.config.resolve import resolve
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.core.types import ActivationChunk
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.launch.compose import compose_config
from sae_dist.metrics.clock import PhaseClock
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.train.balance import Balance
from sae_dist.train.build import build_run
from sae_dist.train.loop import advance
from sae_dist.train.speed import Watch
from sae_dist.train.start import begin
from sae_dist.train.state import Rank, Run
from sae_dist.train.stream import Columns, SharedStream
from sae_dist.transport.timed import Timed
from tests.helpers.fake_cuda import counting, fake_cuda
from tests.helpers.fake_device import CUDA, HOST, OnDevice

ROWS, WIDTH, LATENTS, LANES, CHUNK = 64, 16, 128, 4, 32
EVERY, STEPS = 4, 8


class Chunks:
    """Chunks without end, of rows that were made on a device or on the host."""

    def __init__(self, width: int, device: torch.device):
        self.width, self.device = width, device

    def open(self, lane, start):
        index = start["chunk"] if start else 0
        while True:
            number = index * LANES + lane
            made = torch.Generator().manual_seed(number)
            rows, ids = torch.randn(CHUNK, self.width, generator=made), torch.arange(CHUNK)
            if self.device.type == "cuda":
                rows, ids = OnDevice(rows), OnDevice(ids)
            yield ActivationChunk(number, lane, rows, ids, {"chunk": index})
            index += 1


def make_run(kind: str, optimizer: str, device: torch.device, *words: str, source=CUDA) -> Run:
    """Build one dictionary in a world of one, on a stream of rows from `source`, and begin."""
    transcoder = "target_hook=layers.1" in words
    widths = (WIDTH, WIDTH) if transcoder else (WIDTH,)
    sizes = [f"sae.num_latents={LATENTS}", "sae.k=8", f"batch={ROWS}", f"train_tokens={ROWS * 100}"]
    given = [f"sae={kind}", f"optim={optimizer}", "kernels=torch", f"device={device.type}"]
    given += ["metrics.wandb=off", f"metrics.every={EVERY}", "sae.dead_after=1", *sizes, *words]
    cfg = resolve(compose_config(given), None, WIDTH)
    place, clock = Place(0, 1, 0, 1), PhaseClock(device)
    topology = Topology(TopologyConfig(), place, "cpu", clock=clock)
    chunks, watch = Chunks(sum(widths), source if device.type == "cuda" else HOST), Watch(clock)
    shuffle = Shuffle(
        chunks, [*range(LANES)], num_lanes=LANES, rows_per_step=ROWS, steps=100, seed=0, block_chunks=2
    )
    stop = SimpleNamespace(wanted=False)
    rank = Rank(cfg, Path("unused"), None, place, topology, device, stop, Control(60.0), watch)
    columns = Columns(SharedStream(shuffle), slice(0, sum(widths)), widths)
    run = build_run(rank, cfg, rank.folder, columns, Balance(cfg, topology, Timed(chunks), None), None)
    run.meter.sinks = [SimpleNamespace(write=lambda row: run.written.append(row))]
    run.written = []
    begin(run)
    return run


@dataclass
class Found:
    """The counts of steps between two rows of metrics, and of those with a row."""

    copies: Counter[str]
    reads: Counter[str]
    flushes: Counter[str]
    steps: int = 0


def steps(run: Run, number: int = STEPS) -> Found:
    """Take steps, and count what each one waits for; the first, which has no agreement yet, is left out."""
    found = Found(Counter(), Counter(), Counter())
    for step in range(number):
        with counting() as counts:
            advance(run)
        if (step + 1) % EVERY == 0:
            found.flushes += counts.copies
        elif step:
            found.copies += counts.copies
            found.reads += counts.reads
            found.steps += 1
    return found


CASES = [
    (kind, optimizer, words)
    for kind in KINDS
    for optimizer in (("adam", "row_adam") if kind in SELECTED else ("adam",))
    for words in ((), ("target_hook=layers.1",))
]


def table() -> list[str]:
    """Return the table's lines: of each case, mismatches, and copies and reads in a step."""
    lines = [f"{'kind':12}{'optimizer':10}{'':12}{'mismatches':>11}{'copies':>8}{'reads':>7}"]
    for kind, optimizer, words in CASES:
        with fake_cuda():
            try:
                found, wrong = steps(make_run(kind, optimizer, CUDA, *words)), ""
            except RuntimeError as error:
                if "same device" not in str(error):
                    raise
                found, wrong = Found(Counter(), Counter(), Counter(), 1), str(error)
        name = "transcoder" if words else "autoencoder"
        copies, reads = (sum(each.values()) / found.steps for each in (found.copies, found.reads))
        lines.append(f"{kind:12}{optimizer:10}{name:12}{bool(wrong):11}{copies:8.2f}{reads:7.2f}  {wrong}")
        lines += [f"    {n / found.steps:.2f} {what}" for what, n in (found.copies + found.reads).items()]
    return lines


def main() -> None:
    """Print the table."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    sys.stdout.write("\n".join(table()) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
