"""The text of an atlas: every token once, rows at their places, the same after a stop."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.atlas.postings import NO_PLACE
from sae_dist.atlas.schema import KEPT, LEFT_OUT, OUTLIER
from sae_dist.atlas.text import Plan, Recorded, assemble
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.tokens.packing import Packing
from sae_dist.tokens.source import TokenSource
from tests.unit.tokens.test_packing import BOS, Listed

OUTLYING = 7
"""Every so many tokens has a long activation."""


class Llm:
    """The activation of a token is its id; of some it is a thousand times that of others."""

    dtype = torch.float32
    facts = SimpleNamespace(widths=(2,), columns=2, hooks=("h",), are_sources=(True,))

    def activations(self, chunk):
        ids_R = chunk.ids_NS[chunk.keep_NS].float()
        norm_R = torch.where(ids_R % OUTLYING == 0, 1000.0, 1.0)
        return torch.stack([norm_R, ids_R / 1e6], 1)


def recorded(folder, lengths, plan, multiple=None, context=20):
    packing = Packing(context, (BOS,), (), plan.rows)
    text = TokenSource(
        Listed(lengths, plan.lanes), packing, field="x", lanes=plan.lanes, epochs=1, short=True
    )
    source = LlmChunkSource(Llm(), text, rows=plan.rows, spare=0, max_norm_multiple=multiple)
    return Recorded(source, folder, plan)


def rows_of(source, plan):
    """Read all lanes; the token of each row, by the row's number."""
    found = {}
    for lane in range(plan.lanes):
        for chunk in source.open(lane, None):
            for place, token in enumerate(chunk.ids_R[: plan.rows - chunk.repeated].tolist()):
                found[chunk.number * plan.rows + place] = token
    return found


def tables(folder):
    tokens = pq.read_table(folder / "tokens.parquet").to_pydict()
    return {name: np.array(values) for name, values in tokens.items()}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(sum),
    lanes=st.integers(1, 5),
    rows=st.integers(1, 40),
    window=st.integers(1, 3),
    multiple=st.sampled_from([None, 10.0]),
)
def test_every_token_is_there_once_and_rows_stand_at_their_places(
    tmp_path_factory, lengths, lanes, rows, window, multiple
):
    folder, plan = tmp_path_factory.mktemp("atlas"), Plan(lanes, rows, 10**6, window)
    token_of = rows_of(recorded(folder, lengths, plan, multiple), plan)
    numbers = assemble(folder, plan)
    tokens = tables(folder)
    body = tokens["state"] != LEFT_OUT
    assert sorted(tokens["token"][body]) == list(range(10, 10 + sum(lengths)))
    assert (tokens["token"][~body] == BOS).all() and (tokens["position"][~body] == 0).all()
    assert (np.diff(tokens["at"]) == 1).all() and (np.diff(tokens["position"])[body[1:]] == 1).all()
    of_text = Listed(lengths).ids
    documents = pq.read_table(folder / "documents.parquet").to_pylist()
    assert len(documents) == sum(length > 0 for length in lengths) == numbers["documents"]
    for each in documents:
        own = slice(each["begin"], each["begin"] + each["tokens"])
        ids = of_text[each["lane"] + each["number"] * lanes]
        assert (tokens["token"][own][body[own]] == ids).all()
        assert (tokens["document"][own] == each["document"]).all()
        assert (tokens["state"][own] == KEPT).sum() == each["kept"]
    at_of_row = np.load(folder / "work" / "at_of_row.npy")
    assert {row: tokens["token"][at] for row, at in enumerate(at_of_row) if at != NO_PLACE} == token_of
    if multiple is None:
        assert len(token_of) == sum(lengths)
    outliers = tokens["token"][tokens["state"] == OUTLIER]
    assert not (outliers % OUTLYING).any() and numbers["outliers"] == len(outliers)
    assert len(outliers) + len(token_of) == sum(lengths)


def test_the_plan_s_end_is_the_text_s_end(tmp_path):
    plan = Plan(lanes=3, rows=10, chunks=7, window=2)
    token_of = rows_of(recorded(tmp_path, [100] * 9, plan), plan)
    assert max(token_of) < 70 and assemble(tmp_path, plan)["kept"] == len(token_of) == 70


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_a_lane_that_goes_on_writes_the_same(tmp_path, stop_after):
    plan = Plan(lanes=1, rows=10, chunks=100, window=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rows_of(recorded(whole, [95, 30], plan), plan)
    begun = recorded(parts, [95, 30], plan).open(0, None)
    chunks = [next(begun) for _ in range(stop_after)]
    windows = stop_after // 2
    if windows:  # as a pass goes on: at the last chunk of the last window that is done
        last = chunks[2 * windows - 1]
        again = recorded(parts, [95, 30], plan).open(0, last.start)
        assert torch.equal(next(again).rows_RD, last.rows_RD)
    else:
        again = recorded(parts, [95, 30], plan).open(0, None)
    assert list(again)
    assert assemble(parts, plan) == assemble(whole, plan)
    assert (parts / "tokens.parquet").read_bytes() == (whole / "tokens.parquet").read_bytes()
