"""A study on a model in which one latent's direction is read for one token, and others are not."""

import numpy as np
import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.interventions import Intervention
from sae_dist.interpret.model import as_model
from sae_dist.interpret.study.asked import Arm
from sae_dist.interpret.study.claims import judged
from sae_dist.interpret.study.conditioned import Conditioned
from sae_dist.interpret.study.conditions import (
    CONTROLS,
    EQUAL,
    OPPOSED,
    RANDOM,
    SHUFFLED,
    STEERED,
    Condition,
    conditions,
    hypotheses,
)
from sae_dist.interpret.study.effects import KL, PERPLEXITY, TARGET, measure
from sae_dist.interpret.study.scoring import Batch, generated, log_probabilities, repetition
from tests.helpers.in_use import causal
from tests.helpers.planted import OTHER, PLANTED, TOKEN, planted, prompts
from tests.helpers.tiny_llms import save_tiny

DOSES = (-1.0, 0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def study(model):
    dictionary, lm, statistics = model
    found = hypotheses([Arm("add", PLANTED), Arm("add", OTHER)], DOSES, statistics)
    all_of = conditions(dictionary, found, statistics, draws=4, seed=0)
    return found, all_of, measure(dictionary, lm, prompts(20), all_of, tokens=3, positions="all")


def of(study, kind: str, latent: int = PLANTED, measure_: str = TARGET) -> np.ndarray:
    """Mean effects of a kind of condition of a latent, [doses, draws]."""
    found, all_of, effects = study
    means = effects.of[measure_].mean(0)
    return np.array(
        [
            [means[n] for n, each in enumerate(all_of) if each.kind == kind and each.hypothesis == h]
            for h, own in enumerate(found)
            if own.latent == latent
        ]
    )


def test_the_planted_latent_moves_its_token_with_the_dose(study):
    effect = of(study, STEERED)[:, 0]
    assert (np.diff(effect) > 0).all() and effect[0] < 0 and effect[-1] > 2


@pytest.mark.parametrize("kind", [RANDOM, EQUAL, SHUFFLED])
def test_its_controls_do_not(study, kind):
    assert np.abs(of(study, kind)[-1]).max() < 0.5 * of(study, STEERED)[-1, 0]


def test_the_wrong_sign_does_the_opposite(study):
    assert (np.diff(of(study, OPPOSED)[:, 0]) < 0).all()


def test_an_effect_is_claimed_of_the_planted_latent_alone(study):
    found, all_of, effects = study
    judgements = judged(found, all_of, effects.of[TARGET], seed=0, what="the target", resamples=1000)
    claimed = {(each.hypothesis.latent, each.hypothesis.times) for each in judgements if each.claimed}
    assert {(PLANTED, 2.0), (PLANTED, 4.0)} <= claimed
    assert {latent for latent, _ in claimed} == {PLANTED}
    assert all(set(each.controls) == set(CONTROLS) for each in judgements)


def test_a_claim_is_refused_when_one_control_does_as_much(study):
    found, all_of, effects = study
    effect = effects.of[TARGET].copy()
    last = len(DOSES) - 1
    own = next(n for n, each in enumerate(all_of) if each.hypothesis == last and each.kind == STEERED)
    drawn = next(n for n, each in enumerate(all_of) if each.hypothesis == last and each.kind == SHUFFLED)
    effect[:, drawn] = effect[:, own]
    judgement = judged(found, all_of, effect, seed=0, what="the target", resamples=1000)[last]
    assert not judgement.claimed and judgement.not_passed == (SHUFFLED,)
    assert "not more than that of its control: shuffled dictionary" in judgement.words


def test_an_effect_is_what_the_model_itself_says(model, study):
    """One prompt alone, the direction added by a plain hook."""
    dictionary, lm, _ = model
    found, all_of, effects = study
    dose = found[3]
    place = next(n for n, each in enumerate(all_of) if each.hypothesis == 3 and each.kind == STEERED)
    for row, prompt in enumerate(prompts(3)):
        ids = torch.tensor([prompt.ids])
        clean = lm(input_ids=ids).logits[0, -1].log_softmax(-1)
        moved = dose.value * dictionary.W_dec[PLANTED]
        hook = lm.base.layers[1].register_forward_hook(lambda _m, _i, out, by=moved: out + by)
        steered = lm(input_ids=ids).logits[0, -1].log_softmax(-1)
        hook.remove()
        assert effects.of[TARGET][row, place] == pytest.approx(
            float(steered[TOKEN] - clean[TOKEN]), rel=1e-4, abs=1e-5
        )
        kl = float((clean.exp() * (clean - steered)).sum())
        assert effects.of["kl_end"][row, place] == pytest.approx(kl, rel=1e-3, abs=1e-5)


def test_clean_texts_are_greedy_and_their_perplexity_is_the_models(model, study):
    _, lm, _ = model
    _, _, effects = study
    for row, prompt in enumerate(prompts(3)):
        ids, total = list(prompt.ids), 0.0
        for token in effects.clean_texts[row]:
            logit = lm(input_ids=torch.tensor([ids])).logits[0, -1]
            total -= float(logit.log_softmax(-1)[token])
            logit[2] = -torch.inf  # the end of a text is never generated
            assert token == int(logit.argmax())
            ids.append(token)
        assert effects.clean[PERPLEXITY][row] == pytest.approx(total / 3, rel=1e-4)


def test_steered_texts_follow_the_planted_token(study):
    _, all_of, effects = study
    last = next(n for n, each in enumerate(all_of) if each.hypothesis == 4 and each.kind == STEERED)
    share = np.mean([text.count(TOKEN) / 3 for text in effects.texts[last]])
    assert share > np.mean([text.count(TOKEN) / 3 for text in effects.clean_texts]) + 0.3
    assert np.isnan(effects.of[PERPLEXITY][:, last + 1]).all()  # controls generate nothing
    assert (effects.of[KL] > -1e-6).all()


def test_controls_change_activations_by_as_much(study):
    _, all_of, effects = study
    for kind in (RANDOM, OPPOSED, SHUFFLED):
        for n, each in enumerate(all_of):
            if each.kind == kind:
                own = next(
                    m
                    for m, other in enumerate(all_of)
                    if other.kind == STEERED and other.hypothesis == each.hypothesis
                )
                assert effects.shares[n] == pytest.approx(effects.shares[own], rel=1e-4)
                assert effects.changed[n] == effects.changed[own] > 0


def test_several_tokens_of_a_target_count_together(model):
    dictionary, lm, _ = model
    asked = prompts(4, target=(TOKEN, 9), against=(11,))
    condition = Condition(0, STEERED, 0, PLANTED, Intervention("add", 0.0))
    effects = measure(dictionary, lm, asked, [condition], tokens=2, positions="all")
    for row, prompt in enumerate(asked):
        logit = lm(input_ids=torch.tensor([[*prompt.ids, TOKEN, 9]])).logits[0].log_softmax(-1)
        expected = logit[-3, TOKEN] + logit[-2, 9] - logit[-3, 11]
        assert effects.clean[TARGET][row] == pytest.approx(float(expected), rel=1e-4)
    assert not effects.of[TARGET].any()


@pytest.mark.parametrize(
    ("positions", "changed"), [("all", [0, 1, 2]), ("prompt", [0, 1]), ("last", [1, 2]), ("generated", [2])]
)
def test_positions_are_counted_from_the_prompt(model, positions, changed):
    """Of the places after the prompt: its own end, and two tokens that follow."""
    dictionary, lm, _ = model
    session = Conditioned(
        dictionary, lm, Condition(0, STEERED, 0, PLANTED, Intervention("add", 3.0)), positions
    )
    prompt, tail = prompts(1)[0].ids, [4, 5, 6]
    batch = Batch.of([prompt[:-1], prompt], [tail, tail], lm)
    seen = {}
    hook = lm.base.norm.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    before = log_probabilities(lm, batch), seen["x"]
    after = log_probabilities(lm, batch, session), seen["x"]
    hook.remove()
    for row, length in enumerate((len(prompt) - 1, len(prompt))):
        moved = (after[1] - before[1])[row].norm(dim=1) > 1
        if positions == "last":
            assert moved.nonzero().flatten().tolist() == [length - 1]
        else:
            expected = {"all": length + 3, "prompt": length, "generated": 3}[positions]
            assert int(moved.sum()) == expected and bool(moved[length:].any()) == (positions != "prompt")


def test_known_codes_change_nothing(model):
    dictionary, lm, _ = model
    asked = prompts(3)
    batch = Batch.of([each.ids for each in asked], [[4], [5], [6]], lm)
    session = Conditioned(
        dictionary, lm, Condition(0, STEERED, 0, PLANTED, Intervention("clamp", 2.0)), "all"
    )
    without = log_probabilities(lm, batch, session)
    session.known = {}
    assert torch.equal(log_probabilities(lm, batch, session), without) and PLANTED in session.known
    assert torch.equal(log_probabilities(lm, batch, session), without)


def test_generation_in_a_batch_is_that_of_each_prompt_alone(model):
    dictionary, lm, _ = model
    session = Conditioned(
        dictionary, lm, Condition(0, STEERED, 0, OTHER, Intervention("add", 2.0)), "generated"
    )
    asked = [each.ids for each in prompts(5)]
    together = generated(lm, asked, 4, session)
    assert together == [generated(lm, [each], 4, session)[0] for each in asked]


def test_the_dose_of_an_option_joins_the_ladder(model):
    _, _, statistics = model
    unit = float(statistics.p999_F[PLANTED])
    found = hypotheses([Arm("clamp", PLANTED, 3.0 * unit)], (1.0, 4.0), statistics)
    assert [round(each.times, 4) for each in found] == [1, 3, 4] and found[1].asked
    assert found[2].value == pytest.approx(4 * unit)
    assert [each.times for each in hypotheses([Arm("add", PLANTED)], (0.0, 1.0), statistics)] == [1]
    (removed,) = hypotheses([Arm("ablate", PLANTED)], (1.0,), statistics)
    assert removed.times is None and str(removed) == f"ablate {PLANTED}"


def test_a_latent_that_never_fired_is_refused(model):
    _, _, statistics = model
    statistics.p999_F[OTHER], before = 0.0, float(statistics.p999_F[OTHER])
    with pytest.raises(ConfigError, match=f"latent {OTHER} never fired"):
        hypotheses([Arm("ablate", OTHER)], (1.0,), statistics)
    statistics.p999_F[OTHER] = before


def test_controls_of_other_precision(model):
    dictionary, lm, statistics = planted(torch.float64)
    found = hypotheses([Arm("project-out", PLANTED)], (), statistics)
    all_of = conditions(dictionary, found, statistics, draws=2, seed=0)
    effects = measure(dictionary, lm, prompts(2), all_of, tokens=1, positions="all")
    means = {each.kind: effects.of[TARGET][:, n].mean() for n, each in enumerate(all_of)}
    assert means[STEERED] * means[OPPOSED] < 0 and set(means) == {STEERED, *CONTROLS}


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "gemma2"])
def test_padding_changes_no_distribution(kind, tmp_path):
    """Texts of several lengths in a batch, against each alone in the untouched model."""
    llm = causal(save_tiny(kind, tmp_path))
    lm = as_model(llm)
    texts = [list(range(10, 16)), list(range(20, 29)), [30, 31]]
    tails = [[40, 41], [42], [43, 44, 45]]
    found = log_probabilities(lm, Batch.of(texts, tails, lm))
    for row, (text, tail) in enumerate(zip(texts, tails, strict=True)):
        alone = llm(input_ids=torch.tensor([text + tail])).logits[0].log_softmax(-1)
        own = alone[len(text) - 1 : len(text) + len(tail) - 1]
        assert torch.allclose(found[row, : len(tail)], own, atol=1e-6)
    together = generated(lm, texts, 3)
    assert together == [generated(lm, [each], 3)[0] for each in texts]


@pytest.mark.parametrize(("ids", "share"), [([1, 2, 3, 4], 0), ([1] * 6, 0.75), ([1, 2], 0)])
def test_repetition(ids, share):
    assert repetition(ids) == share
