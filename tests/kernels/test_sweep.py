"""Triton's encoder and TopK in one sweep: exact, ties included, and redone where it cannot be sure."""

import pytest
import torch

from sae_dist.kernels import reference
from tests.kernels.backends import DEVICE, backend, draw, needs_triton
from tests.unit.dictionary.test_memory import LargestOutput
from tests.unit.dictionary.test_syncs import HostReads

pytestmark = needs_triton()
LATENTS, WIDTH = 8200, 19


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """The interpreter's time goes by blocks: one test takes those of a GPU."""
    from sae_dist.kernels import triton_plan

    monkeypatch.setattr(triton_plan, "SCREEN_BLOCK", 2048)
    monkeypatch.setattr(triton_plan, "FUSED_TILE", (16, 2048, 32))


@pytest.fixture(params=["chunks", "fused"])
def way(request, monkeypatch):
    """Scores in memory, or a product that filters its own."""
    from sae_dist.kernels import triton_select

    monkeypatch.setattr(triton_select, "FUSED", request.param == "fused")


@pytest.fixture
def redone(way, monkeypatch):
    """How many rows each call of the slow way was given, by either way of the sweep."""
    from sae_dist.kernels import triton_select

    found: list[int] = []
    in_full = triton_select._in_full

    def counted(x_BD, *others):
        found.append(len(x_BD))
        return in_full(x_BD, *others)

    monkeypatch.setattr(triton_select, "_in_full", counted)
    return found


def problem(rows: int, dtype: torch.dtype = torch.float32, latents: int = LATENTS) -> list[torch.Tensor]:
    """Rows, weights, biases."""
    return [
        draw(0, rows, WIDTH, dtype=dtype),
        draw(1, latents, WIDTH, dtype=dtype),
        draw(2, latents, dtype=dtype),
    ]


