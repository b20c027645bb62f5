"""Block sizes and warps of every Triton program, as functions of the width alone: one build per run."""

from dataclasses import dataclass

import torch

WINDOW = 512
"""Sorted pairs that one program adds up; what a latent has beyond two windows is shared out."""
WIDEST_ROW = 16384
"""The update holds a row in registers; wider ones spill."""
SCREEN_BLOCK = 1024


@dataclass(frozen=True)
class Plan:
    """Constants and launch options of one program."""

    constants: dict[str, int | bool]
    num_warps: int

    @property
    def options(self) -> dict[str, int | bool]:
        """As keywords of a launch."""
        return self.constants | {"num_warps": self.num_warps}


def wide(dtype: torch.dtype) -> bool:
    """Whether sums are in float64."""
    return dtype == torch.float64


def power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def tile(D: int) -> int:
    """Columns per program: the largest tile that leaves at most an eighth of the last one empty."""
    for block in (1024, 512, 256):
        if D >= block and -D % block * 8 <= D:
            return block
    return min(power_of_two(max(D, 32)), 256)


def bag_plan(D: int, dtype: torch.dtype, *, windows: bool) -> Plan:
    """Weighted sums of rows, a tile of columns each."""
    block = tile(D)
    window = WINDOW if windows else 0
    constants = {"D": D, "BLOCK": block, "WINDOW": window, "UNROLL": 8, "WIDE": wide(dtype)}
    return Plan(constants, max(1, block // 256))


def window_plan(D: int, dtype: torch.dtype, parity: int = -1) -> Plan:
    """Sums of whole windows."""
    plan = bag_plan(D, dtype, windows=True)
    return Plan(plan.constants | {"PARITY": parity}, plan.num_warps)


def dots_plan(D: int, dtype: torch.dtype) -> Plan:
    """Products of a row with the weights of its pairs."""
    block = min(power_of_two(max(D, 16)), 256 if dtype != torch.float64 else 128)
    return Plan({"D": D, "BLOCK": block, "PAIRS": 8, "WIDE": wide(dtype)}, 4)


def sums_plan(dtype: torch.dtype) -> Plan:
    """Sums of coefficients."""
    return Plan({"PAIRS": 128, "WIDE": wide(dtype)}, 1)


def screen_plan(capacity: int, dead_capacity: int) -> Plan:
    """The filter: one row, so few warps."""
    constants = {"CAPACITY": capacity, "DEAD_CAPACITY": dead_capacity, "BLOCK": SCREEN_BLOCK}
    return Plan(constants, 4)


def update_plan(D: int, dtype: torch.dtype, *, decoder: bool, unit: bool, momentum: bool, move: bool) -> Plan:
    """Gradient and update of one row, wholly in registers: 16 columns per thread, 8 of float64."""
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
