"""AuxK by products over the dead latents: the numbers of pairs, no host reads, and a bound that holds."""

from types import SimpleNamespace

import pytest
import torch

from sae_dist.core.types import LossTerms
from sae_dist.dictionary import auxiliary
from sae_dist.kernels import keys, reference, torch_backend
from sae_dist.train.state import Agreement
from tests.unit.dictionary.test_devices import ROWS, WIDTH, Axis, made
from tests.unit.dictionary.test_memory import LargestOutput
from tests.unit.dictionary.test_syncs import HostReads

LATENTS, AUX_K = 64, WIDTH // 2
DEAD = {"none": [], "fewer than aux_k": [5, 63], "more": list(range(1, 64, 3))}


def parts_and_gradients(dead: list[int], most_dead: int | None) -> list[torch.Tensor]:
    """Loss, AuxK and all gradients of one step."""
    dictionary = made("topk", reference).double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            seed = torch.Generator().manual_seed(len(name))
            parameter += 0.3 * torch.randn(parameter.shape, generator=seed, dtype=torch.float64)
    dictionary.dead.last_fired_F[:] = 100
    dictionary.dead.last_fired_F[dead] = 0
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    terms = dictionary.loss(rows, 101, True, most_dead)
    terms.total.backward()
    gradients = [p.grad for _, p in dictionary.named_parameters()]
    return [terms.total.detach(), terms.parts.get("aux", terms.total.new_zeros(())), *gradients]


@pytest.mark.parametrize("spare", [0, 4])
@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
def test_products_are_pairs(dead, spare, monkeypatch):
    """Also with columns to spare, which stand for no latent, and in tiles of some rows."""
    want = parts_and_gradients(dead, None)
    monkeypatch.setitem(auxiliary.TERMS, "cpu", LATENTS)
    monkeypatch.setitem(auxiliary.TILE_ELEMENTS, "cpu", 5 * max(len(dead) + spare, 1))
    got = parts_and_gradients(dead, len(dead) + spare)
    assert want[1] > 0 or not dead
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)


def test_where_all_that_were_dead_have_fired_there_is_nothing_to_do():
    """The ranks know of a dead latent one step late; by the kernels of a CPU, which take no empty rows."""
    dictionary = made("topk", torch_backend)
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))
    terms = dictionary.loss(rows, 101, True, 0)
    assert "aux" not in terms.parts and torch.isfinite(terms.total)


def test_products_read_nothing_on_the_host_and_fill_no_more_than_a_tile(monkeypatch):
    monkeypatch.setitem(auxiliary.TERMS, "cpu", LATENTS)
    monkeypatch.setitem(auxiliary.TILE_ELEMENTS, "cpu", 4 * LATENTS)
    dictionary = made("topk", SimpleNamespace(topk_rows=keys.topk_rows))
    x_BD = torch.randn(200, WIDTH)
    dead_F = torch.zeros(LATENTS, dtype=torch.bool)
    dead_F[DEAD["more"]] = True
    with HostReads() as reads, LargestOutput() as seen:
        dictionary.aux_by_products(x_BD, dead_F, LATENTS).square().sum().backward()
    assert reads.found == [] and dictionary.W_enc.grad[DEAD["more"]].abs().sum() > 0
    assert seen.largest <= x_BD.numel() < 200 * LATENTS


def test_products_are_made_where_they_pay():
    """Twenty-five columns a pair on a GPU, in TF32 150; never where their number is not known."""
    gpu = torch.device("cuda")
    assert auxiliary.pays(24 * 1152, 1152, gpu, False) and not auxiliary.pays(25 * 1152, 1152, gpu, False)
    assert auxiliary.pays(149 * 1152, 1152, gpu, True) and not auxiliary.pays(150 * 1152, 1152, gpu, True)
    assert not auxiliary.pays(3 * 1152, 1152, torch.device("cpu"), True), "a CPU has no TF32"
    dictionary = made("topk", reference)
    assert dictionary.is_dense(AUX_K) and not dictionary.is_dense(LATENTS)
    assert not dictionary.is_dense(None)
    dictionary.row_terms = {"W_enc": [], "W_dec": []}
    assert not dictionary.is_dense(AUX_K), "row_adam takes pairs"


def test_no_more_latents_are_dead_than_was_said_two_steps_before():
    dictionary = made("topk", reference)
    dictionary.dead.dead_after = 3 * ROWS
    said, found = [], []
    for step in range(20):
        rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(step)).abs()
        rows[:, step // 5 :] *= 0.01
        found.append(int(dictionary.dead.mask((step + 1) * ROWS).sum()))
        said.append(int(dictionary.loss(rows, (step + 1) * ROWS, False).parts["most_dead"]))
    assert all(later <= most for most, later in zip(said, found[2:], strict=False))
    assert any(later == most > 0 for most, later in zip(said, found[2:], strict=False))
    assert len(set(found)) > 2, "latents die and come back"


def agreed() -> Agreement:
    """What one rank agrees on with itself."""
    topology = SimpleNamespace(rank=0, num_shards=2, consumers=Axis())
    return Agreement(topology, SimpleNamespace(wanted=False))


def test_the_ranks_agree_on_how_many_are_dead():
    agreement = agreed()
    assert agreement.most_dead is None
    parts = {"squared_error": torch.ones(()), "num_dead": torch.ones(()), "most_dead": torch.tensor(7)}
    agreement.post(1, LossTerms(torch.ones(()), parts), torch.zeros(()))
    resumed = agreed()
    resumed.restore(False, list(agreement.pending()), 5, 2)
    assert resumed.most_dead == 5
    for each in (agreement, resumed):
        assert not each.read()
        assert each.any_dead and each.most_dead == 7


def test_a_checkpoint_of_other_shards_bounds_less_closely():
    """One shard may have all that four had."""
    agreement = agreed()
    agreement.restore(True, [1, [0, 0, 0, 6, 6]], 5, 4)
    assert agreement.most_dead == 20
    agreement.read()
    assert agreement.most_dead == 24


def test_a_checkpoint_without_that_number_goes_by_pairs():
    agreement = agreed()
    agreement.restore(True, [1, [0, 0, 0, 6]])
    agreement.read()
    assert agreement.any_dead and agreement.most_dead is None
