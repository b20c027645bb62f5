"""The nodes that are cut: those with the largest predicted effect, and controls of equal size for each.

Letters: as core.types; M nodes, D the width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_dist.graph.check.predicted import Floats, Predicted
from sae_dist.graph.check.seen import Change
from sae_dist.graph.check.trials import Trials
from sae_dist.interpret.codes import Codes

NEAREST = 4
"""A control is drawn from so many active latents that are most alike."""
ROWS = 4096
"""So many rows of a decoder are read at once."""


@dataclass(frozen=True)
class Firing:
    """A latent that fires at a position.

    Attributes:
        code: its value at the prompt.
        row_E: its row of the decoder.
        rate: on how many held-out tokens it fires; None: never measured.
    """

    layer: int
    position: int
    latent: int
    code: float
    row_E: Tensor
    rate: float | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        """The layer, the position and the latent."""
        return self.layer, self.position, self.latent

    @property
    def size(self) -> float:
        """The norm of what it adds to the activations."""
        return abs(self.code) * float(self.row_E.norm())

    def scaled(self, factor: float) -> Change:
        """Return the change that multiplies its code by a factor; 0 cuts it."""
        return Change(self.layer, self.position, (factor - 1) * self.code * self.row_E)


def top_nodes(predicted: Predicted, effect_T: Floats, number: int) -> tuple[list[int], list[int]]:
    """Return the latent nodes with the largest predicted effect, largest first; none that has no effect.

    Returns:
        Those, and as many of the others, from the next largest to the smallest at even distances.
    """
    own = [n for n in predicted.latents if effect_T[n] != 0]
    own = sorted(own, key=lambda n: (-abs(effect_T[n]), n))
    rest = own[number:]
    at = np.linspace(0, len(rest) - 1, min(number, len(rest))).round().astype(int)
    return own[:number], [rest[place] for place in at]


def firing(trials: Trials, keys: Sequence[tuple[int, int, int]]) -> list[Firing]:
    """Return latents with their codes at the prompt and their rows; a latent that is silent has code 0."""
    found: list[Firing | None] = [None] * len(keys)
    for layer in sorted({key[0] for key in keys}):
        mine = [n for n, key in enumerate(keys) if key[0] == layer]
        d, codes = trials.at(layer)
        some, rate_F = d.some([keys[n][2] for n in mine]), d.rate
        for place, n in enumerate(mine):
            _, position, latent = keys[n]
            rate = None if rate_F is None else float(rate_F[latent])
            row_E = some.W_dec_IE[place]
            found[n] = Firing(layer, position, latent, _code(codes, position, latent), row_E, rate)
    return [each for each in found if each is not None]


def controls(
    trials: Trials, chosen: Sequence[Firing], effect: dict[tuple[int, int, int], float], seed: int
) -> list[Firing | None]:
    """Draw for each node another active latent of its layer with little predicted effect.

    It is one of those most alike in size and, where known, in rate, at the same position if there are any;
    none is drawn twice. None: there is no other.

    Args:
        effect: predicted, by layer, position and latent; that of others is 0.
    """
    draw = np.random.default_rng(seed)
    taken = {each.key for each in chosen}
    layers = {layer: _Active(trials, layer, effect) for layer in sorted({each.layer for each in chosen})}
    found: list[Firing | None] = []
    for each in chosen:
        near = layers[each.layer].nearest(each, taken)
        key = near[int(draw.integers(len(near)))] if near else None
        if key is not None:
            taken.add(key)
        found.append(None if key is None else firing(trials, [key])[0])
    return found


class _Active:
    """The codes of a layer at the prompt with less predicted effect than half of them."""

    def __init__(self, trials: Trials, layer: int, effect: dict[tuple[int, int, int], float]):
        d, codes = trials.at(layer)
        positions, latents = codes.rows.tolist(), codes.latents.tolist()
        self.keys = [(layer, position, latent) for position, latent in zip(positions, latents, strict=True)]
        strength_P = np.array([abs(effect.get(key, 0.0)) for key in self.keys])
        used_P = trials.used_at(layer)[codes.rows.cpu()].numpy()
        self.weak_P = used_P & (strength_P <= np.median(strength_P[used_P] if used_P.any() else [0.0]))
        unique, place_P = codes.latents.unique(return_inverse=True)
        norms = [d.W_dec[part].norm(dim=1) for part in unique.split(ROWS)] or [codes.values]
        self.size_P = _array(codes.values.abs() * torch.cat(norms)[place_P])
        rate_F = d.rate
        self.rate_P = np.zeros(len(self.keys)) if rate_F is None else _array(rate_F[codes.latents.cpu()])
        self.position_P = np.array(positions, dtype=np.int64)

    def nearest(self, one: Firing, taken: set[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Return those most alike to a latent, but for those that are taken."""
        apart_P = np.abs(np.log(np.maximum(self.size_P, 1e-30) / max(one.size, 1e-30)))
        if one.rate:
            known_P = self.rate_P > 0
            apart_P[known_P] += np.abs(np.log(self.rate_P[known_P] / one.rate))
        order = [
            n for n in np.argsort(apart_P, kind="stable") if self.weak_P[n] and self.keys[n] not in taken
        ]
        # Elsewhere a latent acts on the last token through attention alone.
        here = [n for n in order if self.position_P[n] == one.position]
        return [self.keys[n] for n in (here or order)[:NEAREST]]


def random_directions(chosen: Sequence[Firing], seed: int) -> list[Change]:
    """Return changes of the same size as cutting each node, at its place, in random directions."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for each in chosen:
        direction_E = torch.randn(len(each.row_E), generator=draw, dtype=torch.float64).to(each.row_E)
        found.append(Change(each.layer, each.position, direction_E * (each.size / direction_E.norm())))
    return found


def _array(value: Tensor) -> Floats:
    found: Floats = value.detach().double().cpu().numpy()
    return found


def _code(codes: Codes, position: int, latent: int) -> float:
    own = slice(int(codes.indptr[position]), int(codes.indptr[position + 1]))
    return float(codes.values[own][codes.latents[own] == latent].sum())
