"""One text under a model whose activations at a dictionary's place can be moved, and the parts of those.

    y = sum over latents of z_i d_i  +  e  +  base

base is b_dec, and W_skip x in a transcoder with skip. What comes before the place does not change, so that
every intervention on codes and error is a change of y.

Letters: as core.types; C copies of the text, or codes of it; I latents that fire on it; q positions; p some
of the P codes.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.attribute.metrics import Question, last_logits
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.explain import encoded
from sae_dist.interpret.explaining.parts import Tokens
from sae_dist.interpret.explaining.rows import document_ids
from sae_dist.interpret.forward import Forward
from sae_dist.interpret.model import LanguageModel, as_model
from sae_dist.interpret.session import Session
from sae_dist.interpret.study.prompts import prompt_ids

FORWARD_TOKENS, BACKWARD_TOKENS = 1024, 512
"""So many tokens are computed at once, of copies of a text; however long it is, one copy with gradients."""
FEWEST_COPIES = 3
"""So many changed copies are computed at least beside the one as it is."""
GATHERED_BYTES = 64 << 20
HALF = (torch.float16, torch.bfloat16)

Change = tuple[Tensor, Tensor]
"""Positions [q] of a text, and by how much their activations move [q, E]."""


class Moved(Session):
    """A model whose activations at the place that a dictionary reconstructs are moved.

    Attributes:
        delta_CSE: by how much; None: not.
    """

    delta_CSE: Tensor | None = None

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Return the moved activations; see `Session.act`."""
        return y_NSE if self.delta_CSE is None else (y_NSE + self.delta_CSE.to(y_NSE.device)).to(y_NSE.dtype)


