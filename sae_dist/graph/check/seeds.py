"""The latents of a graph in dictionaries of another training: whether they are there, and do the same.

Letters: as core.types; M latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check.agree import Agreement, agreement
from sae_dist.graph.check.chosen import firing
from sae_dist.graph.check.measured import Cut
from sae_dist.graph.check.predicted import Floats
from sae_dist.graph.check.trials import Trials
from sae_dist.graph.sites import Site
from sae_dist.interpret.dictionary import Dictionary

ALIKE = 0.7
"""The cosine of decoder rows from which two latents count as the same."""
ROWS = 8192


@dataclass(frozen=True)
class Seeds:
    """The latents of a graph as they are found again in other dictionaries.

    Attributes:
        name: of the other dictionaries.
        found: how many have a decoder row there with a cosine of at least ALIKE.
        fire: how many of those fire at the same place.
        num: how many were looked for.
        share: of the influence of all that were looked for, what belongs to those that also fire.
        chance: how many random directions would have been found.
        cosine_M: the largest cosine of each.
        latent_M: the latent with that.
        agreement: of cutting each there with cutting it here, over those that fire.
    """

    name: str
    found: int
    fire: int
    num: int
    share: float
    chance: int
    cosine_M: Floats
    latent_M: list[int]
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""
        return {
            "set": self.name,
            "cosine_at_least": ALIKE,
            "found": self.found,
            "fire": self.fire,
            "latents": self.num,
            "share_of_influence": self.share,
            "random_directions_found": self.chance,
        } | self.agreement.to_json()


def seeds(
    trials: Trials,
    cuts: Sequence[Cut],
    influence: Sequence[float],
    weight_T: Floats,
    others: Sequence[Site],
    name: str,
    seed: int,
) -> Seeds:
    """Look for the latents of a graph in other dictionaries for the same layers, and cut them there.

    Args:
        cuts: the latents, and what cutting each here does.

    Raises:
        ConfigError: the others are not for the same places of the model.
    """
    chosen, effect_M = [each.firing for each in cuts], np.array([each.cut for each in cuts])
    check_places(trials.sites, others, name)
    there = Trials(others, trials.lm, trials.ids_S, trials.tokens, batch=trials.batch)
    cosine_M, chance_M = np.zeros(len(chosen)), np.zeros(len(chosen))
    latent_M = [0] * len(chosen)
    draw = torch.Generator().manual_seed(seed)
    for layer in sorted({each.layer for each in chosen}):
        mine = [n for n, each in enumerate(chosen) if each.layer == layer]
        row_ME = torch.stack([chosen[n].row_E for n in mine])
        random_ME = torch.randn(row_ME.shape, generator=draw, dtype=torch.float64).to(row_ME)
        best_I, latent_I = nearest(there.at(layer)[0], torch.cat([row_ME, random_ME]))
        for place, n in enumerate(mine):
            cosine_M[n], latent_M[n] = float(best_I[place]), int(latent_I[place])
            chance_M[n] = float(best_I[len(mine) + place])
    same = [n for n in range(len(chosen)) if cosine_M[n] >= ALIKE]
    matched = firing(there, [(chosen[n].layer, chosen[n].position, latent_M[n]) for n in same])
    fire = [(n, each) for n, each in zip(same, matched, strict=True) if each.code != 0]
    moved = there.run([[each.scaled(0.0)] for _, each in fire]).logit_CT.numpy() @ weight_T
    kept = [n for n, _ in fire]
    total = float(sum(influence))
    return Seeds(
        name=name,
        found=len(same),
        fire=len(fire),
        num=len(chosen),
        share=float(sum(influence[n] for n in kept)) / total if total else 0.0,
        chance=int((chance_M >= ALIKE).sum()),
        cosine_M=cosine_M,
        latent_M=latent_M,
        agreement=agreement(effect_M[kept], moved, seed),
    )


def check_places(sites: Sequence[Site], others: Sequence[Site], name: str) -> None:
    """Check that other dictionaries are for the same places of the model.

    Raises:
        ConfigError: they are not.
    """
    own, found = ([(each.hook, each.target) for each in some] for some in (sites, others))
    if own != found:
        differ = [(str(a), b) for a, b in own if (a, b) not in found] or [("another", "another")]
        raise ConfigError(
            f"--other {name} has no transcoder from {' to '.join(differ[0])}, or has others, too; give a set "
            "for the same hooks"
        )


def nearest(d: Dictionary, row_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine of each row with a decoder row, and that latent [M]."""
    unit_ME = normalize(row_ME.to(d.W_dec), dim=1)
    best_M = torch.full((len(row_ME),), -2.0, dtype=unit_ME.dtype, device=unit_ME.device)
    latent_M = torch.zeros(len(row_ME), dtype=torch.int64, device=unit_ME.device)
    for first in range(0, d.num_latents, ROWS):
        cosine_MR = unit_ME @ normalize(d.W_dec[first : first + ROWS], dim=1).T
        value_M, place_M = cosine_MR.max(1)
        better_M = value_M > best_M
        best_M = torch.where(better_M, value_M, best_M)
        latent_M = torch.where(better_M, place_M + first, latent_M)
    return best_M, latent_M
