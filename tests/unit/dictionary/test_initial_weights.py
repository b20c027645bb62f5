"""Initial weights are drawn by blocks: the same numbers as all at once, without all at once in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_dist.dictionary.latents import BLOCK, fill, unit_blocks, unit_rows


def at_once(seed, first, last, width, stream):
    """As the first release drew them: everything in float64, and then one quotient."""
    drawn = []
    for block in range(first // BLOCK, (last + BLOCK - 1) // BLOCK):
        generator = torch.Generator().manual_seed((seed + stream * 2**33) * 1_000_003 + block)
        rows = torch.randn(BLOCK, width, dtype=torch.float64, generator=generator)
        drawn.append(rows[max(first - block * BLOCK, 0) : last - block * BLOCK])
    rows_FD = torch.cat(drawn)
    return rows_FD / rows_FD.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("first,last", [(0, 1024), (100, 700), (300, 301)])
@pytest.mark.parametrize("width", [7, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bit_for_bit(first, last, width, dtype):
    expected = at_once(3, first, last, width, 1)
    plain, scaled = (torch.empty(last - first, width, dtype=dtype) for _ in range(2))
    fill([(plain, 1.0), (scaled, 0.577)], unit_blocks(3, first, last, width, 1))
    assert torch.equal(plain, expected.to(dtype)) and torch.equal(scaled, (0.577 * expected).to(dtype))
    assert torch.equal(unit_rows(3, first, last, width, 1), expected)


class Largest(TorchDispatchMode):
    """Remembers the largest new tensor, in elements."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.elements = max(self.elements, out.numel())
        return out


def test_no_more_than_a_block_is_made_at_a_time():
    """2.5M latents at D = 2304 would be 46 GB in float64, three times over."""
    target, width = torch.empty(16 * BLOCK, 8), 8
    with Largest() as largest:
        fill([(target, 1.0), (target, 2.0)], unit_blocks(0, 0, len(target), width))
    assert 0 < largest.elements <= BLOCK * width
