"""The encoder and TopK in one sweep, without [B, F] scores: screen, filter, exact scores, certificate, redo.

1. Screen: bfloat16 products (sums in float32) of a chunk of latents, few enough that the scores stay in the
   GPU's second-level cache; a filter appends to each row's candidates those above the row's floor. Or, if
   `FUSED`, the product's own epilogue does (`triton_fused`).
2. The floor: the score that every 64th latent reaches with some to spare. It is a guess, and costs only time.
3. The candidates that screen best, half more than wanted, get exact scores; those decide.
4. Certificate of a row: all its candidates fitted, and the last winner beats what was left out by three times
   the largest error of the screen among the row's exact scores.
5. A row without it gets a second chance: exact scores of all its candidates, so that only what is below the
   floor is left out. Where that is not enough either, the row is redone in full precision.

The host sync of a step is the question whether any row must be scored again; only then are there others.

Letters: as core.types; C latents of a chunk, S latents of the sample or slots for candidates, M candidates
with exact scores.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sae_dist.kernels import torch_backend, triton_fused, triton_jit
from sae_dist.kernels.keys import EMPTY, Found, latents_of, scores_of, select_in_full, sort_keys
from sae_dist.kernels.triton_plan import power_of_two, screen_plan
from sae_dist.kernels.triton_sparse import latent_gradient, ready

STRIDE = 64
"""Distance of the latents in the sample from which floors are guessed."""
UNLIKELY = 1e-6
"""Probability that a row gets too few candidates, or too many, if latents are in random order."""
KEYS = 2**26
"""Most candidates in memory at once, 8 bytes each."""
SCORES = 2**23
"""Scores in a chunk, 4 bytes each: 32 MB of the 50 MB in Hopper's second-level cache."""
ROWS = 8192
"""Most rows in one product."""
FUSED = False
"""Whether the product filters its own scores: no GPU has shown yet which way is faster."""
FUSED_CHUNK = 2**15
"""Latents of such a product, whose weights are rounded to bfloat16 together."""
TRUST = 3.0
"""The margin that the certificate demands, in largest errors seen of the screen."""


def encode_topk(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, redone: Tensor | None = None) -> Found:
    """Return the best latents (`reference.encode_topk`); float64 and few latents use torch operations."""
    return _encode(x_BD, W_FD, b_F, [Wanted(k)], redone)[0]


