"""The device's part of the transport, on a GPU that is not there: both sides in one process."""

import queue
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sae_dist.core.errors import DataError, TransportError
from sae_dist.transport import collective
from sae_dist.transport.ahead import Ahead
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.file import FileChunkSource
from sae_dist.transport.wire import Stream
from tests.helpers.fake_cuda import FakeCuda, fake_cuda
from tests.helpers.fake_device import CUDA, OnDevice
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


def test_rows_of_a_file_are_read_ahead_and_moved_without_a_wait():
    """In the dtype of the wire; the same rows, ids and positions, from any start, to the end of a lane."""
    rows = torch.randn(40 * LANES, WIDTH, generator=torch.Generator().manual_seed(0))
    kept = {"lanes": LANES, "rows": 5, "seed": 0, "dtype": torch.bfloat16}
    plain = FileChunkSource(rows, held_out=True, **kept)
    asked, read = [], plain._read
    plain._read = lambda *place: asked.append(place) or read(*place)
    expected = [*plain.open(0, {"chunk": 1})]
    asked.clear()
    with fake_cuda() as counts:
        ahead = Ahead(plain, CUDA)
        lane = ahead.open(0, {"chunk": 1})
        found = [next(lane)]
        ahead.reader.submit(lambda: None).result(5)
        assert len(asked) == 2, "the next one is read while this one is used"
        found += lane
    assert len(found) == len(expected) > 2
    for chunk, own in zip(found, expected, strict=True):
        assert isinstance(chunk.rows_RD, OnDevice) and torch.equal(chunk.rows_RD.inner, own.rows_RD)
        assert torch.equal(chunk.ids_R, own.ids_R) and chunk.start == own.start and chunk.number == own.number
    assert dict(counts.copies) == {}


def test_what_the_reader_meets_is_raised_where_the_chunk_is_taken():
    rows = torch.full((16 * LANES, WIDTH), torch.nan)
    plain = FileChunkSource(rows, lanes=LANES, rows=5, seed=0, held_out=False, dtype=torch.float32)
    with fake_cuda(), pytest.raises(DataError, match="NaN or inf in row"):
        next(Ahead(plain, CUDA).open(0, None))
