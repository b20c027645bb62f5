"""The hash that draws places of a latent: the same draw in whatever order places come, on any machine.

Letters: P codes.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hash64(latent_P: np.ndarray, at_P: np.ndarray) -> np.ndarray:
    """Hash latents and places: splitmix64 of latent * 2^32 + at, whose values for different pairs differ."""
    value_P = np.asarray(latent_P).astype(np.uint64)
    value_P <<= np.uint64(32)
    value_P |= np.asarray(at_P).astype(np.uint64)
    value_P += GOLDEN
    value_P ^= value_P >> np.uint64(30)
    value_P *= FIRST
    value_P ^= value_P >> np.uint64(27)
    value_P *= SECOND
    value_P ^= value_P >> np.uint64(31)
    return value_P
