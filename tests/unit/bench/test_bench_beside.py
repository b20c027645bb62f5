"""The benchmark beside a model: every way is timed, floors are those of the shapes, the price is eval's."""

import csv

import pytest
import torch

import sae_dist as sd
from sae_dist.bench.beside.arms import BARE, by_rate
from sae_dist.bench.beside.price import CLEAN, FULL, ROUNDED, Price, price
from sae_dist.bench.beside.table import more
from sae_dist.bench.command import bench
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import read_summary
from tests.helpers.evaluated import LATENTS, evaluated_run

CE_TOKENS = 600


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the embedded model that was evaluated."""
    return evaluated_run(tmp_path_factory.mktemp("run"), tokens=300, ce_tokens=CE_TOKENS)


@pytest.mark.long
def test_the_table_has_every_way_in_both_phases(run, folder, capsys):
    words = [str(run), "--batch", "1,2", "--context", "6", "--decode", "2", "--rounds", "2", "--watch", "3"]
    bench(["beside", *words, "--ce-tokens", "0", "--device", "cpu", "--folder", str(folder)])
    said = capsys.readouterr().out
    assert (folder / "beside.md").read_text() == said
    rows = list(csv.DictReader(open(folder / "beside.csv")))
    ways = [BARE, "watch 3", "steer, add", "steer, clamp", "encode", "splice, with error"]
    assert [(row["phase"], row["batch"], row["way"]) for row in rows] == [
        (phase, batch, way) for phase in ("prefill", "decode") for batch in "12" for way in ways
    ]
    assert all(float(row["ms_per_token"]) > 0 and float(row["floor_ms"]) > 0 for row in rows)
    # One token is bound by bytes: those of the encoder beside those of every weight that is multiplied.
    weights = sum(each.numel() for each in sd.model(sd.load(run)).model.parameters())
    share = {
        row["way"]: row["floor_more"] for row in rows if row["phase"] == "decode" and row["batch"] == "1"
    }
    assert share["encode"] == f"{LATENTS * 256 / weights:+.1%}" and share[BARE] == ""
    assert "decisions differ from the exact selection" in said and "--ce-tokens 0" in said


def test_the_price_begins_at_the_cross_entropy_of_the_evaluation(run):
    d = sd.load(run)
    found, summary = price(d, sd.model(d), CE_TOKENS), read_summary(run)
    assert isinstance(found, Price) and found.tokens == summary["ce_tokens"]
    assert found.entropy[CLEAN] == pytest.approx(summary["ce_clean"], rel=1e-6)
    assert found.entropy[FULL] == pytest.approx(summary["ce_sae"], rel=1e-6)
    assert found.entropy[ROUNDED] != found.entropy[FULL] and found.error > 0
    assert abs(found.more - (found.entropy[ROUNDED] - found.entropy[FULL])) < 1e-3
    assert 0 < found.changed < 0.2


def test_latents_are_spread_by_rate_and_live(run):
    d = sd.load(run)
    d.place.measured = type(d.place.statistics(LATENTS))(*torch.zeros(4, LATENTS), 0.0, 1)
    d.place.measured.rate_F[10:30] = torch.arange(20, 0, -1) / 100
    assert by_rate(d, 1) == [19] and by_rate(d, 2) == [14, 24]
    assert by_rate(d, 20) == list(range(10, 30))


def test_shares_are_those_within_a_round():
    assert more([2.0, 6.0, 3.0], [1.0, 4.0, 2.0]) == (0.5, 0.5, 0.75)
    assert more([3.0], [2.0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RUN", "--batch", "0"], "--batch=0"),
        (["RUN", "--watch", "x"], "--watch"),
        (["RUN", "--ce-tokens", "-1"], "--ce-tokens"),
        ([], "RUN"),
        (["/none/such"], "/none/such"),
    ],
)
def test_wrong_words_are_one_line(words, says):
    with pytest.raises(ConfigError, match=says):
        bench(["beside", *words])
