"""Between two rows of metrics a step reads nothing on the host but what some selections must know (I7)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from sae_dist.config.kinds import SELECTED
from sae_dist.config.resolve import resolve
from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.launch.compose import compose_config
from sae_dist.metrics.clock import PhaseClock
from sae_dist.shuffle.lanes import Counts
from sae_dist.train.balance import Balance
from sae_dist.train.build import build_run
from sae_dist.train.loop import advance
from sae_dist.train.speed import Watch
from sae_dist.train.state import Rank
from sae_dist.transport.timed import Timed
from tests.helpers.ranks import run_ranks

ROWS, WIDTH, LATENTS, EVERY, STEPS = 64, 16, 128, 4, 8
# BatchTopK: whether a row lacks candidates, how many pairs won; Matryoshka: of each level, too. Among shards,
# how many winners are a shard's own differs from step to step.
SELECTION = {
    "batchtopk": ["_local_scalar_dense", "nonzero"],
    "matryoshka": ["_local_scalar_dense", "nonzero", "tolist"],
}
SHARDED = {"topk": ["nonzero"]}
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")


class HostReads(TorchDispatchMode):
    """Counts operations whose result, or whose result's shape, the host must know: each waits for a GPU.

    `tolist` of a tensor on the host is no operation, and is counted where it is called.
    """

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.plain = torch.Tensor.tolist

    def __enter__(self):
        def counted(tensor):
            self.found.append("tolist")
            return self.plain(tensor)

        torch.Tensor.tolist = counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.plain
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in READS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Rows:
    """A stream without end."""

    width, widths = WIDTH, (WIDTH,)

    def draw(self, step):
        made = torch.Generator().manual_seed(step)
        return torch.randn(ROWS, WIDTH, generator=made), torch.arange(ROWS)

    def counts(self):
        return Counts()


def reads_by_step(kind: str, shard: int = 1) -> list[list[str]]:
    sizes = [f"sae.num_latents={LATENTS}", f"batch={ROWS}", f"train_tokens={ROWS * 100}"]
    words = [f"sae={kind}", "kernels=reference", "device=cpu", "metrics.wandb=off", f"metrics.every={EVERY}"]
    cfg = resolve(compose_config(words + sizes), None, WIDTH)
    device, clock = torch.device("cpu"), PhaseClock(torch.device("cpu"))
    number = dist.get_rank()
    place = Place(number, shard, number, shard)
    topology = Topology(TopologyConfig(shard=shard), place, "cpu", clock=clock)
    rows, watch = Rows(), Watch(clock, gemm_flops=1e9)
    stop = SimpleNamespace(wanted=False)
    balance = Balance(cfg, topology, Timed(rows), None)
    rank = Rank(cfg, Path("unused"), None, place, topology, device, stop, Control(60.0), watch)
    run = build_run(rank, cfg, rank.folder, rows, balance, None)
    written = []
    run.meter.sinks = [SimpleNamespace(write=written.append)]
    run.dictionary.start_from(rows.draw(0)[0])
    found = []
    for _ in range(STEPS):
        with HostReads() as reads:
            advance(run)
        found.append(reads.found)
    assert [row["step"] for row in written] == [EVERY, 2 * EVERY]
    assert all(("perf/redone_rows" in row) == (kind in SELECTED) for row in written)
    assert all(row["perf/encode_ms"] > 0 and row["perf/record_ms"] > 0 for row in written)
    return found


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated", "batchtopk", "matryoshka"])
def test_a_step_between_two_rows_reads_nothing_but_what_its_selection_must_know(kind):
    """But for the agreement of the step before, which was copied while that step went on."""
    (found,) = run_ranks(reads_by_step, 1, kind)
    assert found == expected(SELECTION.get(kind, []))


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_shards_read_no_more(kind):
    for found in run_ranks(reads_by_step, 2, kind, 2):
        assert found == expected(SHARDED.get(kind, []))


def expected(selection: list[str]) -> list[list[str]]:
    """Of each step: its selection's; from the second on, what was agreed; at a row, one copy."""
    rows = [EVERY - 1, 2 * EVERY - 1]
    return [selection + ["tolist"] * (step > 0) + ["tolist"] * (step in rows) for step in range(STEPS)]


def test_a_read_shows():
    with HostReads() as reads:
        float(torch.ones(()))
        torch.ones(3)[torch.tensor([True, False, True])]
    assert reads.found[:2] == ["_local_scalar_dense", "index"]
