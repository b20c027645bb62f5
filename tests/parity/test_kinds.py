"""Every kind of dictionary: sharded equals unsharded, and both equal autograd of the dense formula."""

import functools

import pytest
import torch

from sae_dist.dictionary.penalised import TiledDictionary
from tests.helpers.ranks import run_ranks
from tests.parity import dense
from tests.parity.cases import CLIP, KINDS, LATENTS, ROWS, SPARSE, STEPS, WIDTH, batch, build, plant, train

MESHES = [(1, 2), (2, 1), (1, 4), (2, 2), pytest.param(2, 4, marks=pytest.mark.long)]
CASES = (
    [(kind, "adam", False) for kind in KINDS]
    + [(kind, "row_adam", False) for kind in SPARSE]
    + [("topk", "row_adam, no clip, beta1 0", False)]
    + [(kind, "adam", True) for kind in ("topk", "batchtopk", "relu", "jumprelu", "gated")]
    + [("matryoshka", "row_adam", True)]
)


@functools.cache
def alone(kind: str, optim: str, transcoder: bool) -> dict:
    return run_ranks(train, 1, kind, optim, 1, 1, transcoder)[0]


@pytest.mark.parametrize("dp,shard", MESHES)
@pytest.mark.parametrize("kind,optim,transcoder", CASES)
def test_sharded_equals_unsharded(kind, optim, transcoder, dp, shard):
    want = alone(kind, optim, transcoder)
    for rank, found in enumerate(run_ranks(train, dp * shard, kind, optim, dp, shard, transcoder)):
        assert found.pop("moment bytes") * dp * shard == want["moment bytes"]
        for name, value in found.items():
            torch.testing.assert_close(
                torch.as_tensor(value),
                torch.as_tensor(want[name]),
                rtol=1e-9,
                atol=1e-12,
                msg=lambda text, name=name, rank=rank: f"{name} on rank {rank}: {text}",
            )


def train_by_products(kind: str, dp: int, shard: int, transcoder: bool) -> tuple[dict, int]:
    """`train` with columns for all latents of a shard, in tiles of 7 rows; how often products were made."""
    from sae_dist.dictionary import auxiliary

    made, dense_codes = [], auxiliary.dense

    def counted(codes, columns):
        made.append(columns)
        return dense_codes(codes, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auxiliary, "dense", counted)
        patch.setattr(auxiliary, "TERMS", {"cpu": LATENTS})
        patch.setattr(auxiliary, "TILE_ELEMENTS", {"cpu": 7 * LATENTS // shard})
        found = train(kind, "adam", dp, shard, transcoder, None, LATENTS // shard)
    return found, len(made)


@pytest.mark.parametrize("dp,shard", [(1, 1), *MESHES[:4]])
@pytest.mark.parametrize("kind,transcoder", [(kind, False) for kind in SPARSE] + [("topk", True)])
def test_auxk_by_products_is_auxk_by_pairs(kind, transcoder, dp, shard):
    """Whole steps under any mesh, up to rounding."""
    want = alone(kind, "adam", transcoder)
    for found, products in run_ranks(train_by_products, dp * shard, kind, dp, shard, transcoder):
        assert products == 2 * (STEPS - 2), "forward and backward of the steps with AuxK"
        found.pop("moment bytes")
        for name, value in found.items():
            got, expected = torch.as_tensor(value), torch.as_tensor(want[name])
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind,optim,transcoder", CASES)
def test_the_case_is_worth_comparing(kind, optim, transcoder):
    found = alone(kind, optim, transcoder)
    assert 0 < min(found["codes"])
    assert max(found["codes"]) < ROWS * LATENTS, "some codes are zero"
    assert len(found["last_fired"].unique()) > 1, "some latents fire and others do not"
    if kind in SPARSE:
        assert found["aux"][0] == 0, "no AuxK before latents are dead"
        assert all(abs(value - 1) > 1e-4 for value in found["aux"][2:]), "dead latents fire in AuxK"
    if kind == "topk" and optim == "adam":
        assert min(found["norm"]) < CLIP[transcoder] < max(found["norm"]), "the clip acts on some steps only"


@pytest.mark.parametrize("dp,shard", [(1, 2), (2, 1)])
def test_a_dropped_reduction_shows(dp, shard):
    found = run_ranks(train, dp * shard, "topk", "adam", dp, shard, False, "consumers.sum")[0]
    # Ten times the bound of whole runs (test_world_size.py) and more.
    assert abs(found["loss"][-1] / alone("topk", "adam", False)["loss"][-1] - 1) > 1e-8


def gradients_against_autograd(kind: str, transcoder: bool) -> dict:
    _, model, _ = build(kind, "adam", 1, 1, transcoder)
    columns = sum(model.setting.widths)
    model.start_from(batch(0, columns))
    plant(model)
    with torch.no_grad():
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9), dtype=tensor.dtype)
            tensor += 0.1 * noise
    tokens, rows = 200, batch(7, columns)
    model.dead.last_fired_F[:] = tokens
    model.dead.last_fired_F[::3] = 0
    dead = model.dead.mask(tokens).clone()
    ours = model.loss(rows, tokens, with_aux=True).total
    ours.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()} | {"loss": ours.detach()}
    model.zero_grad()
    x = rows[:, :WIDTH]
    coefficient = model.coefficient(tokens) if isinstance(model, TiledDictionary) else 0.0
    facts = {"variance": model.variance, "dead": dead, "coefficient": coefficient}
    target = rows[:, WIDTH:] if transcoder else x
    formula = dense.loss(model.cfg, dict(model.named_parameters()), x, target, facts)
    formula.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()} | {"loss": formula.detach()}
    return {"found": found, "want": want}


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd(kind, transcoder):
    result = run_ranks(gradients_against_autograd, 1, kind, transcoder)[0]
    for name, want in result["want"].items():
        assert want.abs().max() > 0, f"{name} takes part"
        torch.testing.assert_close(result["found"][name], want, rtol=1e-9, atol=1e-12, msg=name)


