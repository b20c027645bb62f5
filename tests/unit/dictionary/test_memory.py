"""Memory of a step: no operation makes a [batch, latents] tensor (invariant I5)."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_dist.config.kinds import PENALISED, SELECTED
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import OptimConfig, SaeConfig, TopologyConfig
from sae_dist.core.place import Place
from sae_dist.dictionary import penalised as tiled
from sae_dist.distributed.mesh import Topology
from sae_dist.kernels import screen
from sae_dist.train.build import build_dictionary, build_optimizer
from tests.helpers.ranks import close_worlds, run_ranks

ROWS, WIDTH = 1024, 16
M_MMAP_THRESHOLD = -3


class LargestOutput(TorchDispatchMode):
    """Remembers the most elements that any operation put out, views of what was there before aside."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {a.untyped_storage().data_ptr() for a in tree_leaves(args) if isinstance(a, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, tensor.numel())
        return out


def prepared(kind: str, latents: int, kernels: str, rows: int, optim: str):
    """A dictionary of the kind's default settings, its optimizer, and a batch."""
    overrides: dict = {"kind": kind, "num_latents": latents, "k": 4, "encoder_scale": 0.8}
    overrides |= {"aux_k": 8, "dead_after": 0}
    settings = OmegaConf.load(Path(__file__).parents[3] / "conf" / "sae" / f"{kind}.yaml")
    cfg = RunConfig(
        batch=rows,
        train_tokens=rows,
        kernels=kernels,
        sae=SaeConfig(**(dict(settings) | overrides)),
        optim=OptimConfig(kind=optim),
    )
    topology = Topology(TopologyConfig(), Place(0, 1, 0, 1), "cpu")
    model = build_dictionary(cfg, (WIDTH,), topology, torch.device("cpu"))
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    return model, build_optimizer(cfg, model, topology), x


def largest_output(kind: str, latents: int, kernels: str = "torch", rows: int = ROWS) -> int:
    """Of forward and backward."""
    model, _, x = prepared(kind, latents, kernels, rows, "adam")
    with LargestOutput() as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "LATENT_TILE", 8192)  # of CPUs that multiply bfloat16
        # Latents fire at random, those of this step aside all are dead: AuxK chooses among nearly all.
        model.loss(x, 1, with_aux=True).total.backward()
    return seen.largest


def largest_output_of_update(optim: str, latents: int, rows: int) -> int:
    """Of backward and update."""
    model, engine, x = prepared("topk", latents, "torch", rows, optim)
    total = model.loss(x, 1, with_aux=False).total
    with LargestOutput() as seen:
        engine.step(total, 1e-3)
    return seen.largest


def tensors_after(kind: str, optim: str) -> list[int]:
    """How many tensors there are after one step, and after several more."""
    model, engine, x = prepared(kind, 64, "torch", 32, optim)
    found = []
    for steps in (1, 5):
        for _ in range(steps):
            engine.step(model.loss(x, 1, with_aux=True).total, 1e-3)
        gc.collect()
        found.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    return found


@pytest.mark.parametrize(
    ("kind", "optim"),
    [(kind, "row_adam") for kind in SELECTED] + [(kind, "adam") for kind in (*SELECTED, *PENALISED)],
)
def test_a_step_leaves_nothing_behind(kind, optim):
    """What a step's graph holds goes with it: a tensor that kept its own graph alive would stay for good."""
    before, after = run_ranks(tensors_after, 1, kind, optim)[0]
    assert after == before


@pytest.mark.parametrize("kind", SELECTED)
def test_no_output_is_near_batch_times_latents(kind):
    for latents in (65536, 131072) if kind == "topk" else (65536,):
        assert run_ranks(largest_output, 1, kind, latents)[0] < ROWS * latents / 16


def largest_output_in_tiles(kind: str, latents: int, tile: int) -> int:
    """`largest_output`, with tiles of so many elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE_ELEMENTS", tile)
        return largest_output(kind, latents)


@pytest.mark.parametrize("kind", PENALISED)
def test_kinds_without_selection_hold_one_tile(kind):
    """Outputs are as large as a tile, a reconstruction or a weight, whatever the number of latents."""
    latents, tile = 16384, 1 << 18
    allowed = max(tile, 2 * ROWS * WIDTH, latents * WIDTH)
    assert run_ranks(largest_output_in_tiles, 1, kind, latents, tile)[0] <= allowed < ROWS * latents / 16


def test_row_adam_makes_no_dense_gradient():
    rows, latents = 64, 131072
    dense, lazy = (
        run_ranks(largest_output_of_update, 1, optim, latents, rows)[0] for optim in ("adam", "row_adam")
    )
    assert dense >= latents * WIDTH
    assert lazy <= latents, "nothing larger than one number per latent"


def test_the_test_sees_a_dense_step():
    rows, latents = 512, 8192
    assert run_ranks(largest_output, 1, "topk", latents, "reference", rows)[0] >= rows * latents


def peak_bytes(kind: str, rows: int, latents: int, tile: int) -> int:
    """Growth of this fresh process's peak resident memory over one step, with tiles of so many elements."""
    import ctypes
    import resource

    if sys.platform == "linux":
        # Blocks from 1 MB on go back to the system when they are freed, so that the peak is of what is held.
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)

    def step(number: int) -> None:
        model, _, x = prepared(kind, number, "torch", rows, "adam")
        model.loss(x, 1, with_aux=True).total.backward()

    tiled.TILE_ELEMENTS = tile
    step(256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step(latents)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return after - before


def test_peak_memory_grows_with_weights_only():
    rows, latents = 2048, 4 * 65536
    close_worlds()
    wide = run_ranks(peak_bytes, 1, "topk", rows, latents, tiled.TILE_ELEMENTS)[0]
    close_worlds()
    # Weights, gradients, the draw of the initial rows in fp64 and its norm: a few copies of [F, D].
    assert wide < latents * WIDTH * 4 * 12 + 2**28
    assert wide < rows * latents * 4 / 4, "a quarter of one dense [batch, latents] tensor"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "relu" else pytest.mark.long) for kind in PENALISED]
)
def test_peak_memory_of_kinds_without_selection(kind):
    rows, latents = 2048, 32768
    # In a world of its own: the peak of a process never falls.
    close_worlds()
    wide = run_ranks(peak_bytes, 1, kind, rows, latents, 1 << 20)[0]
    close_worlds()
    assert wide < rows * latents * 4 / 4, "a quarter of one dense [batch, latents] tensor"
