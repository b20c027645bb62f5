"""The learning rate as a pure function of progress."""


def law(steps: int, num_latents: int, width: int) -> float:
    """Return the decoder's peak learning rate for a TopK dictionary.

    It holds for activations scaled to mean norm sqrt(D) and unit decoder rows: an element of those is of the
    order of 1 / sqrt(width), and so is Adam's step. The constant and the first two exponents were fitted to
    sweeps (docs/decisions/defaults.md) of 250 to 2000 steps, 4096 to 16384 latents, widths of 256 and 384.
    Outside that range the law extrapolates, but not to shorter runs: with few steps, larger rates drive
    scores below zero.
    """
    return 1.8e-2 * (1000 / max(steps, 250)) ** 0.25 * (4096 / num_latents) ** 0.5 * (256 / width) ** 0.5


def factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return the share of the peak learning rate at `step` of `steps`: linear warmup, flat, linear to zero.

    `warmup` and `decay` are fractions of the run. The first step already moves; with warmup 0 it moves
    at full rate.
    """
    warmup_steps, decay_steps = warmup * steps, decay * steps
    rising = (step + 1) / warmup_steps if warmup_steps > 0 else 1.0
    falling = (steps - step) / decay_steps if decay_steps > 0 else 1.0
    return min(1.0, rising, falling)
