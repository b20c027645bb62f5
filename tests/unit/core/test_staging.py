"""Copies from and to a GPU that is not there: pinned memory of a fixed size, and every byte."""

import pytest
import torch

from sae_dist.core.staging import STAGING_BYTES, Staging
from tests.helpers.fake_cuda import counting, fake_cuda
from tests.helpers.fake_device import OnDevice, is_pinned

SHAPES = [((), torch.float32), ((3, 5), torch.float64), ((1000, 7), torch.float32), ((0,), torch.int64)]


@pytest.mark.parametrize("num_bytes", [64, 2**16])
def test_every_byte_arrives_through_the_buffer(num_bytes):
    made = torch.Generator().manual_seed(0)
    sources = [(100 * torch.randn(shape, generator=made)).to(dtype) for shape, dtype in SHAPES]
    sources.append(sources[2].T[:5])  # as a parameter whose rows do not follow each other
    targets = [torch.empty(each.shape, dtype=each.dtype) for each in sources]
    with fake_cuda():
        staging = Staging(num_bytes)
        assert sum(each.nbytes for each in staging.halves) == num_bytes and is_pinned(staging.halves[1])
        with counting() as counts:
            staging.copy([(OnDevice(a), b) for a, b in zip(sources, targets, strict=True)])
            back = [OnDevice(torch.empty_like(each)) for each in targets]
            staging.copy_back(zip(targets, back, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(sources, targets, strict=True))
    assert all(torch.equal(a, b.inner) for a, b in zip(sources, back, strict=True))
    assert dict(counts.reads) == dict(counts.copies) == {}, "none but through pinned memory, without a wait"


def test_the_buffer_is_not_rounded_up():
    assert STAGING_BYTES.bit_count() == 1
