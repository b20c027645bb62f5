"""The hash that draws places of latents, by its definition with Python's integers."""

MASK = 2**64 - 1


def splitmix(latent: int, at: int) -> int:
    """Hash a latent and a place."""
    z = ((latent << 32 | at) + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31
