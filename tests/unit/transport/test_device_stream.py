"""The device's part of the transport, on a GPU that is not there: both sides in one process."""

import queue
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sae_dist.core.errors import TransportError
from sae_dist.transport import collective
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.wire import Stream
from tests.helpers.fake_cuda import CUDA, FakeCuda, OnDevice, fake_cuda
from tests.helpers.fake_steps import CHUNK, LANES, WIDTH, Chunks
from tests.helpers.ranks import run_ranks


class Link:
    """Sends and receives between the two, in order, as on NCCL's stream of a pair."""

    def __init__(self):
        self.moving = queue.SimpleQueue()

    def isend(self, tensor, peer, group):
        self.moving.put(tensor.clone())
        return SimpleNamespace(wait=lambda: True, is_completed=lambda: True)

    def irecv(self, tensor, peer, group):
        tensor.copy_(self.moving.get())
        return SimpleNamespace(wait=lambda: True, is_completed=lambda: True)


def side(rank):
    """One side's topology."""
    return SimpleNamespace(
        rank=rank,
        group=0,
        num_groups=1,
        num_consumers=1,
        num_producers=1,
        producer_index=0,
        in_step=False,
        is_sender=rank == 1,
        team=None,
        stream_groups={(0, 0): None},
        consumer_rank=lambda lane, group: 0,
        producer_rank=lambda producer: 1,
        lanes_of_producer=lambda producer, lanes: [*range(lanes)],
    )


def stream(rank, name, timeout_s=20.0):
    sizes = {"lanes": LANES, "rows": CHUNK, "width": WIDTH, "dtype": torch.bfloat16}
    return Stream(side(rank), device=CUDA, timeout_s=timeout_s, name=name, **sizes)


def moved_from(source):
    """Move three chunks of each lane; what the consumer got, and what was counted."""
    link = Link()
    with fake_cuda() as counts, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "isend", link.isend)
        patch.setattr(dist, "irecv", link.irecv)
        remote = RemoteChunks(stream(0, f"moved {source}"), lanes=[*range(LANES)], ahead=2, in_flight=2)
        lanes = [remote.open(lane, None) for lane in range(LANES)]

        def live():
            with FakeCuda():
                produce(stream(1, f"moved {source}"), Chunks(WIDTH, torch.device(source)), 2)

        producer = threading.Thread(target=live)
        producer.start()
        found = [next(lane) for _ in range(3) for lane in lanes]
        remote.close()
        producer.join(20)
        expected = {
            chunk.number: chunk
            for v in range(LANES)
            for chunk, _ in zip(Chunks(WIDTH, CUDA).open(v, None), range(3), strict=False)
        }
        for chunk in found:
            rows = expected[chunk.number].rows_RD
            assert isinstance(chunk.rows_RD, OnDevice) and chunk.rows_RD.dtype == torch.bfloat16
            assert torch.equal(chunk.rows_RD.inner, rows.inner.to(torch.bfloat16))
        return dict(counts.copies), counts.recorded


@pytest.mark.parametrize("source", ["cuda", "cpu"])
def test_chunks_stay_on_the_device(source):
    ((copies, recorded),) = run_ranks(moved_from, 1, source)
    # Rows are told to the stream of who sends them, and of who reads them.
    assert copies == {} and recorded >= 12


def waited():
    """How a consumer ends whose receiving thread stands still."""
    with fake_cuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(collective, "LOOK_S", 0.1)
        remote = RemoteChunks(stream(0, "waited", 0.5), lanes=[0], ahead=2, in_flight=2)
        patch.setattr(remote, "_receive", threading.Event().wait)
        with pytest.raises(TransportError) as error:
            next(remote.open(0, None))
        return str(error.value)


def test_a_receiving_thread_that_stands_still_is_told():
    (said,) = run_ranks(waited, 1, timeout_s=20)
    assert said == (
        "the thread that receives chunks stands still: none came for 0.75 s, in a wait for one of lane 0"
    )
