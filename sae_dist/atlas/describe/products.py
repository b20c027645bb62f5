"""The greatest inner products of some rows with many: in tiles, ranked anew in float64.

Which rows come first, and by how much, then depends neither on tiles nor on how many threads multiply.

Letters: f rows of a part; t rows of a tile; W width; M candidates for each row; N entries of a list.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sae_dist.atlas.describe.lists import Ranked

OWN_TILE, OTHER_TILE = 2048, 8192
BLOCK = 1 << 14
"""Rows of a part whose candidates are held at a time."""
MARGIN = 8
"""Candidates more than wanted, since float32 may put nearly equal products into another order."""
EXACT_BYTES = 64 << 20


class Best:
    """The greatest products of each row so far.

    Attributes:
        value_fM: the products, -inf where there are fewer; id_fM: numbers of the other rows.
    """

    def __init__(self, rows: int, num: int, device: torch.device):
        self.value_fM = torch.full((rows, num), -torch.inf, device=device)
        self.id_fM = torch.zeros(rows, num, dtype=torch.int64, device=device)

    def take(self, rows: slice, product_tt: Tensor, first: int) -> None:
        """Take the products of some rows with the others from number `first` on."""
        num = self.value_fM.shape[1]
        value, place = product_tt.topk(min(num, product_tt.shape[1]), dim=1)
        value = torch.cat([self.value_fM[rows], value], 1)
        number = torch.cat([self.id_fM[rows], place + first], 1)
        self.value_fM[rows], chosen = value.topk(num, dim=1)
        self.id_fM[rows] = number.gather(1, chosen)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yield slices that cover so many rows in order."""
    for first in range(0, length, size):
        yield slice(first, min(first + size, length))


def ranked(
    own_fW: Tensor, other_W: Tensor, best: Best, num: int, *, sign: int = 1, cosines: bool = False
) -> Ranked:
    """Compute the products of the candidates in float64, and rank them: equal ones by number.

    Args:
        other_W: all other rows [.., W]; only candidates' are read.
        sign: -1 if `best` has the negative products, because the least are wanted.
        cosines: divide by both norms.
    """
    there_fM = (best.value_fM > -torch.inf).cpu().numpy()
    id_fM = best.id_fM.cpu().numpy()
    step = max(1, EXACT_BYTES // (8 * own_fW.shape[1] * id_fM.shape[1]))
    parts = [_exact(own_fW[part], other_W, best.id_fM[part], cosines) for part in tiles(len(id_fM), step)]
    # Ranked as the table holds them, so that a reader finds the order in the numbers.
    value_fM = np.concatenate(parts).astype(np.float32)
    key_fM = np.where(there_fM, -sign * value_fM, np.inf)
    order_fN = np.lexsort((id_fM, key_fM), axis=1)[:, :num]
    id_fN, value_fN = (np.take_along_axis(each, order_fN, 1) for each in (id_fM, value_fM))
    return Ranked(id_fN.astype(np.uint32), (value_fN,), np.minimum(there_fM.sum(1), num))


def _exact(own_tW: Tensor, other_W: Tensor, id_tM: Tensor, cosines: bool) -> np.ndarray:
    """Return products, or cosines, of rows with their candidates."""
    device = id_tM.device
    rows = other_W[id_tM.flatten().to(other_W.device)].to(device, torch.float64).view(*id_tM.shape, -1)
    own_tW = own_tW.to(device, torch.float64)
    product_tM = (rows * own_tW[:, None]).sum(2)
    if cosines:
        product_tM /= rows.norm(dim=2) * own_tW.norm(dim=1)[:, None]
    return product_tM.cpu().numpy()
