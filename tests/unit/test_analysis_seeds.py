"""Partners of latents, against the whole matrix of cosines."""

import torch
from torch.nn.functional import normalize

from sae_dist.analysis import seeds


def test_partners_are_each_others_nearest(monkeypatch):
    monkeypatch.setattr(seeds, "TILE", 7)
    torch.manual_seed(0)
    W, V = torch.randn(30, 8), torch.randn(45, 8)
    V[3:20] = 2 * W[:17] + 0.1 * torch.randn(17, 8)
    cosines = normalize(W, dim=1) @ normalize(V, dim=1).T
    nearest, cosine, mutual = seeds.partners(W, V)
    assert torch.equal(nearest, cosines.argmax(1)) and torch.allclose(cosine, cosines.max(1).values)
    expected = [int(cosines[:, nearest[f]].argmax()) == f for f in range(30)]
    assert mutual.tolist() == expected and all(expected[:17]) and not all(expected)


def test_a_dictionary_is_its_own_partner_whatever_the_order():
    torch.manual_seed(0)
    W, order = torch.randn(50, 8), torch.randperm(50)
    nearest, cosine, mutual = seeds.partners(W, 3 * W[order])
    assert (
        torch.equal(order[nearest], torch.arange(50)) and bool(mutual.all()) and float(cosine.min()) > 0.999
    )
