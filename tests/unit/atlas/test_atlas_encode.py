"""The codes of an atlas: the right ones, the same to the bit for any batch and any split of the latents."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from sae_dist.atlas.encode import ShardEncoder, rows_of
from sae_dist.distributed.collectives import Axis
from sae_dist.kernels import torch_backend
from tests.helpers.dictionaries import KINDS, random_sae
from tests.helpers.ranks import run_ranks

F, D, ROWS = 512, 48, 96


def sae_of(kind, form="autoencoder"):
    return random_sae(kind, form, F=F, D=D, k=12)


def rows(count=ROWS):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(3))


class Alone:
    """The shard axis of one rank."""

    size, rank = 1, 0


def dense(codes, count, first=0):
    """The codes of rows as a matrix, at their latents' own numbers."""
    found = torch.zeros(count, F)
    found[rows_of(codes), codes.latent_P + first] = codes.value_P
    return found


def whole(sae, x_BD):
    return dense(ShardEncoder(sae, Alone(), torch_backend).codes(x_BD), len(x_BD))


def on_a_shard(sae, x_BD):
    shard = Axis("shard", dist.group.WORLD)
    latents = F // shard.size
    mine = slice(shard.rank * latents, (shard.rank + 1) * latents)
    codes = ShardEncoder(sae.tile(mine), shard, torch_backend).codes(x_BD)
    return dense(codes, len(x_BD), mine.start)


@pytest.mark.parametrize("form", ["autoencoder", "skip"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_formula(kind, form):
    sae, x_BD = sae_of(kind, form), rows()
    z_BF = (x_BD if sae.transcoder else x_BD - sae.b_dec_E).double() @ sae.W_enc_FD.double().T
    if kind == "topk":
        score_BF = z_BF + sae.b_enc_F
        best = score_BF.topk(sae.k, dim=1)
        expected = torch.zeros_like(score_BF).scatter_(1, best.indices, best.values.relu())
    else:
        expected = sae.form.codes(z_BF, {name: each.double() for name, each in sae.vectors.items()})
    found = whole(sae, x_BD)
    assert ((found > 0) == (expected > 0)).all()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_and_no_split_changes_a_bit(kind):
    sae, x_BD = sae_of(kind), rows()
    expected = whole(sae, x_BD)
    assert torch.equal(torch.cat([whole(sae, each) for each in x_BD.split(2)]), expected)
    assert torch.equal(sum(run_ranks(on_a_shard, 2, sae, x_BD)), expected)


def test_of_equal_latents_the_lower_are_selected_however_many_there_are():
    sae, x_BD = sae_of("topk"), rows(8)
    twin_F = torch.arange(F) // 64  # eight latents, each there 64 times
    same = replace(sae, W_enc_FD=sae.W_enc_FD[twin_F], b_enc_F=sae.b_enc_F[twin_F])
    found = whole(same, x_BD)
    best_B = (x_BD - sae.b_dec_E) @ sae.W_enc_FD[:8].T + sae.b_enc_F[:8]
    for row, best in zip(found, best_B.argmax(1), strict=True):
        assert row.nonzero().flatten().tolist() == list(range(64 * best, 64 * best + sae.k))


def test_a_score_that_rounding_may_lift_above_zero_is_decided_by_its_own_product():
    """A bias takes each score to zero as one product of matrices has it; the product of vectors decides."""
    sae, x_BD = sae_of("relu"), rows(1)
    z_BD = x_BD - sae.b_dec_E
    at_zero = replace(sae, b_enc_F=-(z_BD @ sae.W_enc_FD.T)[0])
    latent_P = torch.arange(F)
    product_P = torch_backend.latent_gradient(latent_P, torch.tensor([0]), z_BD, sae.W_enc_FD)
    expected = (product_P + at_zero.b_enc_F).relu()
    assert 0 < int((expected > 0).sum()) < F, "rounding has no part in this"
    assert torch.equal(whole(at_zero, x_BD)[0], expected)
