"""The parts of a report: which latents, what is kept of them, text from tokens, warnings, escaping."""

import dataclasses

import numpy as np
import pytest
import torch

from sae_dist.atlas.describe.effects import why_none
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import LlmConfig
from sae_dist.evaluation.report.cards import chip, line, percent, visible
from sae_dist.evaluation.report.collect import choose, collect, firing_rates
from sae_dist.evaluation.report.figures import curves, density
from sae_dist.evaluation.report.files import RunFiles
from sae_dist.evaluation.report.firing import BINS, DRAWN, LEFT, RIGHT, TOP, Context, Firing, Histogram
from sae_dist.evaluation.report.logits import effects
from sae_dist.evaluation.report.numbers import entries, headline, results, speed
from sae_dist.evaluation.report.read import Read, Text, first
from sae_dist.evaluation.report.warn import warnings
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels.choose import choose_kernels
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens.decoder import Decoder
from tests.helpers.tiny_llms import packed_chunk


@pytest.fixture(scope="module")
def facts():
    return llm_facts(LlmConfig(name="embedded"), None)[0]


@pytest.fixture(scope="module")
def decoder(facts):
    return Decoder(facts)


TEXTS = ["def f(x):\n    return x", "naïve 😀 日本語 end", "tabs\t\tand \r\n", "a<b & c>d", "", " "]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(decoder, text):
    ids = decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = decoder.pieces(ids)
    assert "".join(pieces) == text and len(pieces) == max(len(ids), 1)


def test_a_character_of_several_tokens_stands_whole_with_the_last_of_them(decoder):
    ids = decoder.tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert decoder.pieces(ids) == [*[""] * (len(ids) - 1), "😀"]
    assert "\ufffd" not in decoder.token(ids[0]) and decoder.token(ids[0])


def test_tokens_that_share_a_character_are_marked_together(decoder):
    ids = tuple(decoder.tokenizer("a😀b", add_special_tokens=False)["input_ids"])
    codes = [0.0] * len(ids)
    codes[1] = 2.0
    shown = line(Context(2.0, 1, ids, tuple(codes), 0), decoder, 4.0)
    assert [(span.text, span.shade, span.fires) for span in shown.spans] == [
        ("a", 0.0, False),
        ("😀", 0.5, True),
        ("b", 0.0, False),
    ]


def test_signs_that_cannot_be_seen_can_be_seen():
    assert visible("a\n\tb\x1b\x00\x9fé") == "a↵⇥b\\x1b\\x00\\x9fé"
    assert [chip(x) for x in (" a b", "\n" + 12 * " ")] == ["␣a␣b", "↵␣×12"]
    assert [percent(x) for x in (0.5, 0.0123, 0.000012)] == ["50.0 %", "1.2 %", "0.0012 %"]


def test_a_histogram_counts_every_code_whatever_comes_later():
    values = (
        np.random.default_rng(0).exponential(size=(50, 20)).astype(np.float32) * np.arange(1, 51)[:, None]
    )
    histogram = Histogram()
    for part in values:
        histogram.add(part)
    wanted, _ = np.histogram(values, BINS, (0.0, histogram.end))
    assert histogram.end >= values.max() > histogram.end / 2
    assert abs(histogram.counts - wanted).sum() <= 4 and histogram.counts.sum() == values.size
    counts, end = histogram.shown()
    assert sum(counts) == values.size and end - histogram.end / BINS <= values.max() <= end * (1 + 1e-6)


