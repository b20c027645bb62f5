"""Codes of a few latents are those of all, which are encoded only where that may find another code than 0."""

from dataclasses import replace

import pytest
import torch

import sae_dist as sd
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import as_model
from sae_dist.interpret.moves import Moves
from sae_dist.interpret.session import Session
from sae_dist.interpret.steer import Steered
from tests.helpers.dictionaries import KINDS, D, random_sae
from tests.helpers.in_use import causal, dictionary, tokens
from tests.helpers.tiny_llms import TinyLlms

NAMED = [0, 7, 33]
SPECIAL = 3


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return causal(TinyLlms(tmp_path_factory)("gpt2"), torch.float32)


def rows(number, seed=0):
    return torch.randn(number, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_all_latents(kind):
    d, x = Dictionary(random_sae(kind), dictionary().place), rows(500)
    codes = d.encode(x)
    wanted = torch.stack([codes.of_latent(each) for each in NAMED], 1)
    found = d.codes_of(d.some(NAMED), x)
    assert wanted.any() and (found - wanted).abs().max() < 1e-5 and torch.equal(found > 0, wanted > 0)


def encoded(d, monkeypatch):
    """How many rows are encoded with all latents, call by call."""
    counts, exact = [], d._encoding._exact
    monkeypatch.setattr(d._encoding, "_exact", lambda x: (counts.append(len(x)), exact(x))[1])
    return counts


def test_topk_is_asked_only_for_rows_where_a_code_is_possible(monkeypatch):
    sae = random_sae("topk")
    d, x = Dictionary(sae, dictionary().place), rows(300)
    z = (x - sae.b_dec_E) @ sae.W_enc_FD.T + sae.b_enc_F
    selected = (z[:, NAMED] >= z.topk(sae.k, dim=1).values[:, -1:]) & (z[:, NAMED] > 0)
    assert ((z[:, NAMED] > 0).any(1) & ~selected.any(1)).sum() > 30
    counts = encoded(d, monkeypatch)
    assert d.codes_of(d.some(NAMED), x[~selected.any(1)]) is None and counts == []
    assert torch.equal(d.codes_of(d.some(NAMED), x) > 0, selected) and counts == [int(selected.any(1).sum())]


def test_latents_that_are_equal_are_decided_by_the_selection(monkeypatch):
    """The k-th and the next best score are the same number: the lower latent is selected."""
    sae = random_sae("topk")
    W_enc_FD, b_enc_F = sae.W_enc_FD.clone(), sae.b_enc_F.clone()
    x = rows(1)
    order = ((x - sae.b_dec_E) @ W_enc_FD.T + b_enc_F)[0].argsort(descending=True)
    low, high = sorted((int(order[sae.k - 1]), int(order[sae.k])))
    W_enc_FD[low], b_enc_F[low] = W_enc_FD[int(order[sae.k - 1])], b_enc_F[int(order[sae.k - 1])]
    W_enc_FD[high], b_enc_F[high] = W_enc_FD[low], b_enc_F[low]
    d = Dictionary(replace(sae, W_enc_FD=W_enc_FD, b_enc_F=b_enc_F), dictionary().place)
    counts = encoded(d, monkeypatch)
    assert d.codes_of(d.some([low]), x)[0, 0] > 0 and d.codes_of(d.some([high]), x)[0, 0] == 0
    assert counts == [1, 1]


def test_a_code_is_never_screened_out():
    """Also where activations are nearly b_dec, which is large."""
    sae = random_sae("topk")
    sae = replace(sae, b_dec_E=1000 * sae.b_dec_E, b_enc_F=torch.zeros_like(sae.b_enc_F))
    some = Dictionary(sae, dictionary().place).some(list(range(sae.num_latents)))
    moves = Moves.of(some, some.W_dec_IE, dict.fromkeys(some.latents, sd.ablate()), torch.device("cpu"))
    x = sae.b_dec_E + 0.01 * rows(2000)
    exact = (x.double() - sae.b_dec_E.double()) @ sae.W_enc_FD.double().T + sae.b_enc_F.double()
    screened = x @ moves.W_enc_DI + moves.screen_I <= 0
    assert screened.any() and not (screened & (exact > 0)).any()


@pytest.mark.parametrize("far", [1.0, 1000.0])
def test_rivals_never_surpass_a_latent_that_is_selected(far):
    sae = random_sae("topk", F=4096, k=30)
    sae = replace(sae, b_dec_E=far * sae.b_dec_E)
    d = Dictionary(sae, dictionary().place)
    x = sae.b_dec_E + rows(200)
    dense_BF = d.encode(x).dense()
    selected = surpassed = 0
    for latent in range(0, 4096, 97):
        some = d.some([latent])
        moves = Moves.of(some, some.W_dec_IE, {latent: sd.ablate()}, torch.device("cpu"), d.rivals)
        for row, code in zip(x, dense_BF[:, latent], strict=True):
            silent = moves.silent(row.view(1, 1, -1))
            assert not (silent and code > 0)
            selected += int(code > 0)
            surpassed += silent and float((row @ moves.W_enc_DI)[0]) > moves.most_silent
    assert selected > 20 and surpassed > 200


@pytest.mark.parametrize("how", [sd.clamp(1.5), sd.ablate(), sd.add(0.5)], ids=lambda how: how.how)
@pytest.mark.parametrize("positions", ["all", "every"])
def test_a_generated_token_is_moved_as_it_is_in_a_prompt(lm, how, positions, monkeypatch):
    d, ids = dictionary(), tokens((2, 40))
    ids[0, 20], known = SPECIAL, replace(as_model(lm), special_ids=frozenset([SPECIAL]))
    latents = dict.fromkeys(NAMED, how)
    told, quick = [], Steered.quick
    monkeypatch.setattr(Steered, "quick", lambda *a: (told.append(quick(*a)), told[-1])[1])
    found, ones = by_tokens(d, known, latents, ids, positions)
    assert any(each is not None for each in told) and (how.how == "add" or None in told)
    monkeypatch.setattr(Steered, "quick", Session.quick)
    monkeypatch.setattr("sae_dist.interpret.steer.EVERYWHERE", ())  # places in the text are read, too
    wanted, others = by_tokens(d, known, latents, ids, positions)
    assert torch.equal(found, wanted) and ones.intervened == others.intervened
    assert ones.largest == others.largest


def by_tokens(d, lm, latents, ids, positions):
    """Logits of every token after a prompt of four, read one by one."""
    with d.steer(lm, latents, positions=positions) as s, torch.no_grad():
        out = lm.model(ids[:, :4], use_cache=True)
        logits = []
        for at in range(4, ids.shape[1]):
            out = lm.model(ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
    return torch.cat(logits, 1), s
