"""The parts of a page of many dictionaries: how lines are told apart, tables side by side, sums."""

import math

import pytest

from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.run import RunConfig, save_config
from sae_dist.evaluation.axes import spanned
from sae_dist.evaluation.report.compare import merged, shared, side_by_side
from sae_dist.evaluation.report.figures import LINES
from sae_dist.evaluation.report.lines import APART, apart, frontier, overlays
from sae_dist.evaluation.report.members import COLUMNS, FEWEST, NUM_COLOURS, POINTS, lines_of, read_members
from sae_dist.evaluation.report.numbers import Number
from sae_dist.metrics.sinks import JsonlSink


def runs(folder, **lists):
    cfg = RunConfig(name="grid", train_tokens=8000, batch=8)
    cfg.sae.kind, cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "topk", "embedded", "text", "llm"
    cfg.optim.kind = "adam"
    for key, values in lists.items():
        setattr(cfg.grid, key, values)
    found = {folder / each.name: each for each in resolved_members(resolve(cfg, None, 16), None, 16)}
    for each, its in found.items():
        each.mkdir()
        save_config(its, each / "config.yaml")
    return found


def test_a_colour_for_each_series_and_dashes_within_it(tmp_path):
    lines = lines_of(runs(tmp_path, num_latents=[64, 128], k=[4, 8, 16], seed=[0, 1]))
    assert len({(line.colour, line.dashes) for line in lines}) == 12
    assert [line.colour for line in lines] == [0, 1] * 3 + [2, 3] * 3
    assert [len(line.dashes) for line in lines[::2]] == [0, 2, 2, 0, 2, 2]
    assert {line.series for line in lines} == {
        f"num_latents={latents}, seed={seed}" for latents in (64, 128) for seed in (0, 1)
    }


def test_many_series_take_colours_again_with_other_dashes(tmp_path):
    lines = lines_of(runs(tmp_path, num_latents=list(range(1, 20))))
    assert len({(line.colour, line.of_series) for line in lines}) == 19
    assert max(line.colour for line in lines) == NUM_COLOURS - 1 == len(LINES) - 1


def test_curves_keep_few_points_and_the_last(tmp_path):
    found = runs(tmp_path, k=[4, 8])
    for folder in found:
        sink = JsonlSink(folder / "metrics.jsonl", 0)
        for step in range(1, POINTS + 2):
            sink.write({"step": step, "tokens": 8 * step} | dict.fromkeys(COLUMNS, 1.0 / step))
        sink.write({"step": step + 1, "tokens": 8 * step + 8} | dict.fromkeys(COLUMNS, float("nan")))
        sink.close()
    one, _ = read_members(tmp_path, found)
    for points in one.points.values():
        assert FEWEST <= len(points) <= POINTS // 2
        assert points[-1] == (8 * (POINTS + 1), 1 / (POINTS + 1)) and points == sorted(points)
    assert len(one.run.rows) == 1 and "1 rows, first at step 6,402" in one.warnings[1].found
    figures = overlays([one])
    assert len(figures) == 4 and all("var(--line-0)" in each.svg for each in figures)
    assert frontier([one]) is None


@pytest.mark.parametrize("values", [[32.0, 31.99954, 32.0], [0.0822, 0.0823], [5.0]])
def test_an_axis_does_not_spread_rounding(values):
    low, high = spanned(values)
    place = [(math.log(each) - math.log(low)) / (math.log(high) - math.log(low)) for each in values]
    assert max(place) - min(place) < 0.01 and all(0.4 < each < 0.6 for each in place)


def test_an_axis_of_other_values_ends_near_them():
    assert spanned([8.0, 64.0]) == pytest.approx((8 / 8**0.05, 64 * 8**0.05))


@pytest.mark.parametrize("places", [[0.5], [0.5, 0.5, 0.5], [0.99, 0.98, 1.0], [0.0, 0.9, 0.01], [0.5] * 16])
def test_numbers_at_the_ends_of_lines_do_not_meet(places):
    found = apart(places)
    ends = sorted(found)
    assert all(b - a >= APART - 1e-9 for a, b in zip(ends, ends[1:], strict=False))
    assert 0 <= min(found) + 0.05 and max(found) <= 1
    assert [found.index(each) for each in ends] == sorted(range(len(places)), key=lambda n: places[n])


def test_rows_are_those_of_any_column_in_their_order():
    assert merged([["a", "c"], ["a", "b", "c", "d"], [], ["e", "d"]]) == ["e", "a", "b", "c", "d"]
    columns = [
        [Number("CE", "1.0", "nats", key="ce"), Number("mean", "", "none: no head", True, "kl_mean")],
        [Number("mean", "2.0", "ablated", True, "ce_mean"), Number("mean", "", "none: off", True, "kl_mean")],
    ]
    rows = side_by_side(columns)
    assert [(row.label, [cell.value for cell in row.cells], row.means) for row in rows] == [
        ("mean", ["", "2.0"], "ablated"),
        ("CE", ["1.0", ""], "nats"),
        ("mean", ["", ""], "none: no head"),
    ]
    assert rows[2].cells[1].means == "none: off"


def test_what_all_share_stands_once():
    columns = [
        [Number("Model", "gpt2", f"layer {n}; float32"), Number("Device", f"GPU {n}")] for n in range(3)
    ]
    assert [(each.value, each.means) for each in shared(columns)] == [("gpt2", "float32"), ("several", "")]
