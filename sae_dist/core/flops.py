"""Floating-point operations of a dictionary's step, as arithmetic on its config."""

from sae_dist.core.config import RunConfig
from sae_dist.core.kinds import SELECTED


def step_flops(cfg: RunConfig, widths: tuple[int, ...]) -> float:
    """Operations that one step needs, of all ranks together; a multiply-add is two.

    Letters: B rows, F latents, D and E widths of input and target, k codes per row.

        selected kinds   encode 2BFD, decode 2BkE; backward 2BkE for the codes, 2BkE for W_dec, 2BkD for W_enc
        the others       encode 2BFD, decode 2BFE; backward 2BFE for the codes, 2BFE for W_dec, 2BFD for W_enc
        skip connection  6BDE

    Not counted: AuxK, what is computed a second time, elementwise work, and the update.

    Args:
        widths: (D,) or (D, E).
    """
    sae, rows = cfg.sae, cfg.batch
    assert sae.num_latents is not None, "filled in by core.resolve"
    source, target = widths[0], widths[-1]
    scored = 2 * rows * sae.num_latents * source
    if sae.kind in SELECTED:
        found = scored + 2 * rows * sae.k * (3 * target + source)
    else:
        found = 2 * scored + 6 * rows * sae.num_latents * target
    return float(found + (6 * rows * source * target if sae.skip else 0))