def reads(chunks: int, width: int = 6) -> list[Read]:
    """Chunks of packed random tokens with random activations."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(chunks):
        chunk = packed_chunk()
        chunk.ids_NS = torch.randint(6, 2000, chunk.ids_NS.shape, generator=draw)
        place_R = chunk.keep_NS.flatten().nonzero().squeeze(1).numpy()
        x_RD = torch.randn(len(place_R), width, generator=draw)
        found.append(Read(x_RD, place_R, Text.of(chunk)))
    return found


def relu_sae(latents: int = 40, width: int = 6) -> ExportedSae:
    draw = torch.Generator().manual_seed(2)
    W_FD = torch.randn(latents, width, generator=draw)
    b_F = -torch.linspace(0.0, 6.0, latents)
    return ExportedSae(kind="relu", W_enc_FD=W_FD, b_enc_F=b_F, W_dec_FE=W_FD, b_dec_E=torch.zeros(width))


ENCODE = choose_kernels("torch").encode_topk


def test_what_is_collected_is_what_a_dense_pass_finds():
    sae, streamed = relu_sae(), reads(12)
    rate_F, rows = firing_rates(sae, ENCODE, iter(streamed))
    code_RF = torch.cat([(read.x_RD @ sae.W_enc_FD.T + sae.b_enc_F).relu() for read in streamed])
    torch.testing.assert_close(rate_F, (code_RF > 0).float().mean(0))
    latents = [0, 7, 20]
    firings, seen = collect(sae, ENCODE, iter(streamed), latents)
    assert seen == rows == len(code_RF)
    segment_R = np.concatenate([1000 * n + r.text.segment_T[r.place_R] for n, r in enumerate(streamed)])
    ids_R = np.concatenate([read.text.ids_T[read.place_R] for read in streamed])
    for latent in latents:
        code_R, firing = code_RF[:, latent].numpy(), firings[latent]
        assert firing.fired == (code_R > 0).sum() and firing.total == pytest.approx(code_R.sum(), rel=1e-5)
        best = sorted((code_R[segment_R == s].max() for s in np.unique(segment_R)), reverse=True)
        best = [code for code in best if code > 0][:TOP]
        assert [each.code for each in firing.top] == pytest.approx(best, rel=1e-5)
        for each in firing.top:
            row = int(np.abs(code_R - each.code).argmin())
            assert each.ids[each.at] == ids_R[row] and each.codes[each.at] == each.code
            assert each.at <= LEFT and len(each.ids) <= LEFT + 1 + RIGHT


def test_a_context_stays_in_its_segment_and_shows_the_codes_of_its_neighbours():
    text = Text(np.arange(100, 120), np.array([1] * 8 + [2] * 8 + [0] * 4))
    firing = Firing(0)
    read = Read(torch.zeros(14, 2), np.array([1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]), text)
    firing.add(read, np.array([5, 6, 8]), np.array([1.0, 3.0, 2.0], np.float32))
    first, second = firing.top
    assert (first.code, first.ids, first.at) == (3.0, tuple(range(100, 108)), 7)
    assert first.codes == (0, 0, 0, 0, 0, 0, 1.0, 3.0)
    assert (second.code, second.ids[0], second.ids[-1], second.at) == (2.0, 108, 115, 2)


def test_the_same_text_is_shown_once_and_what_is_kept_is_bounded():
    text = Text(np.arange(20), np.ones(20, np.int64))
    firing = Firing(3)
    for n in range(300):
        firing.add(Read(torch.zeros(20, 2), np.arange(20), text), np.array([4, 9]), np.array([n + 1.0, 0.5]))
    assert [each.code for each in firing.top] == [300.0]
    assert firing.fired == 600 and len(firing._drawn) == DRAWN
    drawn = [context.code for _, context in firing._drawn]
    assert 0.4 < np.mean([code == 0.5 for code in drawn]) < 0.6
    assert 80 < np.mean([code for code in drawn if code != 0.5]) < 220
    ranges = firing.quantiles(5, 2)
    assert all(low <= high for low, high, _ in ranges)
    assert [high for _, high, _ in ranges] == sorted((high for _, high, _ in ranges), reverse=True)


def test_groups_are_dense_median_and_rare():
    rate_F = torch.cat([torch.logspace(0, -6, 1000), torch.zeros(24)])[torch.randperm(1024)]
    dense, median, rare = choose(rate_F, 500_000)
    chosen = [*dense.latents, *median.latents, *rare.latents]
    assert [len(group.latents) for group in (dense, median, rare)] == [10, 10, 10]
    assert len(set(chosen)) == 30 and all(rate_F[latent] > 0 for latent in chosen)
    rates = rate_F[chosen]
    assert (rates[:-1] >= rates[1:]).all() and rates[0] == 1
    assert rates[-1] * 500_000 >= 9.5 and rates[-1] * 500_000 < 11
    often = rate_F[rate_F * 500_000 >= 9.5]
    assert abs((often > rate_F[median.latents[5]]).float().mean() - 0.5) < 0.02
    assert "24 never fired" in rare.why and "at least 10 times" in rare.why


@pytest.mark.parametrize("alive", [0, 1, 2, 4, 7, 29, 30, 31])
def test_few_latents_are_shared_out(alive):
    groups = choose(torch.cat([torch.rand(alive) + 0.1, torch.zeros(3)]), 1000)
    chosen = [latent for group in groups for latent in group.latents]
    assert len(chosen) == len(set(chosen)) == min(alive, 30)


def test_effects_are_the_head_times_the_row(decoder):
    W_VH = torch.randn(len(decoder) + 5, 8, generator=torch.Generator().manual_seed(0))
    W_VH[-1] = 100
    rows = torch.eye(8)[:2]
    found = effects(W_VH, rows, decoder)
    ordered = W_VH[: len(decoder), 1].sort(descending=True)
    assert [value for _, value in found[1].promoted] == pytest.approx(ordered.values[:8].tolist())
    assert found[1].promoted[0][0] == decoder.token(int(ordered.indices[0]))
    assert [value for _, value in found[1].suppressed] == pytest.approx(ordered.values.flip(0)[:8].tolist())


@pytest.mark.parametrize(
    ("hook", "target", "causal", "wrong"),
    [
        ("layers.2:out", None, True, None),
        ("layers.2:in", None, True, None),
        ("layers.2.mlp:out", None, True, None),
        ("layers.2.mlp:in", "layers.2.mlp:out", True, None),
        ("layers.2.mlp:in", None, True, "residual stream"),
        ("layers.2.input_layernorm:out", None, True, "residual stream"),
        ("layers.2.self_attn.q_proj:out", None, True, "residual stream"),
        ("encoder.layer.2:out", None, False, "encoder"),
    ],
)
def test_effects_need_a_head_and_the_residual_stream(facts, hook, target, causal, wrong):
    reason = why_none(dataclasses.replace(facts, hook=hook, target_hook=target, causal=causal))
    assert (reason is None) if wrong is None else (wrong in reason)


def run(tmp_path, rows=(), **summary) -> RunFiles:
    cfg = RunConfig(name="a-run")
    cfg.sae.kind, cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "topk", "embedded", "text", "llm"
    cfg.optim.kind = "adam"
    if rows:
        (tmp_path / "metrics.jsonl").touch()
    return RunFiles(tmp_path, tmp_path, cfg, "", {"status": "finished", **summary}, {}, list(rows), None)


def row(step: int, **values) -> dict:
    return {"step": step, "tokens": 100 * step, "loss/fvu": 0.5, "perf/tokens_per_second": 1000.0} | values


GOOD = {"fvu": 0.1, "eval_tokens": 500_000, "dead_fraction": 0.01}


@pytest.mark.parametrize(
    ("summary", "changed", "word"),
    [
        (GOOD, {}, None),
        (GOOD | {"status": None}, {}, "unfinished"),
        (GOOD | {"status": "imported"}, {}, None),
        (GOOD | {"status": "diverged", "reason": "NaN at step 3"}, {}, "given up: NaN at step 3"),
        (GOOD | {"dead_fraction": 0.3}, {}, "30% of the latents are dead"),
        (GOOD | {"eval_tokens": 2000}, {}, "Only 2,000 held-out tokens"),
        (GOOD | {"fvu": None, "ce_reason": "eval.tokens=0"}, {}, "evaluation was skipped: eval.tokens=0"),
        (GOOD | {"eval_excluded": 9000}, {}, "left out for their norm"),
        (GOOD, {"loss/fvu": None}, "not a finite number in 1 rows, first at step 7"),
        (GOOD, {"perf/tokens_per_second": 10.0}, "Training stalled: 1 of 19 rows"),
    ],
)
def test_warnings(tmp_path, summary, changed, word):
    rows = [row(step) | (changed if step == 7 else {}) for step in range(1, 21)]
    found = [each.found for each in warnings(run(tmp_path, rows, **summary), torch.full((100,), 0.01))]
    assert len(found) == (word is not None) and all(word in each for each in found)


def test_dense_latents_and_wandb_are_warned_of(tmp_path):
    made = run(tmp_path, **GOOD)
    made.cfg.metrics.wandb = "off"
    found = [each.found for each in warnings(made, torch.tensor([0.2, 0.3, *[0.01] * 98]))]
    assert len(found) == 2 and "2 latents (2.0%) fire on more than 10%" in found[0] and "W&B" in found[1]


@pytest.mark.parametrize(
    ("kind", "target", "dense", "dead"),
    [
        ("topk", None, "lower sae.k", "raise sae.aux_coefficient"),
        ("matryoshka", None, "lower sae.k", "raise sae.aux_coefficient"),
        ("relu", None, "raise sae.sparsity", "lower sae.sparsity"),
        ("jumprelu", None, "raise sae.sparsity", "raise sae.preact"),
        ("jumprelu", 32.0, "lower sae.target_l0 or raise sae.sparsity", "raise sae.preact"),
    ],
)
def test_advice_names_keys_that_the_kind_reads(tmp_path, kind, target, dense, dead):
    made = run(tmp_path, **GOOD | {"dead_fraction": 0.5})
    made.cfg.sae.kind, made.cfg.sae.target_l0 = kind, target
    advice = [each.advice for each in warnings(made, torch.full((100,), 0.2))]
    assert len(advice) == 2 and f", or {dead}." in advice[0] and f": {dense}, or train" in advice[1]


def test_rows_are_counted_as_the_evaluation_counts_them():
    reads = (Read(torch.zeros(40, 2), np.arange(40), None) for _ in range(5))
    found = list(first(reads, 100))
    assert [len(each.x_RD) for each in found] == [len(each.place_R) for each in found] == [40, 40, 20]


def test_a_card_has_the_digits_of_the_table():
    summary = {
        "dead_fraction": 0.0005,
        "ce_recovered": 0.98131,
        "fvu": 0.08351,
        "l0": 31.9995,
        "tokens": 2_000_000,
    }
    cards, table = headline(summary), {each.key: each.value for each in results(summary)}
    assert [each.value for each in cards] == ["0.0835", "32.0", "98.13%", "0.05%", "2.00M"]
    assert {each.value for each in cards[:4]} <= set(table.values())


def test_missing_numbers_say_why(tmp_path):
    found = results({"fvu": 0.1, "dead_fraction": None, "dead_reason": "2048 held-out tokens"})
    assert [(each.value, each.means) for each in found if each.label == "dead latents"] == [
        ("", "not measured (2048 held-out tokens)")
    ]
    assert speed(run(tmp_path))[-1].means == "none: no GPU was measured"
    for key in ("joules", "energy_joules"):
        energy = speed(run(tmp_path, **{key: 12345.6, "gpu_hours": 0.5}))
        assert [each.value for each in energy] == ["0.5 h", "12,346 J"]
    (value, low) = entries({"a": None, "a_reason": "no head", "b": {"c": [1, 2.5]}})
    assert value.value == "none: no head" and low.below[0].value == "1, 2.5"


def test_figures_take_the_colours_of_the_page_and_no_address():
    rows = [row(step, **{"sparsity/l0": 32.0, "optim/grad_norm": None}) for step in range(1, 2000)]
    found = [*curves(rows, {"loss/fvu": 0.4}), density(torch.tensor([0.1, 0.001, 0.0]), ())]
    assert [each.title for each in found] == ["FVU", "L0", "Throughput", "How often latents fire"]
    for each in found:
        assert "currentColor" in each.svg and "var(--accent)" in each.svg and "<style" not in each.svg
        assert "http" not in each.svg.replace("http://www.w3.org/1999/xlink", "") and len(each.svg) < 60_000
