"""The latents of a graph in other prompts that say the same: whether they fire there, and do the same.

Letters: as core.types; M latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check.agree import Agreement, agreement, plain
from sae_dist.graph.check.chosen import firing
from sae_dist.graph.check.predicted import Floats
from sae_dist.graph.check.trials import Trials
from sae_dist.interpret.model import LanguageModel
from sae_dist.tokens.encoder import without_surrogates

BEFORE = {"a line break before it": "\n", "a full stop before it": ".", "a word before it": " The"}
"""What is put before a prompt where no paraphrases are given."""


@dataclass(frozen=True)
class Variant:
    """A prompt that should be understood alike.

    Attributes:
        name: what it is, in words or as its text.
        ids: its tokens.
    """

    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Stability:
    """The behaviour of latents in a variant.

    Attributes:
        says: the model's most likely next token in it is that of the prompt.
        fire: how many of the latents fire in it.
        num: how many were looked at.
        agreement: of what cutting each does to the target there with what it does in the prompt, over those
            that fire in both.
    """

    variant: Variant
    says: bool
    fire: int
    num: int
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""
        return {
            "prompt": self.variant.name,
            "ids": list(self.variant.ids),
            "same_next_token": self.says,
            "fire": self.fire,
            "latents": self.num,
        } | {name: plain(value) for name, value in self.agreement.to_json().items()}


def made(lm: LanguageModel, ids: Sequence[int]) -> list[Variant]:
    """Return a prompt with something before it that changes nothing of what it asks; fewer if that is long.

    Without a tokenizer an ordinary token of the prompt is put before it.
    """
    begin = 0
    while begin < len(ids) and ids[begin] in lm.special_ids:
        begin += 1
    head, rest = tuple(ids[:begin]), tuple(ids[begin:])
    if lm.tokenizer is None:
        extra: dict[str, tuple[int, ...]] = {
            f"its token {each} before it": (each,) for each in dict.fromkeys(rest[:2])
        }
    else:
        extra = {name: _pieces(lm, text) for name, text in BEFORE.items()}
    found = [Variant(name, (*head, *more, *rest)) for name, more in extra.items() if more]
    limit = longest(lm)
    return [each for each in found if limit is None or len(each.ids) <= limit]


def given(lm: LanguageModel, texts: Sequence[str], where: str) -> list[Variant]:
    """Return paraphrases as the model reads them.

    Raises:
        ConfigError: one is longer than what the model reads, or has no tokens.
    """
    found, limit = [], longest(lm)
    for text in texts:
        ids = tuple(lm.ids(text).tolist())
        ids = ids[: len(ids) - len(lm.suffix)]
        if not ids or limit is not None and len(ids) > limit:
            raise ConfigError(
                f"{where}: {text[:40]!r} has {len(ids)} tokens; {lm.name} reads 1 to {limit}; change it"
            )
        found.append(Variant(text, ids))
    return found


def stability(
    trials: Trials,
    latents: Sequence[tuple[int, int]],
    weight_T: Floats,
    variants: Sequence[Variant],
    seed: int,
) -> list[Stability]:
    """Cut latents, wherever each fires, in the prompt and in variants of it.

    Args:
        latents: by layer and number.
        weight_T: of the watched tokens' logits in the metric.
    """
    fires_M, effect_M = cut_everywhere(trials, latents, weight_T)
    best = int(trials.clean.logit_NV[0].argmax())
    found = []
    for each in variants:
        ids_S = torch.tensor(each.ids, dtype=torch.int64)
        there = Trials(trials.sites, trials.lm, ids_S, trials.tokens, batch=trials.batch)
        other_M, moved_M = cut_everywhere(there, latents, weight_T)
        both_M = fires_M & other_M
        agree = agreement(effect_M[both_M], moved_M[both_M], seed)
        says = int(there.clean.logit_NV[0].argmax()) == best
        found.append(Stability(each, says, int(other_M.sum()), len(latents), agree))
    return found


def cut_everywhere(
    trials: Trials, latents: Sequence[tuple[int, int]], weight_T: Floats
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], Floats]:
    """Return which latents fire [M], and what cutting each at all positions does to the metric [M]."""
    keys = []
    for layer, latent in latents:
        codes = trials.at(layer)[1]
        rows = codes.rows[codes.latents == latent].tolist()
        keys.append([(layer, row, latent) for row in rows if bool(trials.used_at(layer)[row])])
    flat = iter(firing(trials, [key for own in keys for key in own]))
    changes = [[next(flat).scaled(0.0) for _ in own] for own in keys]
    outcome = trials.run(changes)
    fires_M = np.array([len(own) > 0 for own in keys], dtype=bool)
    effect_M: Floats = outcome.logit_CT.numpy() @ weight_T
    return fires_M, effect_M


def longest(lm: LanguageModel) -> int | None:
    """Return how many tokens the model reads; None: it does not say."""
    from sae_dist.llm.architecture import text_part

    found: Any = getattr(text_part(lm.model.config), "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None


def _pieces(lm: LanguageModel, text: str) -> tuple[int, ...]:
    ids = lm.tokenizer(without_surrogates(text), add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(each for each in ids if each not in lm.special_ids)
