"""Packing: exact rows, nothing lost, no segment with two documents, any chunk reached again."""

import time

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.tokens.kept import DocumentTokens
from sae_dist.tokens.packing import MIN_SEGMENT, Packing
from sae_dist.tokens.source import TokenSource

BOS, SEP = 0, 1
FIELDS = ("ids_NS", "segment_NS", "position_NS", "keep_NS", "document_NS")


class Listed:
    """Documents of given lengths with distinct token ids; lane v has every lanes-th."""

    def __init__(self, lengths: list[int], lanes: int = 1):
        bounds = np.cumsum([10, *lengths])
        self.ids = [np.arange(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.lanes = lanes

    def documents(self, lane, epoch, first):
        mine = self.ids[lane :: self.lanes]
        for place in range(first, len(mine)):
            yield place, DocumentTokens(mine[place])


def source(lengths, *, context, rows, prefix=(BOS,), suffix=(), epochs=1, lanes=1):
    packing = Packing(context, prefix, suffix, rows)
    return TokenSource(Listed(lengths, lanes), packing, field="tokens.path=x", lanes=lanes, epochs=epochs)


def same(a, b):
    return (
        a.start == b.start
        and a.number == b.number
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
    )


cases = given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(sum),
    context=st.integers(3, 70),
    rows=st.integers(1, 130),
    special=st.sampled_from([((), ()), ((BOS,), ()), ((BOS,), (SEP,))]),
    epochs=st.integers(1, 3),
)


@settings(max_examples=150, deadline=None)
@cases
def test_every_chunk_keeps_exactly_the_rows_and_nothing_is_lost(lengths, context, rows, special, epochs):
    prefix, suffix = special
    chunks = list(
        source(lengths, context=context, rows=rows, prefix=prefix, suffix=suffix, epochs=epochs).open(0, None)
    )
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(int(chunk.keep_NS.sum()) == rows for chunk in chunks)
    kept = [chunk.ids_NS[chunk.keep_NS] for chunk in chunks]
    text = torch.arange(10, 10 + sum(lengths)).repeat(epochs)
    assert len(chunks) == len(text) // rows
    assert torch.equal(torch.cat([torch.zeros(0, dtype=torch.int64), *kept]), text[: len(chunks) * rows])


@settings(max_examples=100, deadline=None)
@cases
def test_segments_hold_one_document_between_its_special_tokens(lengths, context, rows, special, epochs):
    prefix, suffix = special
    opened = source(lengths, context=context, rows=rows, prefix=prefix, suffix=suffix, epochs=epochs)
    for chunk in opened.open(0, None):
        padding = chunk.segment_NS == 0
        assert not chunk.keep_NS[padding].any() and (chunk.document_NS[padding] == -1).all()
        for ids, segment, position, keep, document in zip(
            *(getattr(chunk, name) for name in FIELDS), strict=True
        ):
            for number in range(1, int(segment.max()) + 1):
                at = segment == number
                body = ids[at][len(prefix) : int(at.sum()) - len(suffix)]
                assert tuple(ids[at][: len(prefix)].tolist()) == prefix
                assert tuple(ids[at][len(prefix) + len(body) :].tolist()) == suffix
                assert torch.equal(position[at], torch.arange(int(at.sum())))
                assert len(document[at].unique()) == 1
                assert torch.equal(body, torch.arange(int(body[0]), int(body[0]) + len(body)))
                assert torch.equal(ids[at & keep], body)


@settings(max_examples=100, deadline=None)
@cases
def test_any_chunk_and_its_successors_are_reached_from_its_start(lengths, context, rows, special, epochs):
    prefix, suffix = special
    opened = source(lengths, context=context, rows=rows, prefix=prefix, suffix=suffix, epochs=epochs)
    chunks = list(opened.open(0, None))
    for index in range(0, len(chunks), max(1, len(chunks) // 5)):
        again = list(opened.open(0, dict(chunks[index].start)))
        assert len(again) == len(chunks) - index
        assert all(map(same, again, chunks[index:]))


def test_chunk_numbers_interleave_lanes():
    opened = source([50] * 6, context=32, rows=20, lanes=3)
    assert [chunk.number for chunk in opened.open(2, None)] == [2, 5, 8, 11, 14]


def test_a_tail_too_small_for_a_segment_stays_padding():
    opened = source([20, 100], context=20 + 1 + MIN_SEGMENT, rows=60)
    chunk = next(opened.open(0, None))
    assert chunk.segment_NS[0].max() == 1 and (chunk.segment_NS[0] == 0).sum() == MIN_SEGMENT


def test_a_short_document_may_use_the_tail():
    chunk = next(source([20, 5, 60], context=30, rows=60).open(0, None))
    assert chunk.segment_NS[0].max() == 2


def test_special_tokens_within_a_document_are_not_kept():
    documents = Listed([30])
    documents.ids = [np.array([BOS, 11, 12, BOS, 13, 14, SEP])]
    opened = TokenSource(documents, Packing(16, (BOS,), (SEP,), 4), field="x", lanes=1, epochs=1)
    (chunk,) = opened.open(0, None)
    assert chunk.ids_NS[chunk.keep_NS].tolist() == [11, 12, 13, 14]
    assert chunk.ids_NS[0, :2].tolist() == [BOS, 11]


def test_packing_is_far_faster_than_any_llm():
    opened = source([300] * 64, context=256, rows=1024, epochs=None).open(0, None)
    next(opened)
    began = time.perf_counter()
    for _ in range(100):
        next(opened)
    assert 100 * 1024 / (time.perf_counter() - began) > 300_000
