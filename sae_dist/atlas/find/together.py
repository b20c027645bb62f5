"""Latents found by others: those that fire at the same places.

Letters: T places.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_dist.atlas.find.found import Found, Hit
from sae_dist.atlas.find.scan import fired_at, informative, seconds
from sae_dist.atlas.find.tokens import QUICK_POSTINGS
from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas


def by_together(atlas: "Atlas", latents: Sequence[int], top: int, exact: bool | None) -> Found:
    """Find latents that fire where all of some latents do.

    Args:
        exact: read all postings; None: if there are few, or several latents.

    Raises:
        ConfigError: a latent does not exist, or they never fire at the same place.
    """
    own = [atlas.checked(each) for each in latents]
    if not own:
        raise ConfigError("together needs a latent at least")
    named = f"latent{'s' * (len(own) > 1)} {', '.join(map(str, own))}"
    if len(own) == 1 and (exact is False or exact is None and atlas.counts.sum() > QUICK_POSTINGS):
        if (listed := atlas.latent(own[0]).together) is not None:
            hits = [Hit(e.latent, e.lift, {"share": e.share, "lift": e.lift}) for e in listed[:top]]
            how = (
                f"by how often they fire where {named} does, from its list, by a sample of its places; by "
                f"all postings: exact, about {seconds(atlas):.0f} s"
            )
            return Found(atlas, how, "lift", hits)
    chosen_T = np.ones(len(atlas.places), bool)
    for each in own:
        fires_T = np.zeros(len(chosen_T), bool)
        at_P = atlas.codes(each)[0]
        if len(at_P) and int(at_P.max()) >= len(fires_T):
            raise ConfigError(f"{atlas.folder} has codes at places that do not exist; make the atlas again")
        fires_T[at_P] = True
        chosen_T &= fires_T
    places = int(np.count_nonzero(chosen_T))
    if not places:
        raise ConfigError(f"{named} {'fire at no place together' if len(own) > 1 else 'never fires'}")
    both_F = fired_at(atlas, chosen_T)
    both_F[own] = 0
    found, score = informative(atlas, both_F, places, top)
    hits = []
    for latent, bits in zip(found.tolist(), score.tolist(), strict=True):
        share = int(both_F[latent]) / places
        about = {"both": int(both_F[latent]), "of": places, "share": share}
        hits.append(Hit(latent, bits, about | {"lift": share / float(atlas.rates[latent])}))
    how = f"by mutual information, in bits, with firing of {named}: {places:,} places, exact, by all postings"
    return Found(atlas, how, "bits", hits)
