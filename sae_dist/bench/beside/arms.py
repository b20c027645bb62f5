"""The ways in which a dictionary runs beside a model, each with the least work that it needs.

Letters: as core.types.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward
from sae_dist.interpret.interventions import add, clamp
from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.session import Session, rows_at

BARE = "model alone"


@dataclass(frozen=True)
class Arm:
    """One way: how it begins, and its floor beyond the model's own.

    Attributes:
        begin: makes the context in which forwards run.
        operations: FLOP per token.
        weights: bytes of weights that a forward of B tokens reads, as a function of B.
    """

    name: str
    begin: Callable[[], AbstractContextManager[Any]]
    operations: float
    weights: Callable[[int], float]


class Encoding(Session):
    """A model whose activations are encoded, and stay as they are."""

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Encode what passes; see `Session.act`."""
        d = self.on(x_NSD.device)
        d.encode(rows_at(x_NSD, forward.real_NS).to(d.dtype))
        return y_NSE


def arms(d: Dictionary, lm: LanguageModel, named: list[int], threshold: float | None) -> list[Arm]:
    """Return every way, the bare model first.

    Args:
        named: the latents on the watch list; threshold: of TopK, see `interpret.watch`.
    """
    D, E, F, size = d.width, d.W_dec.shape[1], d.num_latents, d.W_dec.element_size()
    one = by_rate(d, 1)[0]
    codes, encoder = codes_of_a_row(d), float(F * D * size)
    rows = float(len(named) * D * size)
    return [
        Arm(BARE, nullcontext, 0.0, lambda _: 0.0),
        Arm(
            f"watch {len(named)}",
            lambda: d.watch(lm, named, threshold=threshold, check=0),
            2.0 * len(named) * D,
            lambda _: rows,
        ),
        Arm("steer, add", lambda: d.steer(lm, {one: add(1.0)}), 2.0 * E, lambda _: E * size),
        Arm("steer, clamp", lambda: d.steer(lm, {one: clamp(1.0)}), 2.0 * (D + E), lambda _: (D + E) * size),
        Arm("encode", lambda: Encoding(d, lm, False), 2.0 * D * F, lambda _: encoder),
        Arm(
            "splice, with error",
            lambda: d.attach(lm, error=True),
            2.0 * D * F + 2.0 * codes * E,
            lambda tokens: encoder + min(tokens * codes, F) * E * size,
        ),
    ]


def by_rate(d: Dictionary, number: int) -> list[int]:
    """Return latents that fire, evenly spread by how often they do; of unknown rates, by their number."""
    rate_F = d.rate
    order = torch.arange(d.num_latents)
    if rate_F is not None and bool((rate_F > 0).any()):
        order = rate_F.argsort(stable=True)[int((rate_F == 0).sum()) :]
    at = [(2 * each + 1) * len(order) // (2 * number) for each in range(number)]
    return sorted({int(order[each]) for each in at})


def codes_of_a_row(d: Dictionary) -> float:
    """Return how many codes a row has: k, or what was measured; 0 if neither is known."""
    if d.k is not None:
        return float(d.k)
    return 0.0 if d.rate is None else float(d.rate.sum())
