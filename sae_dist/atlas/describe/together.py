"""Latents that fire together: at a few places of each latent, drawn by hash, which others fire there.

Windows are sorted by place once (`by_place`), and then each part looks its places up in all of them
(`together`). Memory: a window's codes, or a part's pairs; neither grows with the text.

Letters: f latents of a part; F all latents; P codes; Q drawn places, sorted; T places with codes; M pairs of
a latent and one that fires where it does; S those that count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sae_dist.atlas.describe.blocks import AT_ONCE, blocks, counts
from sae_dist.atlas.describe.hashing import hash64
from sae_dist.atlas.describe.information import ratio_bits
from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.describe.products import tiles
from sae_dist.atlas.describe.select import first_of_each, groups, sizes
from sae_dist.atlas.postings import NO_PLACE, read_window
from sae_dist.atlas.schema import POSTINGS, WORK, part_file, part_latents
from sae_dist.core.files import replacing

HALF = np.uint64(32)
LOW = np.uint64(2**32 - 1)
LATENTS_AT_ONCE = 1024
"""So many latents' pairs are in memory: `drawn` times the codes of a place, 30 bytes each."""
FEWEST = 2
"""Places at which two latents must be seen together."""
COLUMNS = ("at", "begin", "latent")


def by_place(folder: Path, number: int, windows: Sequence[Path], at_of_row: np.ndarray) -> None:
    """Write the codes of a window sorted by place.

    Takes about 30 bytes of memory a code. The files do not depend on how many ranks wrote the window.

    Args:
        folder: of the atlas.
        number: of the window.
        windows: files that have the codes of its rows, of all ranks.
        at_of_row: see `merge_part`.
    """
    keys = []
    for path in windows:
        found = read_window(path)
        key_P = at_of_row[found["row"]].astype(np.uint64)
        there_P = key_P != NO_PLACE
        keys.append((key_P[there_P] << HALF) | found["latent"][there_P])
    key_P = np.concatenate([np.zeros(0, np.uint64), *keys])
    key_P.sort()
    at_P = (key_P >> HALF).astype(np.uint32)
    start_T = groups(at_P)
    columns = {"at": at_P[start_T], "begin": start_T, "latent": (key_P & LOW).astype(np.uint32)}
    for name in reversed(COLUMNS):
        path = _file(folder, number, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, columns[name])


@dataclass(frozen=True)
class Window:
    """The codes of a window by place, mapped.

    Attributes:
        at_T: its places, ascending; begin_T: where the codes of each begin.
        latent_P: the latents of all codes.
    """

    at_T: np.ndarray
    begin_T: np.ndarray
    latent_P: np.ndarray

    @staticmethod
    def open(folder: Path, number: int) -> "Window":
        """Map what `by_place` wrote."""
        return Window(*(np.load(_file(folder, number, name), mmap_mode="r") for name in COLUMNS))

    def found(self, latent_Q: np.ndarray, at_Q: np.ndarray) -> np.ndarray:
        """Return which latents fire at places: those of `latent_Q` in the high half, the others' in the low.

        Args:
            at_Q: places, ascending; those that are not in this window are left out.
        """
        if len(self.at_T) == 0:
            return np.zeros(0, np.uint64)
        first, end = np.searchsorted(at_Q, [self.at_T[0], self.at_T[-1] + 1])
        latent_Q, at_Q = latent_Q[first:end], at_Q[first:end]
        place_Q = np.searchsorted(self.at_T, at_Q)
        there_Q = self.at_T[np.minimum(place_Q, len(self.at_T) - 1)] == at_Q
        latent_Q, place_Q = latent_Q[there_Q], place_Q[there_Q]
        begin_Q = self.begin_T[place_Q]
        last_Q = place_Q + 1 == len(self.at_T)
        end_Q = np.where(last_Q, len(self.latent_P), self.begin_T[np.where(last_Q, 0, place_Q + 1)])
        count_Q = end_Q - begin_Q
        offset_Q = begin_Q - (np.cumsum(count_Q) - count_Q)
        pair_M = np.repeat(latent_Q.astype(np.uint64) << HALF, count_Q)
        pair_M |= self.latent_P[np.arange(len(pair_M)) + np.repeat(offset_Q, count_Q)]
        return pair_M


