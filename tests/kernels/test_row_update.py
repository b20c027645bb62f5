"""The fused gradient and update of touched rows against the tiled one in torch operations."""

import copy
from dataclasses import replace

import pytest
import torch

from sae_dist.kernels.row_update import AdamStep, PairTerm, RowState, TiledUpdate
from tests.kernels.backends import DEVICE, draw, needs_triton

LATENTS, ROWS = 11, 6
STEP = AdamStep({"W_enc": 0.02, "b_enc": 0.05, "W_dec": 0.03}, beta1=0.9, beta2=0.99, eps=1e-12, number=7)
pytestmark = needs_triton()


def state(D: int, E: int, dtype: torch.dtype, momentum: bool) -> RowState:
    """Rows in the middle of a run; the decoder's have unit norm."""
    shapes = {"W_enc": (LATENTS, D), "b_enc": (LATENTS,), "W_dec": (LATENTS, E)}
    weights = {name: draw(i, *shape, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    moment1 = {n: draw(5, *s, dtype=dtype) for n, s in shapes.items()} if momentum else {}
    moment2 = {n: draw(6, *s, dtype=dtype).square() for n, s in shapes.items()}
    touched = torch.arange(LATENTS, device=DEVICE) % 7
    return RowState(weights, moment1, moment2, touched, ("W_dec",))


def term(seed: int, pairs: int, width: int, dtype: torch.dtype, rows: torch.Tensor | None = None) -> PairTerm:
    """Pairs in the order of rows; latents 0 and 10 are in none, latent 4 in most."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randint(1, LATENTS - 1, (pairs,), generator=generator)
    latent[torch.rand(pairs, generator=generator) < 0.6] = 4
    row = torch.randint(0, ROWS, (pairs,), generator=generator).sort().values
    rows = draw(seed + 1, ROWS, width, dtype=dtype) if rows is None else rows
    return PairTerm(latent.to(DEVICE), draw(seed + 2, pairs, dtype=dtype), row.to(DEVICE), rows)


def terms(D: int, E: int, dtype: torch.dtype, pairs: int = 40) -> tuple[list[PairTerm], list[PairTerm]]:
    """Two terms each, as with AuxK; those of the encoder share their rows."""
    first = term(10, pairs, D, dtype)
    encoder = [first, term(20, 9, D, dtype, rows=first.rows_BD)]
    return encoder, [term(30, pairs, E, dtype), term(40, 9, E, dtype)]


def tensors(rows: RowState) -> dict[str, torch.Tensor]:
    """Everything that an update may change, by name."""
    groups = {"weight": rows.weights, "moment1": rows.moment1, "moment2": rows.moment2}
    found = {f"{group} {name}": t for group, each in groups.items() for name, t in each.items()}
    return found | {"touched": rows.touched_F}


def moved(kernel, given, start: RowState, step: AdamStep, bad: float = 0.0, scale: float | None = None):
    """The state after one update, the squares of its two passes, on a copy."""
    after = copy.deepcopy(start)
    update = kernel(*given, after)
    dtype = start.weights["W_enc"].dtype
    squares = update.squares()
    scaled = None if scale is None else torch.tensor(scale, dtype=dtype, device=DEVICE)
    again = update.move(step, torch.tensor(bad, dtype=dtype, device=DEVICE), scaled)
    return tensors(after) | {"squares": squares, "squares of the move": again}


def fused():
    from sae_dist.kernels.triton_update import FusedUpdate

    return FusedUpdate


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(
    ("D", "E", "dtype", "scale"),
    [(5, 5, torch.float64, None), (33, 12, torch.float64, 0.3), (20, 20, torch.float32, 0.5)],
)
def test_equals_the_tiled_update(D, E, dtype, scale, momentum):
    step = STEP if momentum else replace(STEP, beta1=0.0)
    given, start = terms(D, E, dtype), state(D, E, dtype, momentum)
    got = moved(fused(), given, start, step, scale=scale)
    want = moved(TiledUpdate, given, start, step, scale=scale)
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}[dtype]
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=name)
    assert not torch.equal(got["weight W_enc"], start.weights["W_enc"])


def test_untouched_rows_and_bad_steps_stay():
    start = state(9, 9, torch.float32, True)
    given = terms(9, 9, torch.float32)
    fine, bad = (moved(fused(), given, start, STEP, bad=flag) for flag in (0.0, 1.0))
    for name, value in tensors(start).items():
        assert torch.equal(bad[name], value), name
        assert torch.equal(fine[name][[0, 10]], value[[0, 10]]), name
        assert not torch.equal(fine[name][4], value[4]), name


def test_a_frequent_latent_is_shared_out_and_two_runs_are_equal(small_windows):
    """Latent 4 has several whole windows of pairs in each weight."""
    given, start = terms(7, 7, torch.float32, pairs=150), state(7, 7, torch.float32, True)
    first, second = (moved(fused(), given, start, STEP) for _ in range(2))
    want = moved(TiledUpdate, given, start, STEP)
    for name, value in want.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_no_pairs_move_nothing():
    start = state(4, 4, torch.float32, True)
    after = moved(fused(), ([term(1, 0, 4, torch.float32)], [term(2, 0, 4, torch.float32)]), start, STEP)
    assert after["squares"] == 0
    for name, value in tensors(start).items():
        assert torch.equal(after[name], value), name


def test_rows_too_wide_for_registers_are_refused():
    from sae_dist.core.errors import ConfigError

    wide = state(4, 20000, torch.float32, False)
    with pytest.raises(ConfigError, match="up to 16384, not 20000; use kernels=torch"):
        fused()([], [], wide)
