"""Attributions over prompts; and what a terminal, a notebook and a program get, of hostile texts too."""

import json

import numpy as np
import pytest
import torch

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.many import attribute_many
from tests.helpers.in_use import causal, dictionary
from tests.helpers.planted import PLANTED, TOKEN, planted, prompts
from tests.helpers.tiny_llms import TinyLlms
from tests.unit.interpret.test_explain_views import HOSTILE, PAGE, TAGS, Read


@pytest.fixture(scope="module")
def model():
    return planted(torch.float64)


@pytest.fixture(scope="module")
def asked():
    return [(list(each.ids), sd.logit(TOKEN)) for each in prompts(24)]


@pytest.fixture(scope="module")
def many(model, asked):
    return attribute_many(*model[:2], asked, exact=6)


def column(seen, key, latent):
    return seen[key][seen["latent"].index(latent)]


def test_means_are_those_of_single_prompts(model, asked, many):
    alone = [model[0].attribute(model[1], ids, metric=metric, exact=0) for ids, metric in asked]
    for latent in many.latents_seen["latent"]:
        effects = [
            column(each.latents_seen, "effect", latent) if latent in each.latents_seen["latent"] else 0.0
            for each in alone
        ]
        assert column(many.latents_seen, "effect", latent) == pytest.approx(np.mean(effects), abs=1e-12)
        fires = [latent in each.latents_seen["latent"] for each in alone]
        assert column(many.latents_seen, "prompts", latent) == sum(fires)
    assert many.latents.mean == pytest.approx(np.mean([each.certificate.latents for each in alone]))
    assert many.error.mean == pytest.approx(np.mean([each.certificate.error for each in alone]))
    assert many.complete_to == max(each.complete_to for each in alone)
    assert many.prompts_seen["clean"] == [each.certificate.clean for each in alone]


def test_removals_are_brute_force(model, asked, many):
    d, lm, _ = model
    latent = many.latents_seen["latent"][1]
    lost = []
    for ids, _ in asked:
        given = torch.tensor([ids])
        with torch.no_grad():
            clean = lm(input_ids=given).logits[0, -1]
            with d.attach(lm, edit={latent: sd.ablate()}):
                after = lm(input_ids=given).logits[0, -1]
        lost.append(float(clean[TOKEN] - clean.mean() - after[TOKEN] + after.mean()))
    assert many.latents_seen["exact"][1] == pytest.approx(np.mean(lost), rel=1e-8)
    lower, upper = many.latents_seen["lower"][1], many.latents_seen["upper"][1]
    assert lower < np.mean(lost) < upper


def test_the_planted_latent_is_first(many):
    seen = many.latents_seen
    assert seen["latent"][0] == PLANTED and seen["lower"][0] > 0 and 0 < seen["p_holm"][0] <= 1
    assert seen["exact"][6:] == seen["p_holm"][6:] == [None] * (len(seen["latent"]) - 6)
    assert many.agreement.sign == 1 and many.equal.reach is None
    assert "too few to say what chance does" in str(many) and "24 prompts" in repr(many)
    assert json.loads(many.to_json())["rows"][0]["latent"] == PLANTED


def test_a_prompt_says_its_own_metric(model, asked):
    mixed = [asked[0], (asked[1][0], sd.logit_diff(TOKEN, 5)), (asked[2][0], None)]
    found = attribute_many(*model[:2], mixed, exact=0)
    assert len(set(found.prompts_seen["metric"])) == 3
    assert "2 other metrics" in str(found) and "too few for intervals" in str(found)


def test_nothing_to_attribute_is_refused(model):
    d, lm, _ = model
    with pytest.raises(ConfigError, match="no prompts"):
        attribute_many(d, lm, [])
    with pytest.raises(ConfigError, match="prompt 2: target=99: the tokens of"):
        attribute_many(d, lm, [([4, 5], sd.logit(TOKEN)), ([4, 5], sd.logit(99))])
    silent = d.to(dtype=torch.float64)
    silent.sae.b_enc_F = torch.full_like(silent.sae.b_enc_F, -1e9)
    with pytest.raises(ConfigError, match="no latent fires"):
        attribute_many(silent, lm, [([4, 5, 6], None)])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    lm = causal(TinyLlms(tmp_path_factory)("llama"), torch.float32)
    labels = dict.fromkeys(range(200), HOSTILE)
    return dictionary().attribute(lm, HOSTILE, labels=labels, exact=20)


@pytest.mark.parametrize("whole", [False, True])
def test_hostile_words_stay_words(hostile, whole):
    html = hostile.to_html() if whole else hostile._repr_html_()
    read = Read(html)
    assert read.tags <= (PAGE if whole else TAGS)
    assert read.attributes <= {"class", "style", "title", "lang", "charset", "name", "content"}
    assert "<script" not in html and "url(" not in html and "@import" not in html and "http" not in html
    assert "<script>alert('x')</script>" in read.text and html.count("<tr") == 1 + 20


def test_a_terminal_gets_no_orders_and_a_program_everything(hostile):
    printed = str(hostile)
    assert all(each.isprintable() for line in printed.split("\n") for each in line)
    assert "20 removals" in printed and "Gauss-Legendre" in printed and "finite differences" in printed
    found = json.loads(hostile.to_json())
    assert len(found["codes"]) == hostile.about["codes"] == hostile.table.num_rows
    assert found["certificate"]["complete_to"] == hostile.complete_to
    assert found["random"]["reach"] > 0 and len(found["tokens"]) == hostile.tokens.num_rows
    assert sum(each["codes"] for each in found["latents"]) == len(found["codes"])
    assert repr(hostile).startswith("Attribution(")
