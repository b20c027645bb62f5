"""The number that is attributed: of the logits behind a prompt's last token.

Letters: as core.types; C copies of the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import visible
from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.study.prompts import following_ids

Named = str | int
"""A token: its text, with the space before it if it has one, or its id."""
Function = Callable[[Tensor], Tensor]
"""A function of logits [C, V] that gives a number for each of C copies, each from its own row."""
BY_ID = "id:"


@dataclass(frozen=True)
class Metric:
    """A logit, minus another or minus the mean of all.

    Attributes:
        target: whose logit it is; None: of the token that the model finds likeliest.
        against: what is taken away; None: the mean of all logits, or of the model's own choice its second.
    """

    target: Named | None = None
    against: Named | None = None


def logit(target: Named) -> Metric:
    """Return a metric: the logit of a token minus the mean of all logits.

    Args:
        target: its text, such as " Paris", or its id.
    """
    return Metric(target)


def logit_diff(target: Named, against: Named) -> Metric:
    """Return a metric: the logit of a token minus that of another.

    Args:
        target, against: their texts, such as " Paris", or their ids.
    """
    return Metric(target, against)


@dataclass(frozen=True)
class Question:
    """A metric for one prompt of a model.

    Attributes:
        words: what it is.
        target, against: ids of tokens; None: there is none.
        function: of the logits; see `Function`.
    """

    words: str
    target: int | None
    against: int | None
    function: Function

    def __call__(self, logit_CV: Tensor) -> Tensor:
        """Return the metric of each copy [C].

        Raises:
            ConfigError: a function of the caller's does not give one number for each.
        """
        found = self.function(logit_CV)
        if not isinstance(found, Tensor) or found.shape != logit_CV.shape[:1]:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"metric gives {shape} for logits of shape {list(logit_CV.shape)}; it must give a number for "
                "each row, such as lambda logits: logits[:, 123]"
            )
        return found


def question(
    lm: LanguageModel,
    prompt: tuple[str, tuple[int, ...]],
    metric: Metric | Function | None,
    logit_V: Tensor,
) -> Question:
    """Find the tokens that a metric names.

    Args:
        prompt: its text, empty if it was given as ids, and its ids.
        metric: None: the model's own first choice against its second.
        logit_V: what the model says after the prompt.

    Raises:
        ConfigError: a text is not one token, an id does not exist, or both tokens are the same.
    """
    if callable(metric):
        return Question(f"metric {getattr(metric, '__name__', 'of the caller')}", None, None, metric)
    if metric is not None and not isinstance(metric, Metric):
        raise ConfigError(
            f"metric={metric!r} is none; write sd.logit_diff(' Paris', ' Rome'), sd.logit(' Paris') or a "
            "function of logits"
        )
    named = metric or Metric()
    if named.target is None and named.against is not None:
        raise ConfigError(f"against={named.against!r} needs a target")
    own, V = named.target is None, len(logit_V)
    against: int | None = None
    if named.target is None:
        target, against = (int(each) for each in logit_V.topk(2).indices)
    else:
        target = _token(lm, prompt, named.target, "target", V)
        if named.against is not None:
            against = _token(lm, prompt, named.against, "against", V)
    if target == against:
        raise ConfigError(
            f"target and against are both token {target}, {_shown(lm, target)}: their difference is always 0"
        )
    first = "the model's own first choice " if own else ""
    behind = "the mean logit" if against is None else f"that of {'its second ' if own else ''}"
    words = f"logit of {first}{_shown(lm, target)} minus {behind}"
    words += "" if against is None else _shown(lm, against)
    return Question(words, target, against, _function(target, against))


def named(text: str | None) -> Named | None:
    """Return a token as it is written in a shell: `id:123`, else a text."""
    digits = (text or "").removeprefix(BY_ID)
    return int(digits) if text is not None and text.startswith(BY_ID) and digits.isdecimal() else text


def _function(target: int, against: int | None) -> Function:
    def difference(logit_CV: Tensor) -> Tensor:
        off_C = logit_CV.mean(1) if against is None else logit_CV[:, against]
        return logit_CV[:, target] - off_C

    return difference


def _token(
    lm: LanguageModel, prompt: tuple[str, tuple[int, ...]], given: Any, key: str, vocabulary: int
) -> int:
    """Return the id of a token that is named.

    Raises:
        ConfigError: it is none, or several.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < vocabulary:
            raise ConfigError(f"{key}={given}: the tokens of {lm.name} are 0 to {vocabulary - 1}")
        return given
    if not isinstance(given, str):
        raise ConfigError(f"{key}={given!r} is no token; give its text, such as ' Paris', or its id")
    if lm.tokenizer is None:
        raise ConfigError(f"{key}={given!r}: {lm.name} has no tokenizer; give the token's id")
    ids = following_ids(lm, *prompt, given, key)
    if len(ids) > 1:
        parts = ", ".join(f"{_shown(lm, each)} ({each})" for each in ids)
        raise ConfigError(
            f"{key} {visible(repr(given), '')} is {len(ids)} tokens: {parts}; give one of them, by text or "
            f"as {BY_ID}{ids[0]}"
        )
    return ids[0]


def _shown(lm: LanguageModel, token: int) -> str:
    return visible(repr(lm.pieces([token])[0]), "") if lm.tokenizer is not None else f"token {token}"


def last_logits(found: Tensor) -> Tensor:
    """Return the logits behind the last token [C, V], in float32 or better."""
    logit_CV = found[:, -1]
    return logit_CV if logit_CV.dtype == torch.float64 else logit_CV.float()
