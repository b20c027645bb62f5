"""Measuring codes in Python: what the evaluation writes, and what a plain loop over a text finds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sae_dist as sd
from sae_dist.export.saelens import export_saelens
from sae_dist.export.statistics import load_statistics
from tests.helpers.dictionaries import dense_codes, random_sae
from tests.helpers.evaluated import LATENTS, evaluated_run
from tests.helpers.tiny_llms import save_tiny

ROWS = 700
NAMES = ("rate_F", "mean_F", "p999_F", "max_F")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on the embedded model that was evaluated."""
    return evaluated_run(tmp_path_factory.mktemp("run"), tokens=ROWS)


def test_it_finds_what_the_evaluation_wrote(run):
    written = load_statistics(run / "export", LATENTS)
    d = sd.load(run)
    found = d.measure(sd.model(d), tokens=ROWS)
    assert written is not None and found.rows == written.rows == ROWS
    assert all(getattr(found, name).equal(getattr(written, name)) for name in NAMES)
    assert found.threshold == written.threshold > 0
    assert d.place.measured is found and d.rate is found.rate_F


def test_a_model_that_the_user_holds_reads_the_same_text(run):
    d = sd.load(run)
    ours = sd.model(d)
    mine = d.measure(ours.model, tokens=600)
    theirs = d.measure(ours, tokens=600)
    assert mine.rows == theirs.rows == 600
    # Tokens of outlying norm are left out by the evaluation alone.
    assert float((mine.rate_F - theirs.rate_F).abs().max()) < 0.02


def codes_by_hand(d: sd.Dictionary, lm: sd.LanguageModel, pieces: list[list[int]]) -> Tensor:
    """Codes [B, F] at the tokens of pieces that are not special, by the formula."""
    parts = []
    for ids in pieces:
        hidden = lm.base(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        keep = torch.tensor([each not in lm.special_ids for each in ids])
        parts.append(dense_codes(d.sae, hidden[keep]))
    return torch.cat(parts)


def test_texts_are_read_alone_and_in_pieces_of_the_context(tmp_path):
    lm = sd.model(imported(tmp_path), save_tiny("llama", tmp_path / "llama"))
    d = imported(tmp_path, context=16)
    short = lm.ids("def f(x):")
    assert tuple(short[: len(lm.prefix)].tolist()) == lm.prefix and len(lm.prefix) == 1
    long = [*lm.prefix, *(7 * torch.arange(1, 41)).tolist()]
    found = d.measure(lm, texts=["def f(x):", long])
    pieces = [short.tolist(), long[:16], [long[0], *long[16:31]], [long[0], *long[31:]]]
    with torch.no_grad():
        code = codes_by_hand(d, lm, pieces)
    assert found.rows == len(code) == len(short) - 1 + 40
    torch.testing.assert_close(found.rate_F, (code > 0).float().mean(0))
    torch.testing.assert_close(found.max_F, code.max(0).values, rtol=1e-4, atol=1e-5)
    assert d.measure(lm, texts=long and [long], tokens=20).rows == 20


def imported(folder: Path, context: int | None = None) -> sd.Dictionary:
    """A dictionary without a run, for the tiny models."""
    sae = random_sae("topk", D=32)
    more = {} if context is None else {"context_size": context}
    sae.metadata = {"hook_name": "layers.0", "hf_hook_name": "layers.0:out", **more}
    export_saelens(folder / "sae", sae)
    return sd.load(folder / "sae")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "no text of its own"),
        ({"texts": []}, "no token beside special ones"),
        ({"texts": [[0]]}, "no token beside special ones"),
        ({"texts": ["a"], "tokens": 0}, "tokens=0"),
        ({"texts": ["a"], "tokens": 1e5}, "whole number"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path, how, says):
    d = imported(tmp_path)
    lm = sd.model(d, save_tiny("llama", tmp_path / "llama"))
    with pytest.raises(sd.ConfigError, match=says):
        d.measure(lm, **how)
    assert d.place.measured is None


def test_the_text_of_a_run_is_not_read_with_another_model(run, tmp_path):
    d = sd.load(run)
    other = sd.model(d, save_tiny("llama", tmp_path / "llama"))
    with pytest.raises(sd.ConfigError, match="trained on embedded"):
        d.measure(other)
    with pytest.raises(sd.ConfigError, match="give a text"):
        d.measure(other, force=True)
