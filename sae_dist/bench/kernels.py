"""The benchmark of the kernels: each beside the least time that its bytes and operations could take.

A kernel's floor is the larger of two times: the fewest bytes that it must move through memory at the rate of
a large copy, and its operations at the rate of a large product, both measured first. Inputs are random.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from sae_dist.bench.peers.step_io import seconds_of
from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.bench.step.plan import Shape
from sae_dist.config.triton import triton_problem
from sae_dist.core.text import columns
from sae_dist.kernels.choose import choose_kernels, choose_row_update
from sae_dist.kernels.row_update import AdamStep, PairTerm, RowState
from sae_dist.metrics.stolen import Stolen

REPEATS, WARMUP = 7, 2
NUMBER, PAIR = 4, 12
"""Bytes of a float32; of a latent and its coefficient."""
HEAD = ("kernel", "ms", "floor ms", "times the floor", "GB", "GFLOP")


@dataclass(frozen=True)
class Case:
    """One kernel, the fewest bytes it must move, its operations."""

    name: str
    act: Callable[[], object]
    moved: float
    operations: float


def run_kernels(folder: Path, shape: Shape, *, backend: str, device: str) -> str:
    """Time every kernel; write kernels.csv and return the table.

    Raises:
        ConfigError: the backend is not available here.
    """
    if backend == "auto":
        backend = "triton" if device == "cuda" and triton_problem() is None else "torch"
    make_bench_folder(folder)
    stolen = Stolen()
    where = torch.device(device)
    copied, multiplied = copy_rate(where), product_rate(where)
    rows: list[tuple[str, ...]] = [HEAD]
    with torch.no_grad():
        for case in cases(shape, backend, where):
            took = timed(case.act, where)
            floor = max(case.moved / copied, case.operations / multiplied)
            numbers = (1e3 * took, 1e3 * floor, took / floor, case.moved / 1e9, case.operations / 1e9)
            rows.append((case.name, *(f"{number:.3f}" for number in numbers)))
    with open(folder / "kernels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    table = "\n".join(columns(rows, left=0))
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    B, D, F, k = shape.batch, shape.width, shape.latents, shape.k
    title = f"{backend} kernels, B = {B}, D = {D}, F = {F}, k = {k}, {device} ({name})"
    rates = f"copy {copied / 1e9:.0f} GB/s, product {multiplied / 1e12:.2f} TFLOP/s{stolen.remark()}"
    return f"{title}\n{rates}\n{table}\n{folder / 'kernels.csv'}"


def cases(shape: Shape, backend: str, device: torch.device) -> Iterator[Case]:
    """Yield every kernel with random inputs; latents of the sparse ones are those that encode_topk chose."""
    B, D, F, k = shape.batch, shape.width, shape.latents, shape.k
    kernels, draw = choose_kernels(backend), torch.Generator(device).manual_seed(0)
    x, grad, W = (torch.randn(rows, D, generator=draw, device=device) for rows in (B, B, F))
    b, dead = torch.zeros(F, device=device), torch.rand(F, generator=draw, device=device) < 0.1
    latent = kernels.encode_topk(x, W, b, k)[1].flatten()
    value = torch.randn(B * k, generator=draw, device=device)
    first = torch.arange(0, B * k, k, device=device)
    touched, pairs = len(latent.unique()), B * k
    scores, sparse, row = 2.0 * B * D * F, 2.0 * pairs * D, float(NUMBER * D)
    encoded = (B + F) * row + PAIR * pairs
    yield Case("encode_topk", partial(kernels.encode_topk, x, W, b, k), encoded, scores)
    act = partial(kernels.encode_topk_dead, x, W, b, k, dead, k)
    yield Case("encode_topk_dead", act, encoded + PAIR * pairs, scores)
    gathered = (touched + B) * row + PAIR * pairs
    yield Case("decode", partial(kernels.decode, latent, value, first, W), gathered, sparse)
    act = partial(kernels.latent_gradient, latent, first, grad, W)
    yield Case("latent_gradient", act, gathered, sparse)
    act = partial(kernels.weight_gradient, latent, value, first, x, F)
    yield Case("weight_gradient", act, (B + F) * row + PAIR * pairs, sparse)
    act = partial(kernels.bias_gradient, latent, value, F)
    yield Case("bias_gradient", act, PAIR * pairs + NUMBER * F, pairs)
    rows = torch.arange(B, device=device).repeat_interleave(k)
    given = [PairTerm(latent, value, rows, x)], [PairTerm(latent, value, rows, grad)]
    # Of both weights: their rows and two moments, read and written; every row of x and of the gradient.
    state = random_state(W)
    yield Case(
        "row update",
        partial(update, backend, given, state),
        2 * (6 * touched + B) * row + 2 * PAIR * pairs,
        2 * sparse,
    )


def random_state(W_FD: Tensor) -> RowState:
    """Return rows and moments of both weights, with momentum."""
    weights = {"W_enc": W_FD, "b_enc": W_FD.new_zeros(len(W_FD)), "W_dec": W_FD.clone()}
    moments = [{name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2)]
    touched = torch.zeros(len(W_FD), dtype=torch.int64, device=W_FD.device)
    return RowState(weights, moments[0], moments[1], touched, ("W_dec",))


def update(backend: str, given: tuple[list[PairTerm], list[PairTerm]], state: RowState) -> None:
    """Make one update without clipping, the sort of the pairs included."""
    step = AdamStep({"W_enc": 1e-4, "b_enc": 1e-4, "W_dec": 1e-4}, 0.9, 0.999, 1e-12, 1)
    choose_row_update(backend)(*given, state).move(step, state.weights["b_enc"].new_zeros(()), None)


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of a few calls, after some that compile and fill caches."""
    return median([seconds_of(act, device) for _ in range(WARMUP + REPEATS)][WARMUP:])


def copy_rate(device: torch.device) -> float:
    """Measure the bytes per second that a large copy reads and writes."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * NUMBER * source.numel() / timed(partial(target.copy_, source), device)


def product_rate(device: torch.device) -> float:
    """Measure the operations per second of a large product: in bfloat16 on a GPU, as scores are there."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / timed(partial(torch.mm, a, b), device)
