"""An LLM held by a group of ranks gives the activations of the whole model, in part of the memory.

Rank 0 stands for a consumer: it holds no LLM and takes no part in what the group does.
"""

import pytest
import torch

from sae_dist.config.sections import LlmConfig, TopologyConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.place import Place
from sae_dist.distributed.mesh import Topology
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from tests.helpers.ranks import close_worlds, run_ranks
from tests.helpers.tiny_llms import packed_chunk as chunk
from tests.helpers.tiny_llms import save_tiny

CPU = torch.device("cpu")


def group_of(size: int, shard: str) -> Topology:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    place = Place(rank, world, rank, world)
    return Topology(TopologyConfig(producers=1), place, "cpu", team_size=size, in_step=shard == "zero3")


def load(name: str, hook: str | None, team=None, **how) -> FrozenLlm:
    cfg = LlmConfig(name=name, attn="eager", **how)
    return FrozenLlm.load(
        cfg, llm_facts(cfg, hook)[0], device=CPU, dtype=torch.float32, with_head=False, team=team
    )


def local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if hasattr(weight, "to_local") else weight


def compared(name: str, hook: str | None, shard: str, offload: bool):
    """On a rank of the group: relative difference; bytes of its part, most gathered at once, of the model."""
    topology = group_of(2, shard)
    if topology.is_consumer:
        return None
    whole = load(name, hook)
    llm = load(name, hook, topology.team, shard=shard, shard_size=2, offload=offload)
    most = [0]
    parameters = list(llm.model.parameters())
    kept = sum(p.ds_tensor.nbytes if shard == "zero3" else local(p).nbytes for p in parameters)

    def look(*_):
        most[0] = max(most[0], sum(p.numel() * p.element_size() for p in parameters if shard == "zero3"))

    for module in llm.model.modules():
        module.register_forward_pre_hook(look)
        module.register_forward_hook(look)
    # With ZeRO-3 each rank has chunks of its own, of other numbers of forwards: one or two.
    mine = topology.team.rank if shard == "zero3" else 0
    lengths = [((9, 20, 6), (30,)), ((9, 20, 11), (3, 37))][mine]
    packed = chunk(lengths=lengths)
    expected, found = whole.activations(packed), llm.activations(packed)
    if shard == "zero3":
        assert all(p.numel() == 0 for p in parameters), "nothing stays whole after a forward"
        # A last round in which only the first rank has a chunk.
        if mine == 0:
            assert torch.equal(llm.activations(packed), found)
        else:
            llm.idle()
    total = sum(p.nbytes for p in whole.model.parameters())
    return float((found - expected).norm() / expected.norm()), kept, most[0], total


@pytest.fixture(autouse=True)
def fresh_ranks():
    """DeepSpeed and DTensor remember groups of ranks that are gone after a test."""
    close_worlds()
    yield
    close_worlds()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    saved = {"embedded": "embedded"}
    for kind in ("llama", "gpt2"):
        saved[kind] = save_tiny(kind, tmp_path_factory.mktemp(kind))
    return saved


@pytest.mark.parametrize(
    "shard,kind,hook,offload",
    [
        ("zero3", "embedded", "layers.3", False),
        ("zero3", "llama", "layers.1.mlp:in", True),
        ("zero3", "gpt2", "h.1.attn", False),
        ("tp", "embedded", "layers.3", False),
        ("tp", "llama", "layers.1.mlp:in", False),
        ("tp", "llama", "layers.1.attn", False),
    ],
)
def test_activations_are_those_of_the_whole_model(shard, kind, hook, offload, folders):
    _, *group = run_ranks(compared, 3, folders[kind], hook, shard, offload)
    for off, kept, most, total in group:
        assert off < (1e-6 if shard == "zero3" else 1e-5)
        assert kept < 0.51 * total + 5000, "half, but for norms and padding"
        assert most < total, "never all of it is gathered"
        if kind == "embedded":  # In the smaller ones the token embeddings are most of the model.
            assert kept + most < total


def split_hook(name: str) -> str:
    topology = group_of(2, "tp")
    if topology.is_consumer:
        return ""
    try:
        load(name, "layers.1.mlp.down_proj:in", topology.team, shard="tp", shard_size=2)
    except ConfigError as error:
        return str(error)
    return "loaded"


def test_a_hook_on_a_slice_is_refused(folders):
    _, *said = run_ranks(split_hook, 3, folders["llama"])
    assert all("24 of 48 columns" in each and "llm.shard=zero3" in each for each in said)
