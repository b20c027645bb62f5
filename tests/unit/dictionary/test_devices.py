"""Steps of every kind make each tensor on the device of what it meets.

The host is the device of the dictionary here, and a tensor that is made without a device is on
none ("meta"), where on a GPU it would be on the host: torch refuses to mix the two in both cases.
"""

from types import SimpleNamespace

import pytest
import torch

from sae_dist.config.kinds import KINDS, SELECTED
from sae_dist.config.resolve import resolve
from sae_dist.dictionary import batch_selection
from sae_dist.dictionary.base import Setting, dictionary_class
from sae_dist.kernels import reference, torch_backend
from sae_dist.launch.compose import compose_config

ROWS, WIDTH = 16, 8
HOST = torch.device("cpu")


class Axis:
    """An axis of one rank, as in `distributed.collectives`."""

    size, rank = 1, 0

    def __getattr__(self, name):
        return lambda values, *_: values


ONE = SimpleNamespace(num_shards=1, num_replicas=1, num_consumers=1, index=0, rank=0, world=1)
AXES = SimpleNamespace(**vars(ONE), shard=Axis(), dp=Axis(), consumers=Axis())


def made(kind, kernels):
    """A small dictionary."""
    sizes = ["sae.num_latents=64", "sae.k=4", f"batch={ROWS}", "train_tokens=1600", "sae.dead_after=1"]
    cfg = resolve(compose_config([f"sae={kind}", "device=cpu", "metrics.wandb=off", *sizes]), None, WIDTH)
    setting = Setting(cfg.sae, (WIDTH,), ROWS, 1600, 0, AXES, kernels, HOST, torch.float32)
    return dictionary_class(kind)(setting)


def step(kind, kernels):
    """Run the loss of one step, AuxK included, and its gradients."""
    dictionary = made(kind, kernels)
    rows = torch.randn(ROWS, WIDTH)
    with torch.device("meta"):
        dictionary.start_from(rows)
        terms = dictionary.loss(rows, ROWS, True)
        terms.total.backward()
    assert terms.total.isfinite() and dictionary.W_enc.grad.abs().sum() > 0
    return terms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [reference, torch_backend], ids=["reference", "torch"])
def test_a_step_stays_on_its_device(kind, kernels):
    terms = step(kind, kernels)
    assert ("aux" in terms.parts) == (kind in ("topk", "batchtopk", "matryoshka"))


def test_a_tensor_of_the_host_shows(monkeypatch):
    honest = batch_selection.row_of_batch
    monkeypatch.setattr(batch_selection, "row_of_batch", lambda *given: honest(*given[:2], None))
    with pytest.raises(RuntimeError, match="same device|expected device"):
        step("batchtopk", reference)


@pytest.mark.parametrize("kind", SELECTED)
def test_rows_scored_again_are_counted_in_each_step(kind):
    def encode_topk(x_BD, W_FD, b_F, k, redone):
        redone += 3
        return reference.encode_topk(x_BD, W_FD, b_F, k)

    dictionary = made(kind, SimpleNamespace(**vars(torch_backend) | {"encode_topk": encode_topk}))
    for seed in (0, 1):
        rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
        found = dictionary.loss(rows, ROWS, False).parts["num_redone"]
        assert found == 3 or kind != "topk" and found > 3 and found % 1 == 0


def test_rows_that_a_batch_leaves_short_are_counted():
    """One row takes all codes of the batch: it has too few candidates at first."""
    dictionary = made("batchtopk", reference)
    rows = torch.zeros(ROWS, WIDTH)
    rows[3] = 1.0
    assert dictionary.loss(rows, ROWS, False).parts["num_redone"] >= 1
