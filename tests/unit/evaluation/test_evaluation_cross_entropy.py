"""Cross-entropy bookkeeping, on a language model small enough to compute by hand."""

import math

import pytest
import torch

from sae_dist.core.types import TokenChunk
from sae_dist.evaluation.quality.cross_entropy import cross_entropy, embedding_cosine, replacements
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels.reference import encode_topk
from tests.helpers.dictionaries import dense_output, random_sae

V, D, BOS = 11, 8, 0


class TinyLm:
    """Hidden state = embedding of the current token; logits = hidden @ head. The hook is the embedding."""

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(V, D, generator=draw)
        successor = torch.roll(torch.arange(V), -1)
        self.head = torch.linalg.lstsq(self.embedding, 3.0 * torch.eye(V)[successor]).solution

    def final_hidden(self, chunk, replace):
        hidden = self.embedding[chunk.ids_NS]
        if replace is not None:
            hidden = hidden.clone()
            hidden[chunk.keep_NS] = replace(hidden[chunk.keep_NS])
        return hidden

    def logits(self, chunk, replace):
        return self.final_hidden(chunk, replace) @ self.head


def make_chunk() -> TokenChunk:
    """Two sequences: two segments with BOS in the first; one with padding and a suffix (id 10)."""
    ids = torch.tensor([[BOS, 1, 2, 3, BOS, 4, 5], [BOS, 6, 7, 10, 0, 0, 0]])
    segment = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]])
    keep = (segment > 0) & (ids != BOS) & (ids != 10)
    return TokenChunk(0, 0, ids, segment, torch.zeros_like(ids), keep, segment, {})


def by_hand(llm: TinyLm, chunk: TokenChunk, replace=None) -> float:
    pairs = [(0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (1, 0), (1, 1)]
    log_p = llm.logits(chunk, replace).log_softmax(-1)
    return -sum(float(log_p[n, s, chunk.ids_NS[n, s + 1]]) for n, s in pairs) / len(pairs)


def test_targets_stay_in_their_segment_and_are_no_suffix_or_padding():
    llm, chunk = TinyLm(), make_chunk()
    zero = torch.zeros_like
    acts = {"sae": lambda x: x, "mean_ablated": zero, "zero_ablated": zero}
    result = cross_entropy(llm, iter([chunk]), acts, tokens=1)["sae"]
    assert result["ce_tokens"] == 7
    assert result["ce_clean"] == pytest.approx(by_hand(llm, chunk), rel=1e-5)
    assert result["ce_zero_ablated"] == pytest.approx(by_hand(llm, chunk, zero), rel=1e-5)
    assert result["ce_recovered"] == result["ce_recovered_zero"] == 1.0


def test_recovered_is_zero_for_the_ablation_itself_and_between_for_less():
    llm, chunk = TinyLm(), make_chunk()
    mean = llm.embedding.mean(0)
    ablate = mean.expand_as
    acts = {"sae": ablate, "mean_ablated": ablate, "zero_ablated": torch.zeros_like}
    assert cross_entropy(llm, iter([chunk]), acts, 1)["sae"]["ce_recovered"] == 0.0
    acts["sae"] = lambda x: 0.5 * x + 0.5 * mean
    half = cross_entropy(llm, iter([chunk]), acts, 1)["sae"]
    assert 0.1 < half["ce_recovered"] < 0.99
    gap = half["ce_mean_ablated"] - half["ce_clean"]
    assert half["ce_recovered"] == pytest.approx((half["ce_mean_ablated"] - half["ce_sae"]) / gap)


def test_a_hook_that_does_not_matter_gives_null_with_a_reason():
    llm, chunk = TinyLm(), make_chunk()
    acts = {name: (lambda x: x) for name in ("sae", "mean_ablated", "zero_ablated")}
    result = cross_entropy(llm, iter([chunk]), acts, 1)["sae"]
    assert result["ce_recovered"] is None and "does not matter" in result["ce_reason"]
    assert cross_entropy(llm, iter([]), acts, 1)["sae"]["ce_reason"] == "there are no held-out tokens"


def test_reading_stops_when_enough_tokens_were_seen():
    acts = {name: torch.zeros_like for name in ("sae", "mean_ablated", "zero_ablated")}
    chunks = iter([make_chunk() for _ in range(5)])
    assert cross_entropy(TinyLm(), chunks, acts, tokens=8)["sae"]["ce_tokens"] == 14
    assert len(list(chunks)) == 3


def test_encoders_get_the_cosine_of_the_pooled_embedding():
    llm, chunk = TinyLm(), make_chunk()
    arms = {"same": lambda x: x, "spliced": lambda x: -x}
    same, spliced = embedding_cosine(llm, iter([chunk]), arms, 1).values()
    assert same["embedding_cosine"] == pytest.approx(1.0) and same["ce_recovered"] is None
    assert "encoder" in same["ce_reason"]
    clean = [llm.embedding[list(ids)].mean(0) for ids in ([0, 1, 2, 3], [0, 4, 5], [0, 6, 7, 10])]
    signs = [torch.tensor(s)[:, None] for s in ([1, -1, -1, -1], [1, -1, -1], [1, -1, -1, 1])]
    flipped = [
        (llm.embedding[list(ids)] * sign).mean(0)
        for ids, sign in zip(([0, 1, 2, 3], [0, 4, 5], [0, 6, 7, 10]), signs, strict=True)
    ]
    expected = (
        sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(clean, flipped, strict=True)) / 3
    )
    assert spliced["embedding_cosine"] == pytest.approx(expected, rel=1e-5)


def test_replacements_leave_outlying_rows_alone_and_keep_the_dtype():
    eye = torch.eye(D)
    sae = ExportedSae(
        kind="topk",
        W_enc_FD=torch.zeros(D, D),
        b_enc_F=torch.zeros(D),
        W_dec_FE=eye,
        b_dec_E=torch.full((D,), 2.0),
        k=2,
    )
    mean = torch.full((D,), 0.5)
    x = torch.ones(5, D, dtype=torch.bfloat16)
    x[3] = 100.0
    acts = replacements({"sae": sae}, mean, encode_topk, max_norm_multiple=10.0)
    for name, value in (("sae", 2.0), ("mean_ablated", 0.5), ("zero_ablated", 0.0)):
        changed = acts[name](x)
        assert changed.dtype == torch.bfloat16
        assert changed[:, 0].tolist() == [value, value, value, 100.0, value]
    without = replacements({"sae": sae}, mean, encode_topk, max_norm_multiple=None)
    assert math.isclose(float(without["sae"](x)[3, 0]), 2.0)


def test_replacements_of_a_transcoder_read_the_input_and_stand_in_for_the_target():
    sae = random_sae("relu", "skip", D=D, out=3)
    torch.manual_seed(0)
    rows = torch.randn(6, D + 3)
    rows[2, :D] *= 100.0
    rows[4, D:] *= 1e4
    mean = torch.arange(3.0)
    acts = replacements({"sae": sae}, mean, encode_topk, max_norm_multiple=10.0)
    wanted = dense_output(sae, rows[:, :D])
    wanted[2] = rows[2, D:]
    torch.testing.assert_close(acts["sae"](rows), wanted)
    for name, value in (("mean_ablated", mean), ("zero_ablated", torch.zeros(3))):
        assert torch.equal(acts[name](rows)[[0, 1, 3, 4, 5]], value.expand(5, 3))
        assert torch.equal(acts[name](rows)[2], rows[2, D:])
