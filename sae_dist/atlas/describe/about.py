"""Numbers, lists and examples of some latents, as arrays, from their postings.

Letters: f latents; g those that fire; P codes, sorted by latent and place; S examples; J numbers of a list.
"""

from dataclasses import dataclass

import numpy as np

from sae_dist.atlas.describe.codes import Codes
from sae_dist.atlas.describe.information import best_tokens
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import NO_TOKEN, Text

Lists = tuple[np.ndarray, list[np.ndarray]]
"""How many entries each latent's list has [f], and the fields of all entries, latent after latent."""


@dataclass(frozen=True)
class Examples:
    """Chosen codes, sorted by latent, bin and rank; latents are counted from the first of their block."""

    latent_S: np.ndarray
    bin_S: np.ndarray
    rank_S: np.ndarray
    at_S: np.ndarray
    code_S: np.ndarray
    document_S: np.ndarray


@dataclass(frozen=True)
class About:
    """The numbers, lists and examples of some latents.

    Attributes:
        documents_f: in which each fires.
        total_f, squares_f: sums of codes, and of their squares.
        least_f, most_f: codes; 0 where there is none.
        quantiles_gJ: see `schema.QUANTILES`.
        histogram_fJ: see `schema.HISTOGRAM`; bins_fJ: codes of each bin of the examples.
        tokens, next: ids, places and bits.
    """

    count_f: np.ndarray
    documents_f: np.ndarray
    total_f: np.ndarray
    squares_f: np.ndarray
    least_f: np.ndarray
    most_f: np.ndarray
    quantiles_gJ: np.ndarray
    histogram_fJ: np.ndarray
    bins_fJ: np.ndarray
    tokens: Lists
    next: Lists
    examples: Examples

    @classmethod
    def of(cls, codes: Codes, text: Text, settings: Settings) -> "About":
        """Compute them from codes that are all in memory."""
        token_P, follower_P = text.token_T[codes.at_P], text.follower_T[codes.at_P]
        there_P = follower_P != NO_TOKEN
        after = codes.latent_P[there_P], follower_P[there_P], text.followed_V, codes.num
        total_f, squares_f = codes.sums()
        return cls(
            count_f=codes.count_f,
            documents_f=codes.documents_f,
            total_f=total_f,
            squares_f=squares_f,
            least_f=codes.least_f(),
            most_f=codes.most_f,
            quantiles_gJ=codes.quantiles(),
            histogram_fJ=codes.histogram(),
            bins_fJ=codes.in_bins(settings.bins),
            tokens=best_tokens(codes.latent_P, token_P, text.count_V, codes.num, settings.tokens),
            next=best_tokens(*after, settings.next),
            examples=_examples(codes, settings),
        )


def _examples(codes: Codes, settings: Settings) -> Examples:
    found = codes.examples(settings)
    latent_S = np.concatenate([each.latent_S for each in found.values()])
    rank_S = np.concatenate([each.rank_S for each in found.values()])
    which_S = np.concatenate([each.which_S for each in found.values()])
    bin_S = np.concatenate([np.full(len(each.which_S), number) for number, each in found.items()])
    order_S = np.argsort(latent_S, kind="stable")
    which_S = which_S[order_S]
    return Examples(
        latent_S[order_S],
        bin_S[order_S],
        rank_S[order_S],
        codes.at_P[which_S],
        codes.code_P[which_S],
        codes.document_P[which_S],
    )
