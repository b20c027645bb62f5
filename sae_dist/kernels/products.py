"""The precision of matrix products on a GPU: TF32 where a run asks for it, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Round the inputs of float32 products to TF32 within this context, if `tf32`.

    The setting is the process's, so that it reaches the threads of a backward pass; it is put back at the
    end, since exact scores and the products of everything else stay in float32.
    """
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
