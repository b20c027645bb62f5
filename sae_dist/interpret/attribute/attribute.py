"""The codes of a text by what they do to the token after it, each with proof.

Gradient times code at the clean point ranks them; those that are shown are removed for real.
Letters: as core.types; C codes that are shown, I latents that fire, M controls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.attribution import Agreement, Attribution
from sae_dist.interpret.attribute.certificate import certificate, differences
from sae_dist.interpret.attribute.controls import (
    Bound,
    beyond,
    equally_rare,
    random_removals,
    reaches,
    removals,
    repeated,
)
from sae_dist.interpret.attribute.metrics import Function, Metric, Question, question
from sae_dist.interpret.attribute.reading import HALF, Change, Reading, gradients, lost, reading
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.explain import labels_of
from sae_dist.interpret.explaining.explanation import Columns
from sae_dist.interpret.model import as_model
from sae_dist.interpret.statistics import Floats, agreement

EXACT = 50
MOST_EXACT = 100_000


def attribute(
    dictionary: Dictionary,
    lm: Any,
    text: Any,
    *,
    metric: Metric | Function | None = None,
    exact: int = EXACT,
    seed: int = 0,
    labels: Mapping[int, str] | None = None,
    force: bool = False,
) -> Attribution:
    """Rank the codes at a text's tokens by what they do to a metric of the token after it.

    The text is read as a document alone is in training and evaluation; special tokens and outliers do not
    count, since no dictionary was trained on them. A model in 16 bits is computed with in float32.

    Args:
        lm: `sd.model(d)`, or a model of transformers.
        text: a text; messages, which go through the tokenizer's chat template; or token ids, taken as they
            are.
        metric: `sd.logit_diff`, `sd.logit`, or a function of logits [C, V] that gives a number for each row;
            None: the logit of the model's own first choice minus that of its second.
        exact: how many codes are shown and removed for real, and as many controls of each kind.
        seed: of the controls.
        labels: words for latents; None: those that stand beside the atlas of its run, but for rejected ones.
        force: go on with another model than the one that the dictionary was trained on.

    Raises:
        ConfigError: the model is not the dictionary's, or predicts no next token; the text has no token that
            counts, or too many; or the metric names no token, or several in one.
        DataError: activations are not finite.
    """
    check_exact(exact)
    named = labels_of(dictionary, labels)
    found = reading(dictionary, lm, text, force)
    prompt = found.text, tuple(found.ids_S.tolist())
    asked = question(found.session.lm, prompt, metric, found.logit_V)
    made = Maker(found, asked, seed, named, as_model(lm).dtype in HALF)
    return made.attribution(exact)


def check_exact(exact: Any) -> None:
    """Check how many codes are to be removed.

    Raises:
        ConfigError: it is no number of codes.
    """
    if isinstance(exact, bool) or not isinstance(exact, int) or not 0 <= exact <= MOST_EXACT:
        raise ConfigError(f"exact={exact}: give the number of codes to remove, 0 to {MOST_EXACT:,}")


class Maker:
    """A maker of attributions of one text and metric, with any number of codes removed.

    It raises a ConfigError where the metric is not finite.

    Attributes:
        effect_P: gradient times code: what the metric loses without it, to first order.
        order_P: codes, greatest effect first.
    """

    def __init__(self, found: Reading, asked: Question, seed: int, labels: Mapping[int, str], copied: bool):
        self._found, self._asked, self._seed, self._labels = found, asked, seed, labels
        self._copied = copied
        clean_C, grad_1SE = gradients(found, asked, torch.zeros_like(found.codes_SE)[None])
        if not bool(clean_C.isfinite().all()) or not bool(grad_1SE.isfinite().all()):
            raise ConfigError(
                f"{asked.words} is {clean_C.item():g} after this text, or its gradient is not finite; choose "
                "another metric, such as sd.logit_diff of two tokens"
            )
        self.effect_P = found.dot(grad_1SE[0])
        self.order_P = self.effect_P.abs().argsort(descending=True, stable=True)
        self._error_S = (found.error_SE.double() * grad_1SE[0].double()).sum(1)
        self._steep_S = grad_1SE[0].double().norm(dim=1)
        self.certificate, self._along_P, self._error_along_S = certificate(found, asked)
        self.differences = differences(found, asked, self.effect_P, self.order_P)
        self._rate_P = self._rates()

    def _rates(self) -> Tensor | None:
        d = self._found.session.dictionary
        rate_F = d.rate
        return None if rate_F is None else rate_F[self._found.latent_P.to(rate_F.device)].double().cpu()

    def attribution(self, exact: int) -> Attribution:
        """Return the attribution with so many codes, or all, removed for real."""
        found, seed = self._found, self._seed
        shown_C = self.order_P[:exact]
        other_C = torch.from_numpy(equally_rare(self._usual(), shown_C.cpu().numpy(), seed)).to(shown_C)
        lost_C = self._lost(removals(found, shown_C))
        lost_M = self._lost(removals(found, other_C))
        steepest_C = self._steepest(shown_C)
        # Elsewhere no direction does anything.
        random_M = repeated(shown_C[torch.from_numpy(steepest_C > 0).to(shown_C.device)])
        share_M = self._lost(random_removals(found, random_M, seed)) / self._steepest(random_M)
        bounds = Bound.of(lost_M), Bound.of(share_M)
        columns = self._columns(shown_C, lost_C, reaches(*bounds, steepest_C))
        effect_P = self.effect_P.cpu().numpy()
        return Attribution(
            about=self._about(len(shown_C)),
            certificate=self.certificate,
            differences=self.differences,
            shown=Agreement(len(shown_C), *agreement(effect_P[shown_C.cpu()], lost_C)),
            others=Agreement(len(other_C), *agreement(effect_P[other_C.cpu()], lost_M)),
            equal=bounds[0],
            random=bounds[1],
            codes_seen=columns,
            tokens_seen=self._tokens(),
            again=self.attribution,
        )

    def _steepest(self, place_C: Tensor) -> Floats:
        """Return the most that any direction of some codes' sizes would do in their place, to first order."""
        found = self._found
        size_C = found.directions(place_C).double().norm(dim=1)
        steepest: Floats = (size_C * self._steep_S[found.position_P[place_C]]).cpu().numpy()
        return steepest

    def _lost(self, changes: Sequence[Change]) -> Floats:
        found: Floats = lost(self._found, self._asked, changes).cpu().numpy()
        return found

    def _usual(self) -> Floats:
        """Return how often the latent of each code fires: its rate, or on how many tokens of this text."""
        found = self._found
        count_I = torch.bincount(found.row_P, minlength=len(found.rows_IE))
        here_P = count_I[found.row_P].double().cpu()
        if self._rate_P is None:
            return here_P.numpy()
        # One that was never seen to fire is as rare as the rarest.
        least = self._rate_P[self._rate_P > 0].min() if bool((self._rate_P > 0).any()) else 1.0
        return self._rate_P.clamp(min=float(least)).numpy()

    def _columns(self, shown_C: Tensor, lost_C: Floats, reach_C: list[float | None]) -> Columns:
        found, order_P = self._found, self.order_P.cpu()
        position_P, latent_P = found.position_P.cpu()[order_P], found.latent_P.cpu()[order_P]
        P, C = len(order_P), len(shown_C)
        latents, pieces = latent_P.tolist(), found.tokens.pieces
        return {
            "position": position_P.tolist(),
            "token": [pieces[each] for each in position_P.tolist()],
            "latent": latents,
            "label": [self._labels.get(each) for each in latents],
            "code": found.value_P.cpu()[order_P].tolist(),
            "rate": [None] * P if self._rate_P is None else self._rate_P[order_P].tolist(),
            "effect": self.effect_P.cpu()[order_P].tolist(),
            "exact": [*lost_C.tolist(), *[None] * (P - C)],
            "controls": [*reach_C, *[None] * (P - C)],
            "beyond_controls": [*beyond(lost_C, reach_C), *[None] * (P - C)],
            "along": self._along_P.cpu()[order_P].tolist(),
        }

    def _tokens(self) -> Columns:
        found, tokens = self._found, self._found.tokens
        S = len(tokens.pieces)
        position_P = found.position_P
        zero_S = self.effect_P.new_zeros(S)
        return {
            "position": list(range(S)),
            "token_id": tokens.ids_S.tolist(),
            "token": tokens.pieces,
            "special": tokens.special_S.tolist(),
            "outlier": tokens.outlier_S.tolist(),
            "counted": tokens.counted_S.tolist(),
            "codes": torch.bincount(position_P, minlength=S).tolist(),
            "effect": zero_S.index_add(0, position_P, self.effect_P).tolist(),
            "error_effect": self._error_S.tolist(),
            "along": zero_S.index_add(0, position_P, self._along_P).tolist(),
            "error_along": self._error_along_S.tolist(),
        }

    def _about(self, shown: int) -> dict[str, Any]:
        found, asked = self._found, self._asked
        session, lm, d = found.session, found.session.lm, found.session.dictionary
        notes = []
        if self._copied:
            notes.append(f"{lm.name} was given in 16 bits; a copy of it in float32 computed this")
        if self._rate_P is None:
            notes.append("rates were never measured: controls fire on as many tokens of this text")
        left_out = int((~found.tokens.counted_S).sum())
        return {
            "dictionary": repr(d),
            "folder": str(d.place.folder),
            "model": lm.name,
            **session.hooks,
            "metric": asked.words,
            "target": _token(lm, asked.target),
            "against": _token(lm, asked.against),
            "tokens": len(found.ids_S),
            "left_out": left_out,
            "codes": len(found.value_P),
            "latents": len(found.rows_IE),
            "shown": shown,
            "seed": self._seed,
            "dtype": str(found.codes_SE.dtype).removeprefix("torch."),
            "notes": notes,
        }


def _token(lm: Any, token: int | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token, "token": lm.pieces([token])[0]}