def encode_topk_dead(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[Found, Found]:
    """Return the best and the best dead latents (`reference.encode_topk_dead`), in one sweep."""
    live, dead = _encode(x_BD, W_FD, b_F, [Wanted(k), Wanted(dead_k, dead_F)], redone)
    return live, dead


@dataclass(frozen=True)
class Room:
    """The numbers of candidates with which a selection of `k` works.

    exact     candidates per row that get exact scores
    rank      the floor is the sample's rank-th largest score
    capacity  slots for candidates per row
    """

    k: int
    exact: int
    rank: int
    capacity: int

    @staticmethod
    @lru_cache
    def of(k: int) -> "Room":
        """Return the smallest numbers with which few rows have to be redone.

        The sample has fewer than `rank` of a row's `exact` best latents, and at least `rank` of its
        `capacity` best ones: each but for a probability of `UNLIKELY`.
        """
        exact = k + max(16, k // 2)
        rank = 1
        while tail(exact, rank) > UNLIKELY:
            rank += 1
        capacity = power_of_two(rank * STRIDE)
        while 1 - tail(capacity, rank) > UNLIKELY:
            capacity *= 2
        return Room(k, exact, rank, capacity)


def tail(number: int, rank: int) -> float:
    """Return the probability that at least `rank` of `number` latents are in the sample."""
    p = 1 / STRIDE
    below = (math.comb(number, hits) * p**hits * (1 - p) ** (number - hits) for hits in range(rank))
    return 1 - math.fsum(below)


@dataclass(frozen=True)
class Wanted:
    """A selection to make: the `k` best latents, of all or of those with `mask_F` (bool)."""

    k: int
    mask_F: Tensor | None = None

    @property
    def room(self) -> Room:
        """The numbers of candidates with which it works."""
        return Room.of(self.k)


def _encode(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, wanted: list[Wanted], redone: Tensor | None
) -> list[Found]:
    x_BD, W_FD, b_F = ready(x_BD, W_FD, b_F)
    fit = [len(W_FD) >= 4 * each.room.capacity for each in wanted]
    if W_FD.dtype == torch.float64 or not fit[0] or not len(x_BD):
        return [_in_full(x_BD, W_FD, b_F, each) for each in wanted]
    if not all(fit):
        return [*_encode(x_BD, W_FD, b_F, wanted[:1], redone), _in_full(x_BD, W_FD, b_F, wanted[1])]
    # A power of two, so that every block's rows are aligned alike: alignment is compiled in.
    block = 1 << (KEYS // sum(each.room.capacity for each in wanted)).bit_length() - 1
    parts = [
        _sweep(x_BD[first : first + block], W_FD, b_F, wanted, redone) for first in range(0, len(x_BD), block)
    ]
    return [(torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
            for i in range(len(wanted))]  # fmt: skip


def chunk_of(rows: int, F: int) -> int:
    """Return how many latents a chunk has where a product has so many rows.

    A multiple of 256, so that every row of scores but the last chunk's is aligned to 16 bytes and more.
    """
    most = max(512, min(SCORES // rows, 16384))
    return min(most, -(-F // 256) * 256) // 256 * 256


def _sweep(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, wanted: list[Wanted], redone: Tensor | None
) -> list[Found]:
    x16_BD = x_BD.bfloat16()
    picks = [Candidates.start(each, x16_BD, W_FD, b_F) for each in wanted]
    (_filter_fused if FUSED else _filter_chunks)(x16_BD, W_FD, b_F, picks)
    return [pick.finish(x_BD, W_FD, b_F, redone) for pick in picks]


def _filter_fused(x16_BD: Tensor, W_FD: Tensor, b_F: Tensor, picks: "list[Candidates]") -> None:
    """Collect the candidates of `picks` by products that filter their own scores."""
    every, other = slice(None), picks[-1]
    for first in range(0, len(W_FD), FUSED_CHUNK):
        part = slice(first, first + FUSED_CHUNK)
        dead_C = None if other.mask_F is None else other.mask_F[part]
        W16_CD, live, dead = W_FD[part].bfloat16(), picks[0].of_rows(every), other.of_rows(every)
        triton_fused.launch(x16_BD, W16_CD, b_F[part], live, dead_C, dead, first)


def _filter_chunks(x16_BD: Tensor, W_FD: Tensor, b_F: Tensor, picks: "list[Candidates]") -> None:
    """Collect the candidates of `picks` from scores in memory."""
    F = len(W_FD)
    rows = min(ROWS, power_of_two(len(x16_BD)))
    chunk = chunk_of(rows, F)
    plan = screen_plan(picks[0].wanted.room.capacity, picks[1].wanted.room.capacity if len(picks) > 1 else 0)
    other = picks[-1]
    for first in range(0, F, chunk):
        part = slice(first, first + chunk)
        W16_CD, b_C = aligned(W_FD[part].bfloat16()), aligned(b_F[part])
        dead_C = b_C if other.mask_F is None else aligned(other.mask_F[part])
        for top in range(0, len(x16_BD), rows):
            mine = slice(top, top + rows)
            score_RC = screen(x16_BD[mine], W16_CD)
            triton_jit.screen_filter[(len(score_RC),)](
                score_RC, b_C, *picks[0].of_rows(mine), dead_C, *other.of_rows(mine), first,
                min(chunk, F - first), len(b_C) // 16, **plan.options,
            )  # fmt: skip


def aligned(values: Tensor) -> Tensor:
    """Return values of a chunk's latents, with zeros up to a multiple of 16, as the filter's loads need."""
    missing = -len(values) % 16
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values


@dataclass
class Candidates:
    """The candidates of one selection in some rows: sort keys, in the order of the latents."""

    wanted: Wanted
    mask_F: Tensor | None
    floor_B: Tensor
    key_BS: Tensor
    count_B: Tensor

    @staticmethod
    def start(wanted: Wanted, x16_BD: Tensor, W_FD: Tensor, b_F: Tensor) -> "Candidates":
        """Return no candidates yet, and floors from a sample of the latents (-inf if it is too small)."""
        room, mask_F = wanted.room, wanted.mask_F
        rows, W16_SD, b_S = len(x16_BD), W_FD[::STRIDE].bfloat16(), b_F[::STRIDE]
        floor_B = torch.full((rows,), -torch.inf, device=x16_BD.device)
        tile = max(16, SCORES // len(b_S))
        for top in range(0, rows, tile) if len(b_S) >= room.rank else ():
            score = screen(x16_BD[top : top + tile], W16_SD) + b_S
            if mask_F is not None:
                score = score.masked_fill(~mask_F[::STRIDE], -torch.inf)
            floor_B[top : top + tile] = score.topk(room.rank, dim=1).values[:, -1]
        key_BS = torch.full((rows, room.capacity), EMPTY, device=x16_BD.device)
        mask_F = None if mask_F is None else mask_F.to(torch.int8)
        count_B = torch.zeros(rows, dtype=torch.int32, device=x16_BD.device)
        return Candidates(wanted, mask_F, floor_B, key_BS, count_B)

    def of_rows(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' floors, keys and counts, which the filter reads and writes."""
        return self.floor_B[rows], self.key_BS[rows], self.count_B[rows]

    def finish(self, x_BD: Tensor, W_FD: Tensor, b_F: Tensor, redone: Tensor | None) -> Found:
        """Return the selection: compute exact scores, check the certificate, redo the rows without it."""
        key_BM = self.key_BS.topk(self.wanted.room.exact, dim=1).values
        # What was left out screened at most at the last candidate with an exact score, or below the floor.
        last_B = torch.where(key_BM[:, -1] != EMPTY, scores_of(key_BM[:, -1]), -torch.inf)
        given = x_BD, W_FD, b_F
        val_BK, idx_BK, sure_B = self._decide(key_BM, torch.maximum(last_B, self.floor_B), *given)
        sure_B &= self.count_B <= self.wanted.room.capacity
        if redone is not None:
            redone += (~sure_B).sum()
        if not bool(sure_B.all()):
            again_B = (~sure_B).nonzero().squeeze(1)
            val_BK[again_B], idx_BK[again_B] = self._again(again_B, *given)
        return val_BK, idx_BK

    def _decide(
        self, key_BM: Tensor, left_out_B: Tensor, x_BD: Tensor, W_FD: Tensor, b_F: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best of some candidates by their exact scores, and whether nothing else can be better.

        Args:
            left_out_B: the most that a latent that is not among the candidates has screened at.
        """
        filled_BM = key_BM != EMPTY
        idx_BM = torch.where(filled_BM, latents_of(key_BM), 0)
        first_B = torch.arange(0, idx_BM.numel(), idx_BM.shape[1], device=x_BD.device)
        score_BM = latent_gradient(idx_BM.flatten(), first_B, x_BD, W_FD).view(idx_BM.shape) + b_F[idx_BM]
        error_B = torch.where(filled_BM, (score_BM - scores_of(key_BM)).abs(), 0.0).amax(1)
        score_BM = torch.where(filled_BM, score_BM.float(), -torch.inf)
        by_score = sort_keys(score_BM, idx_BM).sort(dim=1, descending=True).indices
        best_BK = by_score[:, : self.wanted.k]
        val_BK, idx_BK = score_BM.gather(1, best_BK), idx_BM.gather(1, best_BK)
        return val_BK, idx_BK, val_BK[:, -1] >= left_out_B + TRUST * error_B

    def _again(self, again_B: Tensor, x_BD: Tensor, W_FD: Tensor, b_F: Tensor) -> Found:
        """Return the selection of some rows: from all their candidates, or else from all latents."""
        x_BD, count_B, floor_B = x_BD[again_B], self.count_B[again_B], self.floor_B[again_B]
        fits_B = count_B <= self.wanted.room.capacity
        most = max(self.wanted.k, int(torch.where(fits_B, count_B, 0).max()))
        val_BK, idx_BK, sure_B = self._decide(self.key_BS[again_B, :most], floor_B, x_BD, W_FD, b_F)
        full_B = (~(sure_B & fits_B)).nonzero().squeeze(1)
        if len(full_B):
            val_BK[full_B], idx_BK[full_B] = _in_full(x_BD[full_B], W_FD, b_F, self.wanted)
        return val_BK, idx_BK


def _in_full(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, wanted: Wanted) -> Found:
    """Select without a screen: in float32 by products, in float64 by the other backend."""
    if torch.float64 not in (x_BD.dtype, W_FD.dtype):
        return select_in_full(x_BD, W_FD, b_F, wanted.k, wanted.mask_F)
    x_BD, W_FD, b_F = x_BD.double(), W_FD.double(), b_F.double()
    if wanted.mask_F is None:
        return torch_backend.encode_topk(x_BD, W_FD, b_F, wanted.k)
    return torch_backend.encode_topk_of(x_BD, W_FD, b_F, wanted.mask_F, wanted.k)


def screen(x16_BD: Tensor, W16_CD: Tensor) -> Tensor:
    """Return x W^T of bfloat16, with sums and result in float32, [B, C]."""
    if x16_BD.device.type == "cpu":
        return x16_BD.float() @ W16_CD.float().T
    return torch.mm(x16_BD, W16_CD.T, out_dtype=torch.float32)
