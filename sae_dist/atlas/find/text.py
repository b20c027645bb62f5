"""Latents found by a text: the codes that it has in the dictionary, times how rare each latent is.

Letters: P codes; F latents; I latents that fire on the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_dist.atlas.find.found import Found, Hit
from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas


@dataclass(frozen=True)
class TextCodes:
    """The codes of a text's tokens that count.

    Attributes:
        latent_P, code_P: of each code.
        row_P: the token that it is of.
        pieces: the text of each token.
    """

    latent_P: np.ndarray
    code_P: np.ndarray
    row_P: np.ndarray
    pieces: list[str]


Encode = Callable[[str], TextCodes]
"""The type of what encodes a text with a model and a dictionary."""


def by_text(atlas: "Atlas", text: str, top: int, encode: Encode) -> Found:
    """Find the latents that fire on a text, by the sum of their codes times idf = -log2 of their rate.

    Raises:
        ConfigError: nothing fires on it, or `encode` raises it.
    """
    codes = encode(text)
    if not len(codes.latent_P):
        raise ConfigError("no latent fires on this text; give another, or more of it")
    latent_I, place_P = np.unique(codes.latent_P, return_inverse=True)
    sum_I = np.bincount(place_P, codes.code_P)
    # Half a firing is added: what never fired in the atlas's text is rare, and not infinitely so.
    kept = int(atlas.facts["kept"])
    idf_I = -np.log2((atlas.counts[latent_I] + 0.5) / (kept + 1))
    score_I = sum_I * idf_I
    order = np.lexsort((latent_I, -score_I))[:top]
    hits = []
    for each in order:
        mine = np.flatnonzero(place_P == each)
        strongest = codes.row_P[mine[np.argmax(codes.code_P[mine])]]
        about = {"both": len(np.unique(codes.row_P[mine])), "strongest": codes.pieces[int(strongest)]}
        hits.append(Hit(int(latent_I[each]), float(score_I[each]), about))
    how = f"by encoding the text ({len(codes.pieces)} tokens): sum of codes times idf, -log2 of the rate"
    return Found(atlas, how, "code x idf", hits)
