"""The block sizes and warps of every Triton program, from the width alone, so that a run builds it once."""

from dataclasses import dataclass

import torch

WINDOW = 512
"""Sorted pairs in a window. A latent with more than two windows is shared among programs."""
WIDEST_ROW = 16384
"""Widest row that the update can hold in registers without spilling."""
SCREEN_BLOCK = 128
"""Scores that the filter looks at together: so few that half of the times none is taken."""
FUSED_TILE = (128, 128, 64)
"""Rows, latents and depth of a tile of the product that filters its own scores."""


@dataclass(frozen=True)
class Plan:
    """The constants and launch options of one program."""

    constants: dict[str, int | bool]
    num_warps: int
    num_stages: int = 3

    @property
    def options(self) -> dict[str, int | bool]:
        """The constants and options, as keywords of a launch."""
        return self.constants | {"num_warps": self.num_warps, "num_stages": self.num_stages}


def wide(dtype: torch.dtype) -> bool:
    """Return whether sums of this dtype are in float64."""
    return dtype == torch.float64


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def tile(D: int) -> int:
    """Return the columns per program: the largest tile whose last one is at most an eighth empty."""
    for block in (1024, 512, 256):
        if D >= block and -D % block * 8 <= D:
            return block
    return min(power_of_two(max(D, 32)), 256)


def bag_plan(D: int, dtype: torch.dtype, *, windows: bool) -> Plan:
    """Return the plan of `bag`: weighted sums of rows, a tile of columns each."""
    block = tile(D)
    window = WINDOW if windows else 0
    constants = {"D": D, "BLOCK": block, "WINDOW": window, "UNROLL": 8, "WIDE": wide(dtype)}
    return Plan(constants, max(1, block // 256))


def window_plan(D: int, dtype: torch.dtype, parity: int = -1) -> Plan:
    """Return the plan of `window_sums`, the sums of whole windows."""
    plan = bag_plan(D, dtype, windows=True)
    return Plan(plan.constants | {"PARITY": parity}, plan.num_warps)


def dots_plan(D: int, dtype: torch.dtype) -> Plan:
    """Return the plan of `dots`: products of a row with the weights of its pairs."""
    block = min(power_of_two(max(D, 16)), 256 if dtype != torch.float64 else 128)
    return Plan({"D": D, "BLOCK": block, "PAIRS": 8, "WIDE": wide(dtype)}, 4)


def sums_plan(dtype: torch.dtype) -> Plan:
    """Return the plan of `segment_sums`, the sums of coefficients."""
    return Plan({"PAIRS": 128, "WIDE": wide(dtype)}, 1)


def screen_plan(capacity: int, dead_capacity: int) -> Plan:
    """Return the plan of `screen_filter`: one warp owns a row, so that it waits for no other."""
    constants = {"CAPACITY": capacity, "DEAD_CAPACITY": dead_capacity, "BLOCK": SCREEN_BLOCK}
    return Plan(constants, 1)


def fused_plan(D: int, capacity: int, dead_capacity: int, *, tma: bool, host: bool) -> Plan:
    """Return the plan of `product_filter`: 64 scores per thread.

    Args:
        tma: whether the GPU has an engine for copies of tiles; it copies rows of a multiple of 16 bytes.
        host: whether the program is interpreted.
    """
    rows, latents, depth = FUSED_TILE
    constants = {
        "D": D,
        "CAPACITY": capacity,
        "DEAD_CAPACITY": dead_capacity,
        "ROWS": rows,
        "LATENTS": latents,
        "DEPTH": depth,
        "GROUP": 8,
        "TMA": tma and D % 8 == 0,
        "HOST": host,
    }
    return Plan(constants, 8)


def update_plan(D: int, dtype: torch.dtype, *, decoder: bool, unit: bool, momentum: bool, move: bool) -> Plan:
    """Return the plan of `update_rows`: a row in registers, 16 columns per thread, 8 of float64."""
    block = power_of_two(max(D, 32))
    per_thread = 8 if wide(dtype) else 16
    constants = {
        "D": D,
        "BLOCK": block,
        "WINDOW": WINDOW,
        "UNROLL": 4,
        "PAIRS": 128,
        "DECODER": decoder,
        "UNIT": unit,
        "MOMENTUM": momentum,
        "MOVE": move,
        "WIDE": wide(dtype),
    }
    return Plan(constants, min(32, max(1, block // (32 * per_thread))))