@dataclass(frozen=True, eq=False)
class Reading:
    """A text, what the dictionary finds on its tokens that count, and the model to move.

    Attributes:
        text: as it was given; empty: as token ids.
        position_P, latent_P, value_P: of each code.
        rows_IE, row_P: the decoder rows of the latents that fire, and which of them each code has.
        error_SE: what the dictionary does not explain; 0 at tokens that do not count.
        codes_SE: what all codes add together; 0 at tokens that do not count.
        logit_V: what the model says after the text.
    """

    session: Moved
    text: str
    ids_S: Tensor
    tokens: Tokens
    position_P: Tensor
    latent_P: Tensor
    value_P: Tensor
    rows_IE: Tensor
    row_P: Tensor
    error_SE: Tensor
    codes_SE: Tensor
    logit_V: Tensor

    @property
    def whole_SE(self) -> Tensor:
        """The sum of what codes and error add."""
        return self.codes_SE + self.error_SE

    def directions(self, place_C: Tensor) -> Tensor:
        """Return what some codes add [C, E]."""
        return self.value_P[place_C, None] * self.rows_IE[self.row_P[place_C]]

    def dot(self, weight_SE: Tensor) -> Tensor:
        """Return the product of what each code adds with a weight at its position [P], in float64."""
        found_P = torch.empty(len(self.value_P), dtype=torch.float64, device=weight_SE.device)
        step = max(1, GATHERED_BYTES // (16 * weight_SE.shape[1]))
        for first in range(0, len(found_P), step):
            own = slice(first, first + step)
            row_pE, weight_pE = self.rows_IE[self.row_P[own]], weight_SE[self.position_P[own]]
            found_P[own] = self.value_P[own].double() * (row_pE.double() * weight_pE.double()).sum(1)
        return found_P


def reading(dictionary: Dictionary, lm: Any, text: Any, force: bool = False) -> Reading:
    """Read a text and find its codes, as evaluation does.

    Args:
        text: a text, without the special tokens behind it; messages; or token ids, taken as they are.

    Raises:
        ConfigError: the model is not the dictionary's, or predicts no next token, or cannot compute in
            float32; or the text has no token that counts, or too many.
        DataError: activations are not finite.
    """
    session = Moved(dictionary, wide_model(as_model(lm)), force)
    lm = session.lm
    ids_S = document_ids(session, text)
    if isinstance(text, str) and lm.suffix:
        ids_S = document_ids(session, list(prompt_ids(lm, text)))
    tokens, codes, x_SD, y_SE = encoded(session, ids_S)
    d, wide = session.on(y_SE.device), torch.promote_types(y_SE.dtype, torch.float32)
    x_SD, y_SE = x_SD.to(wide), y_SE.to(wide)
    row_P = codes.rows
    counted_S = tokens.counted_S.to(y_SE.device)
    kept_P = counted_S[row_P]
    latent_I, place_P = codes.latents[kept_P].unique(return_inverse=True)
    position_P, value_P = row_P[kept_P], codes.values[kept_P].to(wide)
    rows_IE = d.W_dec[latent_I].to(wide)
    codes_SE = _summed(len(ids_S), position_P, value_P, rows_IE, place_P)
    base_SE = d.b_dec.to(wide).expand_as(y_SE)
    if d.sae.W_skip_ED is not None:
        base_SE = base_SE + x_SD @ d.sae.W_skip_ED.to(wide).T
    found = Reading(
        session=session,
        text=text if isinstance(text, str) else "",
        ids_S=ids_S,
        tokens=tokens,
        position_P=position_P,
        latent_P=codes.latents[kept_P],
        value_P=value_P,
        rows_IE=rows_IE,
        row_P=place_P,
        error_SE=torch.where(counted_S[:, None], y_SE - base_SE - codes_SE, 0.0),
        codes_SE=codes_SE,
        logit_V=codes_SE.new_empty(0),
    )
    with torch.no_grad():
        return replace(found, logit_V=logits(found, None)[0])


def logits(found: Reading, delta_CSE: Tensor | None) -> Tensor:
    """Return the logits after the text [C, V], in float32 or better, with its activations moved.

    Args:
        delta_CSE: by how much, for each of C copies; None: one copy as it is.
    """
    session, lm = found.session, found.session.lm
    C = 1 if delta_CSE is None else len(delta_CSE)
    given = {
        key: each.expand(C, *each.shape[1:]) if isinstance(each, Tensor) and each.shape[:1] == (1,) else each
        for key, each in lm.as_trained(found.ids_S).items()
    }
    takes = inspect.signature(lm.model.forward).parameters
    given |= {key: value for key, value in (("use_cache", False), ("logits_to_keep", 1)) if key in takes}
    session.delta_CSE = delta_CSE
    with session:
        return last_logits(lm.model(**given).logits)


@torch.no_grad()
def lost(found: Reading, asked: Question, changes: Sequence[Change]) -> Tensor:
    """Return what the metric loses by each change, on the untouched rest of the model [C], in float64."""
    S, E = found.codes_SE.shape
    step = max(FEWEST_COPIES, FORWARD_TOKENS // S - 1)
    parts = []
    for first in range(0, len(changes), step):
        own = changes[first : first + step]
        # The first copy is the text as it is: rounding that depends on the batch is in both.
        delta_CSE = found.codes_SE.new_zeros(len(own) + 1, S, E)
        for number, (position_q, row_qE) in enumerate(own, 1):
            delta_CSE[number, position_q] = row_qE
        value_C = asked(logits(found, delta_CSE)).double()
        parts.append(value_C[:1] - value_C[1:])
    return torch.cat(parts) if parts else found.codes_SE.new_zeros(0, dtype=torch.float64)


def gradients(found: Reading, asked: Question, delta_CSE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the metric of each copy [C] and its gradient with respect to its activations [C, S, E].

    Raises:
        ConfigError: the metric does not depend on them.
    """
    values, grads = [], []
    step = max(1, BACKWARD_TOKENS // delta_CSE.shape[1])
    for first in range(0, len(delta_CSE), step):
        own_CSE = delta_CSE[first : first + step].detach().requires_grad_()
        with torch.enable_grad():
            value_C = asked(logits(found, own_CSE))
            grad = None
            if value_C.requires_grad:
                (grad,) = torch.autograd.grad(value_C.sum(), [own_CSE], allow_unused=True)
        if grad is None:
            raise ConfigError(
                f"{asked.words} does not depend on {list(found.session.hooks.values())[-1]}; choose another "
                "hook, or a metric of logits that is differentiable"
            )
        values.append(value_C.detach().double())
        grads.append(grad)
    return torch.cat(values), torch.cat(grads)


def _summed(S: int, position_P: Tensor, value_P: Tensor, rows_IE: Tensor, place_P: Tensor) -> Tensor:
    """Return the sum of decoder rows times codes at each position [S, E]."""
    counts_S = torch.bincount(position_P, minlength=S)
    if not len(value_P):
        return rows_IE.new_zeros(S, rows_IE.shape[1])
    return torch.nn.functional.embedding_bag(
        place_P, rows_IE, counts_S.cumsum(0) - counts_S, mode="sum", per_sample_weights=value_P
    )


def wide_model(lm: LanguageModel) -> LanguageModel:
    """Return a model that computes in float32 or better: itself, or a copy.

    Raises:
        ConfigError: it predicts no next token, is in training mode, or cannot be copied so.
    """
    if not lm.causal or lm.model.get_output_embeddings() is None:
        raise ConfigError(f"{lm.name} predicts no next token: there are no logits to attribute")
    if lm.model.training:
        raise ConfigError(f"{lm.name} is in training mode, where dropout draws anew each time; call .eval()")
    if not any(each.dtype in HALF for each in lm.model.parameters()):
        return lm
    placed = set((getattr(lm.model, "hf_device_map", None) or {}).values())
    if getattr(lm.model.config, "quantization_config", None) is not None or len(placed) > 1:
        raise ConfigError(
            f"{lm.name} computes in {lm.dtype}, where effects are rounding; load it in float32: "
            "sd.model(d, dtype=torch.float32)"
        )
    return replace(lm, model=copy.deepcopy(lm.model).float())
