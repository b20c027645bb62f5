"""Lanes: order independent of topology, resumable, nothing lost, nothing read twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.core.errors import DataError
from sae_dist.shuffle.lanes import Counts, Shuffle
from tests.helpers.sources import Numbers


def shuffles(consumers: int, *, lanes=24, rows=8, batch=96, steps=40, block=2, chunks=10**6):
    return [
        Shuffle(
            Numbers(lanes, rows, chunks),
            list(range(consumer, lanes, consumers)),
            num_lanes=lanes,
            rows_per_step=batch // consumers,
            steps=steps,
            seed=3,
            block_chunks=block,
        )
        for consumer in range(consumers)
    ]


def batch_of(parts, step):
    """The rows of a step in the order of the run: rank r holds rows r, r + C, ..."""
    return torch.stack([part.draw(step)[1] for part in parts], 1).flatten()


@pytest.mark.parametrize("consumers", [2, 3, 4, 6, 8, 12, 24])
def test_order_does_not_depend_on_consumers(consumers):
    alone, together = shuffles(1), shuffles(consumers)
    for step in range(40):
        assert torch.equal(batch_of(alone, step), batch_of(together, step))


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 60),
    lanes=st.sampled_from([1, 5, 12]),
    rows=st.integers(1, 9),
    block=st.integers(1, 4),
)
def test_no_row_twice_and_none_far_from_its_place(batch, lanes, rows, block):
    (shuffle,) = shuffles(1, lanes=lanes, rows=rows, batch=batch, block=block, steps=30)
    drawn = torch.cat([shuffle.draw(step)[1] for step in range(30)])
    assert len(drawn.unique()) == len(drawn)
    # Every lane has handed out all rows of the groups before the one it stands in and the one before.
    for lane in range(lanes):
        mine = drawn[(drawn // rows) % lanes == lane]
        chunk = mine // (rows * lanes)
        complete = int(chunk.max()) // block - 2 if len(mine) else -1
        if complete >= 0:
            assert int((chunk // block <= complete).sum()) == (complete + 1) * block * rows


@pytest.mark.parametrize("stop", [1, 3, 7, 23])
@pytest.mark.parametrize("before,after", [(1, 1), (2, 3), (4, 1)])
def test_resume_continues_the_same_order(stop, before, after):
    whole, parts = shuffles(1), shuffles(before)
    expected = [batch_of(whole, step) for step in range(40)]
    for step in range(stop):
        batch_of(parts, step)
    states = {key: value for part in parts for key, value in part.state().items()}
    resumed = shuffles(after)
    for part in resumed:
        part.restore(states)
    for step in range(stop, 40):
        assert torch.equal(batch_of(resumed, step), expected[step])
    # Groups that were read again are not counted again.
    counts = [[part.counts() for part in parts] for parts in (whole, resumed)]
    assert sum(counts[0], Counts()) == sum(counts[1], Counts()) and counts[0][0].excluded > 0


def test_resume_reads_at_most_two_groups_more_per_lane():
    (shuffle,) = shuffles(1)
    for step in range(30):
        shuffle.draw(step)
    (resumed,) = shuffles(1)
    resumed.restore(shuffle.state())
    assert resumed.lanes[0].source.asked <= 24 * 2 * 2


def test_run_reads_little_more_than_it_hands_out():
    (shuffle,) = shuffles(1, steps=200)
    for step in range(200):
        shuffle.draw(step)
    needed = 200 * 96 / 8
    assert shuffle.lanes[0].source.asked <= needed + 24 * 3


def test_source_that_ends_is_named():
    (shuffle,) = shuffles(1, chunks=3)
    with pytest.raises(DataError, match=r"ran out in lane .*\(tokens\.epochs\)"):
        for step in range(40):
            shuffle.draw(step)


def test_seed_changes_the_order_and_blocks_are_mixed():
    (shuffle,) = shuffles(1, rows=32, batch=24 * 64)
    ids = shuffle.draw(0)[1]
    within = ids[ids // 32 % 24 == 0] % 32
    assert within.tolist() != sorted(within.tolist())
