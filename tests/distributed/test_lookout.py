"""Ranks that wait for what will not come, where no exception can reach them, end with the reason."""

import os
import socket
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from sae_dist.core.errors import DataError, TransportError
from sae_dist.core.process import pause
from sae_dist.distributed.control import Control
from sae_dist.distributed.lookout import Lookout
from sae_dist.transport.wire import Stream, Transfer
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.fake_device import CUDA
from tests.helpers.ranks import run_ranks

TIMEOUT_S = 2.0


def stood(case, stands_still_s, seconds):
    """What ended rank 1, which stands still in the system's `read`, as within a call of CUDA; and when."""
    control = Control(TIMEOUT_S, f"{case} {stands_still_s}")
    control.step = lambda: 12
    if dist.get_rank() == 0:
        if case == "another failed":
            control.tell(0, DataError("no room left"))
        if case == "another is silent":
            control.set("beat/0", "0 host far, step 11")
        dist.barrier()
        return None
    control.start_beating(1)
    ours, theirs = os.pipe()
    ended = []

    def leave(error):
        ended.append(error)
        os.write(theirs, b"x")

    lookout = Lookout(control, 1, leave, stands_still_s=stands_still_s, grace_s=0.5, look_s=0.1)
    began = time.monotonic()
    if case == "a wait with an end":
        while time.monotonic() < began + seconds:
            pause(0.05)
        os.write(theirs, b"x")
    os.read(ours, 1)
    took = time.monotonic() - began
    control.ended.set()
    lookout.thread.join(5)
    dist.barrier()
    return [str(error) for error in ended], took


@pytest.mark.parametrize(
    "case,stands_still_s,said",
    [
        ("another failed", None, "rank 0 failed: no room left"),
        ("another is silent", 2.0, "rank 0 (host far, step 11) shows no sign of life, and rank 1 waited"),
        ("nobody is silent", 1.0, "rank 1 waited 1 s for a device or for other ranks"),
    ],
)
def test_a_rank_that_stands_still_ends_with_the_reason(case, stands_still_s, said):
    _, (ended, took) = run_ranks(stood, 2, case, stands_still_s, 0.0, timeout_s=20)
    assert len(ended) == 1 and ended[0].startswith(said) and took < 5
    assert case != "nobody is silent" or f"(host {socket.gethostname()}, step 12)" in ended[0]


def test_a_wait_that_ends_by_itself_is_left_alone():
    _, (ended, _) = run_ranks(stood, 2, "a wait with an end", 0.5, 1.5, timeout_s=20)
    assert ended == []


class NeverDone:
    """A fake of NCCL's Work, whose peer is gone: its `wait` returns at once, and nothing ever arrives."""

    def is_completed(self):
        return False

    def wait(self):
        return True


def finished(fails):
    """How a chunk ends that NCCL never moves, and after how long."""
    with fake_cuda():
        stream = Stream(
            SimpleNamespace(rank=0),
            lanes=1,
            rows=1,
            width=1,
            dtype=None,
            device=CUDA,
            timeout_s=1.0,
            name=f"never {fails}",
        )
        if fails:
            stream.control.tell(3, DataError("no room left"))
        began = time.monotonic()
        with pytest.raises(TransportError) as error:
            stream.finish(Transfer(7, "producer rank 1", [NeverDone()], []))
    return str(error.value), time.monotonic() - began


def test_a_chunk_that_nccl_never_moves_is_told():
    ((said, seconds),) = run_ranks(finished, 1, False, timeout_s=20)
    assert said == "producer rank 1 was silent for 1 s (topology.timeout_s), in the middle of chunk 7"
    assert 1 <= seconds < 3


def test_a_failure_is_told_while_nccl_moves_nothing():
    ((said, seconds),) = run_ranks(finished, 1, True, timeout_s=20)
    assert said.startswith("rank 3 failed: no room left") and seconds < 1
