"""Mutual information between a token and a latent's firing, over the places of a text.

Letters: f latents of a part; P places where a latent fires, sorted by latent; Q pairs of latent and token;
S selected pairs; V tokens of the vocabulary.
"""

import numpy as np

from sae_dist.atlas.describe.select import first_of_each, groups, sizes

HALF = np.uint64(32)
LOW = np.uint64(2**32 - 1)


def bits(both, of_token, of_latent, places: int) -> np.ndarray:
    """Compute the mutual information, in bits, of two events from their counts.

    Args:
        both: places where both are; of_token, of_latent: where each is, of `places`.
    """
    both, of_token, of_latent = (np.asarray(each, np.float64) for each in (both, of_token, of_latent))
    no_token, no_latent = places - of_token, places - of_latent
    return (
        _share(both, of_token, of_latent, places)
        + _share(of_token - both, of_token, no_latent, places)
        + _share(of_latent - both, no_token, of_latent, places)
        + _share(no_token - of_latent + both, no_token, no_latent, places)
    )


def ratio_bits(share, rate) -> np.ndarray:
    """Compute by how many bits a draw that came with `share` is likelier under that share than under `rate`.

    Args:
        share: at most 1; rate: above 0 and below `share`.
    """
    share, rate = np.asarray(share, np.float64), np.asarray(rate, np.float64)
    return _times_log(share, rate) + _times_log(1 - share, 1 - rate)


def best_tokens(
    latent_P: np.ndarray, token_P: np.ndarray, count_V: np.ndarray, num_latents: int, num: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Find the tokens that say most about whether a latent fires, of those that it prefers.

    Args:
        token_P: the token of each place where a latent fires.
        count_V: places of each token, of all that count.

    Returns:
        How many were found for each latent [f]; and of all, by latent and then by bits (the lower id first
        among equal ones): ids, places where both are, and bits.
    """
    key_P = latent_P.astype(np.uint64) << HALF
    key_P |= token_P
    key_P.sort()
    start_Q = groups(key_P)
    both_Q = sizes(start_Q, len(key_P))
    latent_Q, token_Q = (key_P[start_Q] >> HALF).astype(np.uint32), key_P[start_Q] & LOW
    fires_f = np.bincount(latent_P, minlength=num_latents)
    return ranked_tokens(latent_Q, token_Q, both_Q, count_V, fires_f, num)


def ranked_tokens(
    latent_Q: np.ndarray,
    token_Q: np.ndarray,
    both_Q: np.ndarray,
    count_V: np.ndarray,
    fires_f: np.ndarray,
    num: int,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rank the tokens of latents, see `best_tokens`, by how often they are together.

    Args:
        latent_Q, token_Q: pairs, sorted; the tokens as uint64.
        both_Q: places of each pair; fires_f: of each latent.
    """
    places = int(count_V.sum())
    of_token_Q, of_latent_Q = count_V[token_Q], fires_f[latent_Q]
    prefers_Q = both_Q * float(places) > of_token_Q * of_latent_Q.astype(np.float64)
    latent_Q, token_Q, both_Q = latent_Q[prefers_Q], token_Q[prefers_Q], both_Q[prefers_Q]
    bits_Q = bits(both_Q, of_token_Q[prefers_Q], of_latent_Q[prefers_Q], places)
    bits_Q = bits_Q.clip(min=0).astype(np.float32)
    key_Q = (~bits_Q.view(np.uint32)).astype(np.uint64) << HALF
    found = first_of_each(latent_Q, key_Q | token_Q, num)
    chosen_S = found.which_S
    size_f = np.bincount(found.latent_S, minlength=len(fires_f))
    return size_f, [token_Q[chosen_S], both_Q[chosen_S], bits_Q[chosen_S]]


def _times_log(share: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return share * log2(share / rate), 0 where the share is."""
    return share * np.log2(np.divide(share, rate, out=np.ones_like(share), where=share > 0))


def _share(cell: np.ndarray, row: np.ndarray, column: np.ndarray, places: int) -> np.ndarray:
    """Return a cell's part of the mutual information, 0 of an empty one."""
    there = cell > 0
    ratio = np.divide(cell * places, row * column, out=np.ones_like(cell), where=there)
    return cell / places * np.log2(ratio)
