"""Latents found by a direction: those whose decoder rows point most nearly the same way.

Letters: F latents; f of a tile; E width of the decoder's rows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_dist.atlas.find.found import Found, Hit
from sae_dist.core.errors import ConfigError
from sae_dist.core.npy import npy_array
from sae_dist.core.parsing import read_bounded, reading
from sae_dist.core.run_folder import EXPORT
from sae_dist.core.sums import listed

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

TILE_BYTES = 64 << 20


def by_direction(atlas: "Atlas", direction: Any, top: int) -> Found:
    """Find the latents with the greatest cosines, by all decoder rows, a tile at a time.

    Args:
        direction: numbers [E]; or a latent's number, for its decoder row, which itself is left out.

    Raises:
        ConfigError: it has another width, or is zero or not finite, or the dictionary is not here.
    """
    W_dec_FE = atlas.decoder
    own = atlas.checked(direction) if isinstance(direction, int) else None
    row = W_dec_FE[own] if own is not None else direction
    vector_E = _vector(row, W_dec_FE.shape[1])
    named = f"the decoder row of latent {own}" if own is not None else "the given direction"
    latents, cosines = nearest(W_dec_FE, vector_E, top + (own is not None))
    pairs = zip(latents.tolist(), cosines.tolist(), strict=True)
    hits = [Hit(latent, cosine) for latent, cosine in pairs if latent != own][:top]
    return Found(atlas, f"by cosine with {named}, of all decoder rows, exact", "cosine", hits)


def nearest(W_dec_FE: Any, vector_E: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents with the greatest cosines, best first (the lower one among equals), and these."""
    F, E = W_dec_FE.shape
    step = max(1, TILE_BYTES // (4 * E))
    best, cosine = np.empty(0, np.int64), np.empty(0, np.float32)
    unit_E = (vector_E / np.linalg.norm(vector_E)).astype(np.float32)
    for first in range(0, F, step):
        tile_fE = W_dec_FE[first : first + step].float().numpy()
        norm_f = np.sqrt(np.einsum("fe,fe->f", tile_fE, tile_fE))
        cosine_f = np.divide(tile_fE @ unit_E, norm_f, out=np.zeros_like(norm_f), where=norm_f > 0)
        best = np.concatenate([best, first + np.arange(len(tile_fE))])
        cosine = np.concatenate([cosine, cosine_f])
        order = np.lexsort((best, -cosine))[:top]
        best, cosine = best[order], cosine[order]
    return best, cosine


def read_direction(path: Path) -> np.ndarray:
    """Return the numbers in a .npy file.

    Raises:
        ConfigError: it is no such file.
    """
    with reading(path, "is no array of numbers ({reason}); save one with numpy.save"):
        return npy_array(read_bounded(path))


def open_decoder(run: Path, num_latents: int, weights: str) -> Any:
    """Return the decoder [F, E] of the export in a run folder, mapped from its file.

    Args:
        weights: sha256 of the file that the atlas is of.

    Raises:
        ConfigError: there is no export, or it is another dictionary.
    """
    # Here: torch is not loaded before a decoder is read.
    from sae_dist.export.saelens import SAE_CONFIG, open_exported

    folder = run / EXPORT
    if not (folder / SAE_CONFIG).is_file():
        raise ConfigError(f"{folder} does not exist; a direction needs the dictionary beside its atlas")
    check_same(folder, weights)
    found = open_exported(folder).W_dec_FE
    if found.shape[0] != num_latents:
        raise ConfigError(
            f"{folder} has {found.shape[0]:,} latents, and the atlas {num_latents:,}; make the atlas again"
        )
    return found


def check_same(export: Path, weights: str) -> None:
    """Check that an export is the one that an atlas is of, as far as its list of checksums tells.

    Raises:
        ConfigError: it is another.
    """
    from sae_dist.export.saelens import WEIGHTS

    said = listed(export / WEIGHTS)
    if said is not None and weights and said != weights:
        raise ConfigError(
            f"{export} was written after its atlas was made, and is another dictionary; make the atlas again"
        )


def _vector(given: Any, width: int) -> np.ndarray:
    """Return a direction as numbers [E].

    Raises:
        ConfigError: it is none.
    """
    try:
        plain = given.detach().cpu().float().numpy() if hasattr(given, "detach") else given
        found = np.asarray(plain, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"direction must be {width} numbers, and is {type(given).__name__}") from None
    if found.shape != (width,):
        raise ConfigError(f"direction has shape {list(found.shape)}; the decoder's rows have {width} numbers")
    if not np.isfinite(found).all() or not found.any():
        raise ConfigError("direction is zero, or has numbers that are not finite")
    return found
