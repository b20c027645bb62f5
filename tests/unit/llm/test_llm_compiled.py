"""llm.compile: the same activations, from one graph whatever the chunk."""

import pytest
import torch

from sae_dist.config.sections import LlmConfig
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from tests.helpers.tiny_llms import packed_chunk as chunk


@pytest.mark.long
def test_chunks_of_other_sizes_do_not_recompile():
    def load(compiled: bool) -> FrozenLlm:
        cfg = LlmConfig(name="embedded", compile=compiled)
        facts = llm_facts(cfg, "layers.1.mlp:in", "layers.1.mlp")[0]
        return FrozenLlm.load(cfg, facts, device=torch.device("cpu"), dtype=torch.float32, with_head=False)

    fast, plain = load(True), load(False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sizes = [((9, 20), (30,)), ((40,), (1, 8, 31)), ((7,),), ((12,), (30, 4), (25,), (3, 3), (40,))]
    for lengths in sizes:
        packed = chunk(lengths=lengths)
        torch.testing.assert_close(fast.activations(packed), plain.activations(packed), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