def latent_counts(folder: Path, num_latents: int, parts: range) -> np.ndarray:
    """Count the codes of all latents [F], from the postings of all parts."""
    each, found = part_latents(num_latents), []
    for part in parts:
        with pq.ParquetFile(part_file(folder, POSTINGS, part)) as file:
            found.append(counts(file, range(part * each, min((part + 1) * each, num_latents))))
    return np.concatenate(found)


def together(
    folder: Path,
    part: int,
    windows: Sequence[Window],
    count_F: np.ndarray,
    kept: int,
    *,
    drawn: int,
    num: int,
    at_once: int = AT_ONCE,
) -> Ranked:
    """Find the latents that fire where those of a part do.

    Of each latent `drawn` places are looked at, the first by hash: all places are equally likely. Listed are
    others seen at two of them at least, and more often than by chance, ordered by how much the number of
    places speaks against chance (the log likelihood ratio of share and rate), then by number.

    Args:
        count_F: codes of all latents; kept: places that have codes, or could have.
        num: how long lists are.
        at_once: codes in memory, at most.

    Returns:
        Latents; the share of the looked-at places where they fire; that share over their rate.
    """
    each = part_latents(len(count_F))
    latents = range(part * each, min((part + 1) * each, len(count_F)))
    rate_F, found = count_F / max(1, kept), []
    for some, latent_Q, at_Q in _draw(folder, part, latents, drawn, at_once):
        for block in tiles(len(some), LATENTS_AT_ONCE):
            mine_Q = (latent_Q >= block.start) & (latent_Q < block.stop)
            places = latent_Q[mine_Q] - block.start, at_Q[mine_Q]
            found.append(_of_block(windows, some[block], *places, rate_F, num))
    return Ranked.joined(found)


def _of_block(
    windows: Sequence[Window],
    latents: range,
    latent_Q: np.ndarray,
    at_Q: np.ndarray,
    rate_F: np.ndarray,
    num: int,
) -> Ranked:
    """Count who fires at the drawn places of some latents, and rank them."""
    looked_f = np.bincount(latent_Q, minlength=len(latents))
    pair_M = np.concatenate([np.zeros(0, np.uint64), *(each.found(latent_Q, at_Q) for each in windows)])
    pair_M.sort()
    start_S = groups(pair_M)
    times_S = sizes(start_S, len(pair_M))
    latent_S, other_S = (pair_M[start_S] >> HALF).astype(np.int64), (pair_M[start_S] & LOW).astype(np.int64)
    share_S, rate_S = times_S / looked_f[latent_S], rate_F[other_S]
    counts_S = (times_S >= FEWEST) & (share_S > rate_S) & (other_S != latent_S + latents.start)
    latent_S, other_S, share_S, rate_S = (x[counts_S] for x in (latent_S, other_S, share_S, rate_S))
    strength_S = (looked_f[latent_S] * ratio_bits(share_S, rate_S)).astype(np.float32)
    key_S = (~strength_S.view(np.uint32)).astype(np.uint64) << HALF
    found = first_of_each(latent_S, key_S | other_S.astype(np.uint64), num)
    id_fN, share_fN, lift_fN = (np.zeros((len(latents), num), kind) for kind in ("u4", "f4", "f4"))
    where = found.latent_S, found.rank_S
    id_fN[where] = other_S[found.which_S]
    share_fN[where] = share_S[found.which_S]
    lift_fN[where] = (share_S / rate_S)[found.which_S]
    return Ranked(id_fN, (share_fN, lift_fN), np.bincount(found.latent_S, minlength=len(latents)))


def _draw(
    folder: Path, part: int, latents: range, drawn: int, at_once: int
) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
    """Draw places of each latent of a part; yield some latents, and pairs of latent and place by place."""
    for block in blocks(folder, part, latents, at_once, ["latent", "at"]):
        latent_Q, at_Q = np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        for table in block.pieces():
            latent_P, at_P = (table[name].to_numpy() for name in ("latent", "at"))
            latent_P, at_P = np.concatenate([latent_Q, latent_P]), np.concatenate([at_Q, at_P])
            found = first_of_each(latent_P - np.uint32(block.latents.start), hash64(latent_P, at_P), drawn)
            latent_Q, at_Q = latent_P[found.which_S], at_P[found.which_S]
        latent_Q = (latent_Q - np.uint32(block.latents.start)).astype(np.int64)
        order_Q = np.lexsort((latent_Q, at_Q))
        yield block.latents, latent_Q[order_Q], at_Q[order_Q]


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / WORK / "places" / f"window-{number:05d}" / f"{name}.npy"
