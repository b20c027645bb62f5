"""The encoder and TopK in one sweep, without [B, F] scores: screen, filter, exact scores, certificate, redo.

1. Screen: bfloat16 products (sums in float32) of a chunk of latents, few enough that the scores stay in the
   GPU's second-level cache; a filter appends to each row's candidates those above the row's floor.
2. The floor: the score that every 64th latent reaches with some to spare. It is a guess, and costs only time.
3. The candidates that screen best, a quarter more than wanted, get exact scores; those decide.
4. Certificate of a row: all its candidates fitted, and the last winner beats what was left out by three times
   the largest error of the screen among the row's exact scores. Rows without it are redone in full precision.

The one host sync is the question whether any row must be redone.

Letters: as core.types; C latents of a chunk, S latents of the sample or slots for candidates, M candidates
with exact scores.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sae_dist.kernels import torch_backend, triton_jit
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
TRUST = 3.0
"""The margin that the certificate demands, in largest errors seen of the screen."""
EMPTY = -(2**63)
LOW = 2**31 - 1

Found = tuple[Tensor, Tensor]


def topk_rows(scores_BF: Tensor, k: int) -> Found:
    """Return the `k` largest scores of each row (`reference.topk_rows`), by keys of value and index."""
    if scores_BF.dtype == torch.float64:
        val, idx = scores_BF.sort(dim=1, descending=True, stable=True)
        return val[:, :k], idx[:, :k]
    idx_F = torch.arange(scores_BF.shape[1], device=scores_BF.device)
    key = sort_keys(scores_BF, idx_F).topk(k, dim=1).values
    idx = LOW - (key & LOW)
    return scores_BF.gather(1, idx), idx


def encode_topk(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int) -> Found:
    """Return the best latents (`reference.encode_topk`); float64 and few latents use torch operations."""
    return _encode(x_BD, W_FD, b_F, k, None, 0)[0]


def encode_topk_dead(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dead_F: Tensor, dead_k: int
) -> tuple[Found, Found]:
    """Return the best and the best dead latents (`reference.encode_topk_dead`), in one sweep."""
    live, dead = _encode(x_BD, W_FD, b_F, k, dead_F, dead_k)
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
        exact = k + max(16, k // 4)
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


def _encode(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dead_F: Tensor | None, dead_k: int
) -> list[Found]:
    x_BD, W_FD, b_F = ready(x_BD, W_FD, b_F)
    wanted: list[tuple[Room, Tensor | None]] = [(Room.of(k), None)]
    if dead_F is not None:
        wanted.append((Room.of(dead_k), dead_F))
    fit = [len(W_FD) >= 4 * room.capacity for room, _ in wanted]
    if W_FD.dtype == torch.float64 or not fit[0] or not len(x_BD):
        return [_in_full(x_BD, W_FD, b_F, room.k, mask_F) for room, mask_F in wanted]
    if not all(fit):
        return [*_encode(x_BD, W_FD, b_F, k, None, 0), _in_full(x_BD, W_FD, b_F, dead_k, dead_F)]
    # A power of two, so that every block's rows are aligned alike: alignment is compiled in.
    block = 1 << (KEYS // sum(room.capacity for room, _ in wanted)).bit_length() - 1
    parts = [_sweep(x_BD[first : first + block], W_FD, b_F, wanted) for first in range(0, len(x_BD), block)]
    return [(torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
            for i in range(len(wanted))]  # fmt: skip


def _sweep(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, wanted: list[tuple[Room, Tensor | None]]) -> list[Found]:
    x16_BD, F = x_BD.bfloat16(), len(W_FD)
    picks = [Candidates.start(room, mask_F, x16_BD, W_FD, b_F) for room, mask_F in wanted]
    rows = min(ROWS, power_of_two(len(x_BD)))
    chunk = max(512, min(SCORES // rows, 16384, F // 32))
    plan = screen_plan(picks[0].room.capacity, picks[1].room.capacity if len(picks) > 1 else 0)
    other = picks[-1]
    for first in range(0, F, chunk):
        W16_CD, b_C = W_FD[first : first + chunk].bfloat16(), b_F[first : first + chunk]
        dead_C = b_C if other.mask_F is None else other.mask_F[first : first + chunk]
        for top in range(0, len(x_BD), rows):
            mine = slice(top, top + rows)
            score_RC = screen(x16_BD[mine], W16_CD)
            triton_jit.screen_filter[(len(score_RC),)](
                score_RC, b_C, *picks[0].of_rows(mine), dead_C, *other.of_rows(mine), first, len(b_C),
                **plan.options,
            )  # fmt: skip
    return [pick.finish(x_BD, W_FD, b_F) for pick in picks]


@dataclass
class Candidates:
    """The candidates of one selection in some rows: sort keys, in the order of the latents."""

    room: Room
    mask_F: Tensor | None
    floor_B: Tensor
    key_BS: Tensor
    count_B: Tensor

    @staticmethod
    def start(room: Room, mask_F: Tensor | None, x16_BD: Tensor, W_FD: Tensor, b_F: Tensor) -> "Candidates":
        """Return no candidates yet, and floors from a sample of the latents (-inf if it is too small)."""
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
        return Candidates(room, mask_F, floor_B, key_BS, count_B)

    def of_rows(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' floors, keys and counts, which the filter reads and writes."""
        return self.floor_B[rows], self.key_BS[rows], self.count_B[rows]

    def finish(self, x_BD: Tensor, W_FD: Tensor, b_F: Tensor) -> Found:
        """Return the selection: compute exact scores, check the certificate, redo the rows without it."""
        exact, k = self.room.exact, self.room.k
        key_BM = self.key_BS.topk(exact, dim=1).values
        filled_BM = key_BM != EMPTY
        idx_BM = torch.where(filled_BM, LOW - (key_BM & LOW), 0)
        screened_BM = torch.where(filled_BM, scores_of(key_BM), -torch.inf)
        first_B = torch.arange(0, idx_BM.numel(), exact, device=x_BD.device)
        score_BM = latent_gradient(idx_BM.flatten(), first_B, x_BD, W_FD).view(idx_BM.shape) + b_F[idx_BM]
        error_B = torch.where(filled_BM, (score_BM - screened_BM).abs(), 0.0).amax(1)
        score_BM = torch.where(filled_BM, score_BM.float(), -torch.inf)
        by_score = sort_keys(score_BM, idx_BM).sort(dim=1, descending=True).indices
        best_BK = by_score[:, :k]
        val_BK, idx_BK = score_BM.gather(1, best_BK), idx_BM.gather(1, best_BK)
        # What was left out screened at most at the last candidate with an exact score, or below the floor.
        left_out_B = torch.maximum(screened_BM[:, -1], self.floor_B)
        sure_B = (self.count_B <= self.room.capacity) & (val_BK[:, -1] >= left_out_B + TRUST * error_B)
        if not bool(sure_B.all()):
            redo_B = (~sure_B).nonzero().squeeze(1)
            val, idx = _in_full(x_BD[redo_B], W_FD, b_F, k, self.mask_F)
            val_BK[redo_B], idx_BK[redo_B] = val.float(), idx
        return val_BK, idx_BK


