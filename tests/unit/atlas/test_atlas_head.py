"""The head of a language model, from one rank to the others through the work folder."""

import numpy as np
import torch

from sae_dist.atlas.describe.effects import top_logits
from sae_dist.atlas.describe.head import Head
from sae_dist.atlas.describe.lists import Extra
from sae_dist.config.sections import LlmConfig
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from tests.helpers.tiny_llms import WIDTH, save_tiny

CPU = torch.device("cpu")


def load(name, hook, head=True, dtype=torch.bfloat16):
    cfg = LlmConfig(name=name)
    return FrozenLlm.load(cfg, llm_facts(cfg, hook)[0], device=CPU, dtype=dtype, with_head=head)


def test_effects_are_the_same_on_another_rank(tmp_path):
    llm = load(save_tiny("llama", tmp_path / "llm"), "layers.1:out")
    J_HE = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    rows = torch.randn(40, WIDTH)
    head, reason = Head.of(llm, WIDTH, 1500, J_HE)
    head.write(tmp_path)
    found = Head.open(tmp_path).effects(rows, 6, CPU)
    assert reason is None and found.keys() == {"up", "down", "lens_up", "lens_down"}
    W_U_VH = llm.unembedding()[:1500]
    wanted = [*top_logits(rows, W_U_VH, 6), *top_logits(rows, W_U_VH, 6, J_HE)]
    for one, other in zip(found.values(), wanted, strict=True):
        assert np.array_equal(one.id_fN, other.id_fN) and np.array_equal(one.values[0], other.values[0])
        assert one.id_fN.max() < 1500
    assert Extra(**found).near is None


def test_says_why_there_are_no_effects(tmp_path):
    """Of what the head does not read, only those through the layers between; of an encoder, none at all."""
    name = save_tiny("llama", tmp_path / "llm")
    J_HE = torch.randn(WIDTH, 48)
    head, reason = Head.of(load(name, "layers.1.mlp.down_proj:in"), 48, 1500, J_HE)
    head.write(tmp_path)
    assert "not added to the residual stream" in reason
    assert Head.open(tmp_path).effects(torch.randn(3, 48), 6, CPU).keys() == {"lens_up", "lens_down"}
    for llm, said in (
        (load(save_tiny("bert", tmp_path / "bert"), None), "encoder"),
        (load(name, "layers.1:out", head=False), "not loaded"),
    ):
        head, reason = Head.of(llm, WIDTH, 1500, None)
        head.write(tmp_path)
        assert said in reason and Head.open(tmp_path).effects(torch.randn(3, WIDTH), 6, CPU) == {}
