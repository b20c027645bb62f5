"""The memory that a consumer takes for an atlas beside its dictionary, and what follows from it."""

from sae_dist.atlas.describe.settings import Settings

LEAST_BYTES = 32 << 20
EXAMPLE_BYTES = 64
"""Memory for each example that is kept of a latent."""
DESCRIBED_BYTES, SORTED_BYTES = 160, 64
"""Memory for a code that is described, and for one of a window while it is sorted, at most."""
MOST_AT_ONCE = 1 << 22
MOST_ROWS, ROWS_PER_LATENT = 1 << 18, 7
"""Rows of a window, at most: a stop loses those of the window that is being read."""
UNKNOWN_L0 = 64
"""Codes of a row that are counted with where a dictionary does not select k."""


def budget(num_latents: int, settings: Settings) -> int:
    """Return the bytes that a consumer's codes may take: they do not depend on how much text is read."""
    examples = settings.top + settings.bins * settings.each
    return max(LEAST_BYTES, EXAMPLE_BYTES * examples * num_latents)


def codes_at_once(num_latents: int, settings: Settings) -> int:
    """Return how many codes are described at once."""
    return min(MOST_AT_ONCE, budget(num_latents, settings) // DESCRIBED_BYTES)


def window_rows(num_latents: int, k: int | None, settings: Settings) -> int:
    """Return how many rows a window has, at most."""
    fitting = budget(num_latents, settings) // (SORTED_BYTES * (k or UNKNOWN_L0))
    return min(MOST_ROWS, ROWS_PER_LATENT * num_latents, fitting)
