"""Whole runs whose LLM is held by a group of ranks: same data, same curve as one process."""

import pytest

from tests.commands import train
from tests.parity.test_world_size import relative, values

RUN = ["train_tokens=23040", "sae.num_latents=512", "optim.lr=5e-3"]
GROUPS = {
    "zero3": ["llm.shard=zero3", "llm.shard_size=2", "topology.producers=1"],
    "offload": ["llm.shard=zero3", "llm.shard_size=2", "topology.producers=1", "llm.offload=true"],
    "tp": ["llm.shard=tp", "llm.shard_size=2", "topology.producers=1", "topology.shard=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder):
    return train(folder, "alone", *RUN)


@pytest.mark.parametrize("group", GROUPS)
def test_the_run_is_the_one_of_one_process(group, folder, alone):
    found = train(folder, group, *RUN, *GROUPS[group])
    assert len(alone) == 30
    assert values(found, "stream/batch_hash") == values(alone, "stream/batch_hash")
    off = relative(values(found, "loss/total"), values(alone, "loss/total"))
    assert max(off[:10]) < 1e-4
    assert max(off) < 3e-2
