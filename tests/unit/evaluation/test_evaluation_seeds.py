"""Partners of latents, against the whole matrix of cosines."""

import torch
from torch.nn.functional import normalize

from sae_dist.config.run import RunConfig
from sae_dist.evaluation import seeds
from sae_dist.export.saelens import export_firing_rates, export_saelens, load_firing_rates
from tests.helpers.dictionaries import random_sae


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


def test_only_latents_that_fire_are_counted_where_that_is_known(tmp_path):
    configs = [RunConfig(name=name) for name in ("seed=0", "seed=1", "other")]
    for number, cfg in enumerate(configs):
        cfg.sae.seed = number
    configs[2].sae.k = 3
    torch.manual_seed(0)
    sae = random_sae("topk")
    for cfg in configs:
        export_saelens(tmp_path / cfg.name / "export", sae)
    (found,) = seeds.compare_seeds(configs, tmp_path)
    assert (found["matched"], found["quarters"]) == (1.0, [])
    half = torch.rand(sae.num_latents)
    half[::2] = 0
    export_firing_rates(tmp_path / "seed=0" / "export", half)
    sae.W_dec_FE[1::4] *= -1
    export_saelens(tmp_path / "seed=1" / "export", sae)
    (found,) = seeds.compare_seeds(configs, tmp_path)
    flipped = int((torch.arange(sae.num_latents) % 4 == 1).sum())
    fires = sae.num_latents // 2
    assert found["matched"] == 1 - flipped / fires and len(found["quarters"]) == 4
    assert torch.allclose(load_firing_rates(tmp_path / "seed=0" / "export"), half, rtol=1e-5)