def tiles_of(size: int) -> dict:
    from sae_dist.dictionary import penalised as tiled

    before, tiled.TILE_ELEMENTS = tiled.TILE_ELEMENTS, size
    try:
        return gradients_against_autograd("gated", False)["found"]
    finally:
        tiled.TILE_ELEMENTS = before


def test_tiles_do_not_matter():
    whole, tiled = (run_ranks(tiles_of, 1, size)[0] for size in (ROWS * LATENTS, ROWS * 5))
    for name, value in whole.items():
        torch.testing.assert_close(tiled[name], value, rtol=1e-10, atol=1e-13, msg=name)


def scaled_loss_moves_the_same(optim: str, factor: float) -> torch.Tensor:
    _, model, engine = build("topk", optim, 1, 1, False)
    model.start_from(batch(0, WIDTH))
    engine.cfg.clip = None
    for step in range(STEPS):
        engine.step(model.loss(batch(step, WIDTH), step, False).total * factor, lr=0.01)
    return model.W_enc.detach()


@pytest.mark.parametrize("optim", ["adam", "row_adam"])
def test_adam_does_not_see_the_scale_of_the_loss(optim):
    plain, tiny = (run_ranks(scaled_loss_moves_the_same, 1, optim, factor)[0] for factor in (1.0, 1e-4))
    torch.testing.assert_close(plain, tiny, rtol=1e-9, atol=1e-10)


def non_finite_step(kind: str, optim: str) -> tuple:
    _, model, engine = build(kind, optim, 1, 1, False)
    model.start_from(batch(0, WIDTH))
    engine.step(model.loss(batch(0, WIDTH), 1, False).total, lr=0.01)
    before = {name: tensor.clone() for name, (tensor, _) in (model.state() | engine.state()).items()}
    x = batch(1, WIDTH)
    x[3, 2] = torch.nan
    _, flag = engine.step(model.loss(x, 2, False).total, lr=0.01)
    after = {name: tensor for name, (tensor, _) in (model.state() | engine.state()).items()}
    moved = [
        n for n in before if n not in ("last_fired", "threshold") and not torch.allclose(before[n], after[n])
    ]
    return flag.item(), moved


@pytest.mark.parametrize(
    "kind,optim", [("topk", "adam"), ("topk", "row_adam"), ("relu", "adam"), ("matryoshka", "row_adam")]
)
def test_a_step_that_is_not_finite_moves_nothing(kind, optim):
    assert run_ranks(non_finite_step, 1, kind, optim)[0] == (1.0, [])
