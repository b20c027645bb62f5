"""Evaluation in training: the same numbers on every topology and after a resume, and no trace in the run."""

import json

import pytest

from tests.helpers.commands import TINY, train
from tests.helpers.runs import results, wait_for_checkpoint
from tests.helpers.small_llm import SMALL
from tests.helpers.warm import Command, warm

EXACT = [
    *SMALL,
    "precision=float64",
    "optim.warmup=0",
    "optim.decay=0",
    "sae.num_latents=512",
    "train_tokens=3840",
    "sae.dead_after=1000",
]
EVALUATED = ["eval.every=960", "eval.rows=1001", "eval.ce=200"]
"""20 steps, evaluated after every fifth, on a number of rows that no number of ranks divides."""
COLUMNS = (
    "fvu explained_variance l0 l2_ratio relative_bias silent_fraction dense_fraction_1 dense_fraction_10 "
    "ce_clean ce_sae ce_recovered kl"
).split()
TOPOLOGIES = {
    "dp": ["topology.dp=2", "topology.shard=2"],
    "split": ["topology.producers=1", "topology.shard=2"],
}
KINDS = {"topk": [], "batchtopk": ["sae=batchtopk", "sae.k=16"], "gated": ["sae=gated"]}


@pytest.fixture(scope="module")
def alone(folder):
    return train(folder, "alone", *EXACT, *EVALUATED)


def evaluations(found):
    return [{key: row[key] for key in row if key.startswith("eval/")} for row in found if "eval/fvu" in row]


def without(found):
    return [
        {key: value for key, value in row.items() if not key.startswith(("eval/", "perf/", "gpu/", "host/"))}
        for row in found
    ]


def same(found, expected, rel):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=rel, abs=rel), key


def test_rows_of_the_steps_that_were_evaluated(alone):
    assert [row["step"] for row in alone if "eval/fvu" in row] == [5, 10, 15, 20]
    first, *_, last = evaluations(alone)
    assert set(last) == {f"eval/{name}" for name in COLUMNS}
    assert last["eval/fvu"] < first["eval/fvu"] < 1 and last["eval/kl"] < first["eval/kl"]
    assert last["eval/l0"] <= 16 and 0 < last["eval/l2_ratio"] < 1.2


def test_training_does_not_notice(folder, alone):
    assert without(train(folder, "plain", *EXACT)) == without(alone)


@pytest.mark.parametrize("topology", ["split", pytest.param("dp", marks=pytest.mark.long)])
def test_every_topology_gives_the_same_numbers(topology, folder, alone):
    found = train(folder, topology, *EXACT, *EVALUATED, *TOPOLOGIES[topology])
    same(evaluations(found), evaluations(alone), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_evaluation_is_that_of_the_export(kind, folder):
    words = [
        *SMALL,
        *KINDS[kind],
        "eval.every=1920",
        "eval.rows=2048",
        "eval.tokens=2048",
        "eval.ce_tokens=0",
    ]
    words += ["train_tokens=1920", "topology.shard=2", "eval.baselines=false"]
    (last,) = evaluations(train(folder, f"export_{kind}", *words))
    summary = json.loads((folder / "outputs" / f"export_{kind}" / "summary.json").read_text())
    assert summary["eval_tokens"] == 2048
    for key, value in last.items():
        assert value == pytest.approx(summary[key.removeprefix("eval/")], rel=2e-3, abs=2e-3), key


def test_a_resumed_run_evaluates_the_same(folder):
    words = [*SMALL, "train_tokens=3840", "checkpoint.every=960", "eval.every=960", "eval.rows=500"]
    whole = train(folder, "whole", *words)
    process = Command(folder, "train", *TINY, *words, "name=killed")
    wait_for_checkpoint(process, folder / "outputs" / "killed")
    process.send_signal(9)
    process.communicate()
    train(folder, "killed", *words, "resume=auto")
    assert len(evaluations(whole)) == 4
    assert results(folder / "outputs" / "killed") == results(folder / "outputs" / "whole")


def test_the_dictionaries_of_a_grid_are_evaluated_each(folder):
    words = [*SMALL, "train_tokens=960", "eval.every=960", "eval.rows=500", "grid.hook=[layers.0,layers.1]"]
    done = warm(folder, "train", *TINY, *words, "name=grid", "tokens.max_norm_multiple=null")
    assert done.returncode == 0, done.stderr
    found = []
    for number in (0, 1):
        (member,) = (folder / "outputs" / "grid").glob(f"hook=layers.{number}*")
        rows = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
        found += evaluations(rows)
    single = train(folder, "single", *words[:-1], "hook=layers.1", "tokens.max_norm_multiple=null")
    same(evaluations(single), found[1:], 1e-5)
    assert len(found) == 2 and found[0] != found[1]
