"""The activations that pass a model at one prompt, and what changes of single ones move.

Letters: as core.types; C changes, M watched latents at positions, T watched tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.some import SomeLatents
from sae_dist.llm.architecture import text_part


@dataclass(frozen=True)
class Change:
    """A vector [E] that is added to what a layer's target hook passes, at one position."""

    layer: int
    position: int
    delta_E: Tensor


@dataclass(frozen=True)
class Seen:
    """The activations of a forward.

    Attributes:
        x: at each site's hook [N, S, D]; None: it has no dictionary.
        y: at its target hook [N, S, E], before changes.
        logit_NV: after the last token, minus their mean, before any softcap.
        out_NV: the same as the model gives them.
    """

    x: list[Tensor | None]
    y: list[Tensor]
    logit_NV: Tensor
    out_NV: Tensor


@dataclass(frozen=True)
class Outcome:
    """The amounts by which changes moved things.

    Attributes:
        logit_CT: the watched tokens' logits minus the mean logit.
        pre_CM: the watched latents' pre-activations.
        unsaid_C, moved_C: of the change of later layers' outputs, the squared norm of what dictionaries do
            not reproduce, and the squared norm; 0 unless asked for.
    """

    logit_CT: Tensor
    pre_CM: Tensor
    unsaid_C: Tensor
    moved_C: Tensor


def rows_of(some: SomeLatents) -> Tensor:
    """Return the rows with which latents' codes grow where they fire [I, D]."""
    return some.W_enc_ID * ratio_of(some)[:, None]


def ratio_of(some: SomeLatents) -> Tensor:
    """Return how much codes of latents that fire grow with W_enc x [I]: 1 but for gated ones."""
    for ratio in some.sae.form.biases.values():
        if ratio is not None:
            return some.sae.vectors[ratio].exp()
    return some.W_enc_ID.new_ones(len(some.latents))


def softcapped(lm: LanguageModel) -> bool:
    """Return whether a model bounds its logits."""
    return bool(getattr(text_part(lm.model.config), "final_logit_softcapping", None))


@contextmanager
def last_logits(lm: LanguageModel) -> Iterator[list[Tensor]]:
    """Keep the logits [N, V] after the last token of a forward, as the head makes them, before a softcap.

    Raises:
        ConfigError: the model has no head.
    """
    head = lm.model.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{lm.name} has no head that predicts tokens; a graph needs one")
    kept: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, _args, out: kept.append(out[:, -1].detach()))
    try:
        yield kept
    finally:
        handle.remove()


def untold(d: Dictionary, x_NSD: Tensor, y_NSE: Tensor, later: list[int]) -> tuple[Tensor, Tensor]:
    """Return, of trials, the squared norm of what a dictionary misses of a layer's change, and of the change.

    Args:
        later: the numbers of the trials; row 0 is the prompt as it is, row n + 1 trial n.
    """
    at = [0, *(n + 1 for n in later)]
    own_NSD, real_NSE = x_NSD[at].to(d.dtype), y_NSE[at].to(d.dtype)
    said_NSE = d.reconstruct(own_NSD)
    move_CSE, told_CSE = (each[1:] - each[:1] for each in (real_NSE, said_NSE))
    missed_C = (move_CSE - told_CSE).double().square().sum((1, 2)).cpu()
    return missed_C, move_CSE.double().square().sum((1, 2)).cpu()
