"""Whole runs whose LLM is held by a group of ranks, and stopped on the way: data and curve of one process."""

import signal

import pytest

from tests.helpers.commands import TINY, ranks_of, train
from tests.helpers.runs import relative, values, wait_for_checkpoint
from tests.helpers.warm import Command

RUN = ["train_tokens=15360", "sae.num_latents=512", "optim.lr=5e-3", "checkpoint.every=3840"]
GROUPS = {
    "zero3": ["llm.shard=zero3", "llm.shard_size=2", "topology.producers=1", "llm.offload=true"],
    "tp": ["llm.shard=tp", "llm.shard_size=2", "topology.producers=1", "topology.shard=2"],
}


@pytest.fixture(scope="module")
def alone(folder):
    return train(folder, "alone", *RUN)


@pytest.mark.long
@pytest.mark.parametrize("group,number", [("zero3", signal.SIGTERM), ("tp", signal.SIGKILL)])
def test_a_run_that_was_stopped_is_the_one_of_one_process(group, number, folder, alone):
    words = [*RUN, *GROUPS[group]]
    process = Command(folder, "train", *TINY, *words, f"name={group}", ranks=ranks_of(words))
    wait_for_checkpoint(process, folder / "outputs" / group)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.poll() == (75 if number == signal.SIGTERM else -number), err
    found = train(folder, group, *words, "resume=auto")
    assert len(alone) == len(found) == 20
    assert values(found, "stream/batch_hash") == values(alone, "stream/batch_hash")
    off = relative(values(found, "loss/total"), values(alone, "loss/total"))
    assert max(off[:10]) < 1e-4
    assert max(off) < 3e-2
