"""The effects of steering: each condition against the model as it is, on the same prompts.

Letters: as core.types; N prompts, C conditions, K the tokens that follow a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.statistics import Floats
from sae_dist.interpret.study.conditioned import Conditioned
from sae_dist.interpret.study.conditions import STEERED, Condition
from sae_dist.interpret.study.prompts import Prompt
from sae_dist.interpret.study.scoring import Batch, batches, generated, log_probabilities, repetition

TARGET, KL, KL_END, PERPLEXITY, REPETITION = "target", "kl", "kl_end", "perplexity", "repetition"
MEANS = {
    TARGET: "log-probability of the target after the prompt, minus that of what it is against, in nats",
    KL: "KL divergence from the model as it is, mean over the tokens that it would generate, in nats",
    KL_END: "the same at the prompt's end alone",
    PERPLEXITY: "log-perplexity of what is generated, under the model as it is, in nats a token",
    REPETITION: "share of runs of three generated tokens that were there before",
}
"""The measures; each counts as steered minus not steered."""
GENERATED = (PERPLEXITY, REPETITION)
"""Measures of generated texts, which controls have not."""


@dataclass
class Effects:
    """The measures of all conditions on all prompts.

    Attributes:
        of: by measure, steered minus not steered [N, C]; those of generated texts are nan for controls.
        clean: by measure, of the model as it is [N].
        texts: by condition, the generated tokens of each prompt; for steered conditions only.
        clean_texts: of the model as it is.
        shares: by condition, the mean change as a share of the median norm of activations.
        largest: by condition, the largest such share.
        changed: by condition, how many activations were changed in all.
        approximate: how codes are estimated, in words; None: they are exact.
    """

    of: dict[str, Floats]
    clean: dict[str, Floats]
    texts: dict[int, list[list[int]]]
    clean_texts: list[list[int]]
    shares: Floats
    largest: Floats
    changed: list[int]
    approximate: str | None = None


def measure(
    dictionary: Dictionary,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    found: Sequence[Condition],
    *,
    tokens: int,
    positions: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Effects:
    """Measure all conditions on all prompts, a batch of prompts at a time.

    Args:
        tokens: how many are generated.
        positions: which activations are steered, a word of `interpret.forward`.
        progress: is given how many batches of conditions are done, and how many there are.
    """
    N, C = len(prompts), len(found)
    sessions = [Conditioned(dictionary, lm, each, positions) for each in found]
    measures = [each for each in MEANS if each != TARGET or prompts[0].target]
    effects = Effects(
        of={each: np.full((N, C), np.nan) for each in measures},
        clean={each: np.zeros(N) for each in measures},
        texts={n: [[] for _ in prompts] for n, each in enumerate(found) if each.kind == STEERED},
        clean_texts=[[] for _ in prompts],
        shares=np.zeros(C),
        largest=np.zeros(C),
        changed=[0] * C,
        approximate=sessions[0].approximate,
    )
    parts = list(batches(lm, [len(each.ids) for each in prompts], tokens))
    for number, rows in enumerate(parts):
        _measure_batch(lm, [prompts[row] for row in rows], rows, sessions, effects, tokens)
        progress(number + 1, len(parts))
    for number, session in enumerate(sessions):
        effects.shares[number] = np.mean(session.shares or [0.0])
        effects.largest[number], effects.changed[number] = session.largest, session.changed
    return effects


def _measure_batch(
    lm: LanguageModel,
    prompts: list[Prompt],
    rows: list[int],
    sessions: list[Conditioned],
    effects: Effects,
    tokens: int,
) -> None:
    begins = [each.ids for each in prompts]
    texts = generated(lm, begins, tokens)
    readings = _Readings(lm, prompts, texts)
    log_perplexity = readings.clean_perplexity()
    before = np.array([repetition(each) for each in texts])
    for row, text in zip(rows, texts, strict=True):
        effects.clean_texts[row] = text
    if TARGET in effects.of:
        effects.clean[TARGET][rows] = readings.clean_target
    effects.clean[PERPLEXITY][rows], effects.clean[REPETITION][rows] = log_perplexity, before
    for number, session in enumerate(sessions):
        for measure_, value_N in readings.under(session).items():
            effects.of[measure_][rows, number] = value_N
        if number not in effects.texts:
            continue
        noted = session.changed, list(session.shares), session.largest
        steered = generated(lm, begins, tokens, session)
        session.changed, session.shares, session.largest = noted
        for row, text in zip(rows, steered, strict=True):
            effects.texts[number][row] = text
        after = np.array([repetition(each) for each in steered])
        effects.of[PERPLEXITY][rows, number] = perplexity(lm, begins, steered) - log_perplexity
        effects.of[REPETITION][rows, number] = after - before


def perplexity(lm: LanguageModel, begins: Sequence[Sequence[int]], texts: list[list[int]]) -> Floats:
    """Return the log-perplexity [N] of texts behind prompts, under the model as it is."""
    batch = Batch.of(begins, texts, lm)
    return -_mean_log_probability(log_probabilities(lm, batch), batch)


class _Readings:
    """The same texts read by the model as it is, once, and under each condition.

    `after`: prompts and what the model itself generates; `target`, `against`: prompts and what may follow,
    where that has several tokens.
    """

    def __init__(self, lm: LanguageModel, prompts: list[Prompt], texts: list[list[int]]):
        begins = [each.ids for each in prompts]
        wanted = {"target": [each.target for each in prompts], "against": [each.against for each in prompts]}
        wanted = {name: tails for name, tails in wanted.items() if all(tails)}
        alone = all(len(tail) == 1 for tails in wanted.values() for tail in tails)
        self.lm, self.batches = lm, {"after": Batch.of(begins, texts, lm)}
        self._ends = wanted if alone else {}
        if not alone:
            self.batches |= {name: Batch.of(begins, tails, lm) for name, tails in wanted.items()}
        self._clean = {name: log_probabilities(lm, batch) for name, batch in self.batches.items()}
        self._codes: dict[str, dict[int, Tensor | None]] = {name: {} for name in self.batches}
        self._wanted = list(wanted)
        self.clean_target = self._target(self._clean)

    def clean_perplexity(self) -> Floats:
        """Return the log-perplexity of the model's own text, under itself [N]."""
        return -_mean_log_probability(self._clean["after"], self.batches["after"])

    def under(self, session: Conditioned) -> dict[str, Floats]:
        """Return the measures of a condition, minus those of the model as it is, [N] each."""
        found = {}
        for name, batch in self.batches.items():
            session.known = self._codes[name]
            found[name] = log_probabilities(self.lm, batch, session)
        before_NKV, after_NKV = self._clean["after"], found["after"]
        kl_NK = (before_NKV.exp() * (before_NKV - after_NKV)).sum(-1).double().cpu().numpy()
        measures = {KL: kl_NK.mean(1), KL_END: kl_NK[:, 0]}
        if self._wanted:
            measures[TARGET] = self._target(found) - self.clean_target
        return measures

    def _target(self, log_probability: dict[str, Tensor]) -> Floats:
        """Return the log-probability of the target, minus that of what it is against [N]."""
        signs = {"target": 1.0, "against": -1.0}
        total: Floats = np.zeros(len(self.batches["after"].ids_NS))
        for name in self._wanted:
            if name in self._ends:
                end_NV = log_probability["after"][:, 0]
                ids = self.batches["after"].tail_NK.new_tensor(self._ends[name])
                value_N = end_NV.gather(1, ids)[:, 0].double().cpu().numpy()
            else:
                value_N = _log_probability(log_probability[name], self.batches[name])
            total = total + signs[name] * value_N
        return total


def _log_probability(found_NKV: Tensor, batch: Batch) -> Floats:
    """Return the log-probability of each text's own tokens together [N]."""
    own_NK = found_NKV.gather(2, batch.tail_NK[..., None]).squeeze(2)
    total: Floats = (own_NK * batch.real_NK).sum(1).double().cpu().numpy()
    return total


def _mean_log_probability(found_NKV: Tensor, batch: Batch) -> Floats:
    return _log_probability(found_NKV, batch) / batch.real_NK.sum(1).double().cpu().numpy()