def check(got, want) -> None:
    """Same latents in the same order; scores to rounding."""
    (val, idx), (val_ref, idx_ref) = got, want
    assert torch.equal(idx, idx_ref)
    torch.testing.assert_close(val.double(), val_ref.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k", "rows", "block"), [(1, 6, 2048), (8, 2, 128)])
def test_exact_without_redo(k, rows, block, redone, monkeypatch):
    """Also by the blocks of a GPU; the last chunk of latents has fewer than the filter's loads take."""
    from sae_dist.kernels import triton_plan

    monkeypatch.setattr(triton_plan, "SCREEN_BLOCK", block)
    x, W, b = problem(rows)
    # All scores are below zero, as those are not that fill the last chunk.
    b = b - 50
    check(
        backend("triton").encode_topk(x, W, b, k),
        reference.encode_topk(x.double(), W.double(), b.double(), k),
    )
    assert redone == []


def test_of_bfloat16(redone):
    x, W, b = problem(3, torch.bfloat16)
    check(
        backend("triton").encode_topk(x, W, b, 5),
        reference.encode_topk(x.double(), W.double(), b.double(), 5),
    )
    assert redone == []


@pytest.mark.parametrize(("share", "found"), [(0.4, 7), (0.0005, 4), (0.0, 0)])
def test_dead_latents_in_the_same_sweep(share, found, redone):
    x, W, b = problem(3)
    dead = (
        draw(4, LATENTS).abs() < draw(4, LATENTS).abs().quantile(share) if share else torch.zeros(LATENTS) > 1
    )
    dead = dead.to(DEVICE)
    got = backend("triton").encode_topk_dead(x, W, b, 6, dead, 7)
    want = reference.encode_topk_dead(x, W, b, 6, dead, 7)
    for each, expected in zip(got, want, strict=True):
        check(each, expected)
    assert int(torch.isfinite(got[1][0][0]).sum()) == min(7, int(dead.sum())) >= min(found, 1)
    assert redone == []


def test_ties_go_to_the_lower_latent(redone):
    """Every weight stands at two places, one of them in the sample for floors."""
    x, W, b = problem(4)
    W[1::2], b[1::2] = W[::2], b[::2]
    got = backend("triton").encode_topk(x, W, b, 6)
    check(got, reference.encode_topk(x, W, b, 6))
    assert (got[1][:, ::2] + 1 == got[1][:, 1::2]).all() and (got[1][:, ::2] % 2 == 0).all()
    assert redone == []


def test_scores_all_equal_are_redone(redone):
    """No floor divides them: every latent is a candidate, and there is no room."""
    x, W, b = problem(2)
    val, idx = backend("triton").encode_topk(x, W * 0, b * 0 - 0.0, 5)
    assert idx.tolist() == [[0, 1, 2, 3, 4]] * 2 and (val == 0).all()
    assert redone == [2]


def test_a_sample_that_misleads_is_found_out(redone):
    """A few sampled latents far above all others set a floor that too few pass, in one row."""
    from sae_dist.kernels.triton_select import STRIDE, Room

    k, rank = 12, Room.of(12).rank
    assert rank < k
    x, W, b = problem(3)
    W[: rank * STRIDE : STRIDE] = 0
    W[: rank * STRIDE : STRIDE, 0] = 100.0
    x[:, 0] = torch.tensor([0.0, 1.0, 0.0])
    check(backend("triton").encode_topk(x, W, b, k), reference.encode_topk(x, W, b, k))
    assert redone == [1]


def test_a_screen_too_coarse_gets_a_second_chance(redone):
    """Latents that bfloat16 cannot tell apart: more than get exact scores at first, but all kept."""
    x, W, b = problem(3)
    W[1000:1400] = W[1000] * 10 + 1e-4 * W[1000:1400]
    x[0] = W[1000]
    again = torch.ones((), dtype=torch.int64, device=DEVICE)
    check(backend("triton").encode_topk(x, W, b, 4, again), reference.encode_topk(x, W, b, 4))
    assert redone == [] and int(again) == 1 + 1


def test_rows_scored_again_are_counted(redone):
    """Where the second chance is none, and in both selections of a sweep."""
    x, W, b = problem(2)
    again = torch.zeros((), dtype=torch.int64, device=DEVICE)
    dead = torch.arange(LATENTS, device=DEVICE) % 2 == 0
    got = backend("triton").encode_topk_dead(x, W * 0, b * 0, 5, dead, 4, again)
    assert redone == [2, 2] and int(again) == 4
    assert got[0][1].tolist() == [[0, 1, 2, 3, 4]] * 2 and got[1][1].tolist() == [[0, 2, 4, 6]] * 2


@pytest.mark.parametrize("number", [0, 3, 40])
def test_a_selection_in_full_is_the_definition(number, monkeypatch):
    """By products of 4 rows and 64 latents at most; nothing is read on the host; ties and NaN included."""
    from sae_dist.kernels import keys

    monkeypatch.setattr(keys, "FULL_ROWS", 4)
    monkeypatch.setattr(keys, "FULL_SCORES", 256)
    x, W, b = draw(0, 9, 5, levels=1), draw(1, 301, 5, levels=1), draw(2, 301, levels=1)
    x, W, b = x.float(), W.float(), b.float()
    mask = torch.zeros(301, dtype=torch.bool, device=DEVICE)
    mask[5 : 5 + 7 * number : 7] = True
    with LargestOutput() as seen, HostReads() as reads:
        every = keys.select_in_full(x, W, b, 8, None)
        some = keys.select_in_full(x, W, b, 8, mask)
    assert reads.found == [] and seen.largest <= 301 * 5
    live, dead = reference.encode_topk_dead(x, W, b, 8, mask, 8)
    for got, want in ((every, live), (some, dead)):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    x[2, 0] = torch.nan
    assert keys.select_in_full(x, W, b, 3, None)[0].isnan().sum(1).tolist() == [0, 0, 3] + [0] * 6


@pytest.mark.parametrize("latents", [8200, 50_000, 2**20 + 8])
@pytest.mark.parametrize("rows", [1, 64, 4096, 8192])
def test_chunks_are_aligned_and_as_large_as_the_cache_allows(rows, latents):
    """Scores of 4 bytes in rows of a multiple of 1 KiB; a small product is not divided for its own sake."""
    from sae_dist.kernels.triton_select import SCORES, chunk_of

    chunk = chunk_of(rows, latents)
    assert chunk % 256 == 0 and rows * chunk <= SCORES
    assert chunk >= min(latents, SCORES // rows, 16384)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["row", "weight"])
def test_what_is_not_finite_shows(way, value, where):
    """As in the definition, where the update is not made: NaN before all else."""
    x, W, b = problem(2)
    (x if where == "row" else W)[1, 3] = value
    val, idx = backend("triton").encode_topk(x, W, b, 3)
    val_ref, idx_ref = reference.encode_topk(x, W, b, 3)
    fine = torch.isfinite(val)
    assert torch.equal(idx[fine], idx_ref[fine])
    assert torch.equal(torch.isfinite(val), torch.isfinite(val_ref)) and not torch.isfinite(val).all()


def test_rows_in_blocks_and_no_rows(way, monkeypatch):
    """Blocks of 4 rows of candidates, products of 2 rows; and a batch of none."""
    from sae_dist.kernels import triton_select

    monkeypatch.setattr(triton_select, "KEYS", 4 * triton_select.Room.of(1).capacity)
    monkeypatch.setattr(triton_select, "ROWS", 2)
    monkeypatch.setattr(triton_select, "FUSED_CHUNK", 1000)
    x, W, b = problem(7)
    check(backend("triton").encode_topk(x, W, b, 1), reference.encode_topk(x, W, b, 1))
    assert backend("triton").encode_topk(x[:0], W, b, 2)[1].shape == (0, 2)


def test_no_output_is_near_rows_times_latents(monkeypatch):
    """What every operation puts out, the programs' own buffers included, stays below a sixteenth of B * F."""
    from sae_dist.kernels import triton_select

    rows, latents = 6, 65536
    monkeypatch.setattr(triton_select, "SCORES", rows * latents // 16)
    shapes = ((rows, 3), (latents, 3), (latents,))
    x, W, b = (draw(seed, *shape, dtype=torch.float32) for seed, shape in enumerate(shapes))
    with LargestOutput() as seen:
        backend("triton").encode_topk(x, W, b, 4)
    assert 0 < seen.largest <= rows * latents // 16


@pytest.mark.parametrize("k", [1, 7, 64, 512, 2048])
def test_room_for_candidates_fits_the_chances(k):
    """Latents in random order: hardly ever too few candidates, hardly ever too many (Monte Carlo)."""
    from sae_dist.kernels.triton_select import STRIDE, UNLIKELY, Room, tail

    room = Room.of(k)
    assert tail(room.exact, room.rank) <= UNLIKELY and tail(room.capacity, room.rank) >= 1 - UNLIKELY
    assert room.exact >= k + 16 and room.capacity >= room.rank * STRIDE
    trials = torch.distributions.Binomial(room.exact, torch.tensor(1 / STRIDE)).sample((20000,))
    assert float((trials >= room.rank).double().mean()) < 1e-3


def test_hardly_any_row_of_even_scores_lacks_its_certificate():
    """The best of 2^20 Gaussian scores by exact order statistics, the screen's error as of 2304 products."""
    from sae_dist.kernels.triton_select import TRUST, Room

    latents, k, error = 2**20, 64, 0.0023
    exact, made = Room.of(k).exact, torch.Generator().manual_seed(0)
    rank = torch.empty(20_000, exact + 40, dtype=torch.float64).exponential_(generator=made).cumsum(1)
    score = -torch.special.ndtri(rank / latents)
    noise = torch.randn(score.shape, dtype=torch.float64, generator=made)
    screened, place = (score + error * noise).topk(exact, dim=1)
    found = score.gather(1, place)
    margin = TRUST * (found - screened).abs().amax(1)
    last = found.sort(dim=1, descending=True).values[:, k - 1]
    assert int((last < screened[:, -1] + margin).sum()) == 0
