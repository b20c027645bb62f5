"""TF32 is for the products that ask for it, forward and backward, and tiles fit the device."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_dist.config.kinds import PENALISED
from sae_dist.dictionary.penalised import tile_size
from sae_dist.kernels import torch_backend
from sae_dist.kernels.products import products
from tests.unit.dictionary.test_devices import ROWS, WIDTH, made


class Precisions(TorchDispatchMode):
    """Collects the precision at every matrix product; its operands' shapes tell which it is."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.found.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


def precisions(kind: str, tf32: bool, most_dead: int | None = None) -> list[str]:
    """Of all products of a step with AuxK, in their order."""
    dictionary = made(kind, torch_backend)
    dictionary.setting = replace(dictionary.setting, tf32=tf32)
    dictionary.dead.last_fired_F[2:] = ROWS
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    with Precisions() as seen:
        dictionary.loss(rows, ROWS, most_dead is not None, most_dead).total.backward()
    assert torch.get_float32_matmul_precision() == "highest"
    return seen.found


@pytest.mark.parametrize("kind", PENALISED)
def test_products_of_all_latents_are_in_tf32_where_it_is_wanted(kind):
    """Scores and reconstruction, these again in the backward pass, and its gradients."""
    found = precisions(kind, tf32=True)
    assert len(found) >= 2 + 2 + 3 and set(found) == {"high"}
    assert precisions(kind, tf32=False) == ["highest"] * len(found)


def test_only_the_products_of_auxk_are_in_tf32():
    """Its scores, reconstruction, and three gradients; the selection of codes is exact."""
    found = precisions("topk", True, 2)
    assert found.count("high") == 5 and "highest" in found
    assert set(precisions("topk", False, 2)) == {"highest"}
    assert set(precisions("topk", True)) == {"highest"}


def test_the_precision_is_put_back_after_an_error():
    with pytest.raises(ValueError, match="broken"), products(tf32=True):
        raise ValueError("broken")
    assert torch.get_float32_matmul_precision() == "highest"


def test_tiles_are_larger_on_a_gpu():
    """Products of 8192 rows and latents, not of 512 latents."""
    assert tile_size(8192, torch.device("cuda")) == 8192
    assert tile_size(8192, torch.device("cpu")) == 512
    assert tile_size(2**30, torch.device("cpu")) == 1
