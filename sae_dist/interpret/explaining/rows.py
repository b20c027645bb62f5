"""The activations of one document, computed as training and evaluation compute them.

Letters: as core.types.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.interpret.session import Session
from sae_dist.llm.architecture import text_part
from sae_dist.llm.facts import context_of
from sae_dist.llm.hooks import Stop, attach, per_token


def document_ids(session: Session, text: Any) -> Tensor:
    """Return the token ids of a text [S], with the special tokens around it that training had.

    Raises:
        ConfigError: it has no token, or more than the model reads.
    """
    lm = session.lm
    _check_kind(text)
    ids_S = lm.ids(text) if len(text) else torch.zeros(0)
    limit = lm.facts.context if lm.facts is not None else context_of(lm.base, text_part(lm.model.config))
    if not len(ids_S):
        raise ConfigError("the text is empty; give a text with at least one token")
    if limit is not None and len(ids_S) > limit:
        raise ConfigError(
            f"the text has {len(ids_S):,} tokens, special ones included, and {lm.name} reads at most "
            f"{limit:,}; give a shorter text, or its parts one by one"
        )
    return ids_S


def _check_kind(text: Any) -> None:
    """Check that what is to be read is a text, messages, or token ids.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(text, str):
        return
    if isinstance(text, Tensor):
        if text.dim() == 1 and not text.is_floating_point() and text.dtype != torch.bool:
            return
    elif isinstance(text, Sequence) and not isinstance(text, bytes):
        if all(isinstance(each, int) and not isinstance(each, bool) for each in text):
            return
        if all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in text):
            return
    raise ConfigError(
        f"a {type(text).__name__} cannot be explained; give a text, messages with role and content, or a "
        "list of token ids"
    )


@torch.no_grad()
def activations(session: Session, ids_S: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model up to the hook.

    Returns:
        The activations at the hook [S, D], and at a transcoder's target [S, E]; of an autoencoder the former
        twice.

    Raises:
        ConfigError: they are not what the dictionary is for.
        DataError: they are not finite.
    """
    lm, caught = session.lm, {}

    def catch(x: Tensor, key: str) -> Tensor:
        # A module that runs several times in a forward is captured the first time. A copy: the forward
        # between the hooks might write into the tensor.
        if key not in caught:
            caught[key] = per_token(x, (1, len(ids_S)))[0].clone()
        if len(caught) == len(session.hooks):
            raise Stop
        return x

    handles = [attach(lm.base, hook, partial(catch, key=key), key) for key, hook in session.hooks.items()]
    try:
        lm.reader(**lm.as_trained(ids_S))
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for key, hook in session.hooks.items():
        if key not in caught:
            raise ConfigError(
                f"{lm.name} does not run {key}={hook} when it reads a text; choose another hook"
            )
    x_SD, y_SE = caught["hook"], caught.get("target_hook", caught["hook"])
    _check(session, x_SD, y_SE)
    return x_SD, y_SE


def _check(session: Session, x_SD: Tensor, y_SE: Tensor) -> None:
    d, name = session.dictionary, session.lm.name
    wanted = {"hook": (x_SD, d.width), "target_hook": (y_SE, len(d.b_dec))}
    for key, hook in session.hooks.items():
        x, width = wanted[key]
        if x.shape[-1] != width:
            raise ConfigError(
                f"{hook} of {name} has activations of width {x.shape[-1]}, the dictionary is for {width}; "
                "give the model that it was trained on"
            )
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"the activations at {hook} of {name} are not finite; load it with dtype=float32")