def _in_full(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, mask_F: Tensor | None) -> Found:
    """Select by torch operations, by tiles of latents, in the weights' precision (bfloat16: float32)."""
    if W_FD.dtype == torch.bfloat16 or x_BD.dtype != W_FD.dtype:
        dtype = torch.promote_types(torch.promote_types(x_BD.dtype, W_FD.dtype), torch.float32)
        x_BD, W_FD, b_F = x_BD.to(dtype), W_FD.to(dtype), b_F.to(dtype)
    if mask_F is None:
        val, idx = torch_backend.encode_topk(x_BD, W_FD, b_F, k)
    else:
        val, idx = torch_backend.encode_topk_of(x_BD, W_FD, b_F, mask_F.bool(), k)
    return val.contiguous(), idx.contiguous()


def screen(x16_BD: Tensor, W16_CD: Tensor) -> Tensor:
    """Return x W^T of bfloat16, with sums and result in float32, [B, C]."""
    if x16_BD.device.type == "cpu":
        return x16_BD.float() @ W16_CD.float().T
    return torch.mm(x16_BD, W16_CD.T, out_dtype=torch.float32)


def sort_keys(score: Tensor, latent: Tensor) -> Tensor:
    """Return the keys of `triton_jit.sort_key`, also for bfloat16 scores."""
    score = score.float()
    bits = torch.where(score == 0, 0.0, score).view(torch.int32)
    bits = torch.where(score.isnan(), 0x7FC00000, bits)
    ordered = torch.where(bits < 0, bits ^ LOW, bits)
    return (ordered.long() << 32) | (LOW - latent)


def scores_of(key: Tensor) -> Tensor:
    """Return the scores from which sort keys were made."""
    ordered = (key >> 32).int()
    return torch.where(ordered < 0, ordered ^ LOW, ordered).view(torch.float32)
