"""Every kind of dictionary through the command: trained, exported and evaluated, split over ranks or not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.commands import train
from tests.helpers.small_llm import SMALL

SHORT = [
    *SMALL,
    "precision=float64",
    "sae.num_latents=512",
    "train_tokens=1920",
    "optim.lr=3e-3",
]
EVALUATED = ["eval.tokens=512", "eval.ce_tokens=256"]
KINDS = {
    "topk": ["optim=row_adam"],
    "batchtopk": [],
    "matryoshka": ["optim=row_adam", "optim.beta1=0"],
    "relu": ["sae.l1_weighting=none", "sae.sparsity=0.01"],
    "jumprelu": ["sae.threshold=0.5", "hook=layers.1.mlp:in", "target_hook=layers.1.mlp", "sae.skip=true"],
    "gated": ["sae.sparsity=0.02"],
}


def close(one, other, tolerance):
    return (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_ends_well_and_the_same_on_two_ranks(kind, folder):
    arguments = [f"sae={kind}", *KINDS[kind], *SHORT]
    topology = "topology.dp=2" if kind in ("matryoshka", "relu") else "topology.shard=2"
    alone = train(folder, f"{kind}_alone", *arguments, *EVALUATED)
    shared = train(folder, f"{kind}_shared", *arguments, topology)
    assert len(alone) == len(shared) == 10
    assert alone[-1]["loss/fvu"] < alone[0]["loss/fvu"], "it learns"
    for one, other in zip(alone, shared, strict=True):
        assert abs(one["loss/total"] - other["loss/total"]) < 1e-8 * abs(one["loss/total"])
        assert one["sparsity/l0"] == other["sparsity/l0"]
    summary = json.loads((folder / "outputs" / f"{kind}_alone" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["l0"] > 0 and 0 < summary["fvu"] < 2
    # What a transcoder of this random model's MLP stands for does not lower the loss: nothing to recover.
    assert summary["ce_sae"] > 0 and (summary["ce_recovered"] is not None or kind == "jumprelu")
    weights = [
        load_file(folder / "outputs" / f"{kind}_{n}" / "export" / "sae_weights.safetensors")
        for n in ("alone", "shared")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.isfinite(tensor).all()
        assert close(tensor, weights[1][name], 1e-5), name


@pytest.mark.long
def test_a_row_lazy_run_continues_on_another_mesh(folder):
    """Moments that two replicas own are taken up by one, and the curve goes on as if nothing had happened."""
    arguments = ["optim=row_adam", *SHORT, "checkpoint.every=960"]
    whole = train(folder, "whole", *arguments)
    train(folder, "part", *arguments, "topology.dp=2", "topology.shard=2")
    run = folder / "outputs" / "part"
    # Back to the middle of the run: the last checkpoint and what came of it are taken away.
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    (run / "summary.json").unlink()
    found = train(folder, "part", *arguments, "resume=auto")
    assert [row["step"] for row in found] == [row["step"] for row in whole]
    for one, other in zip(whole, found, strict=True):
        assert abs(one["loss/total"] - other["loss/total"]) < 1e-8 * abs(one["loss/total"])
