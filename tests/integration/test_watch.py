"""What real runs write of themselves, beside the catalogue of metrics; where their time goes."""

import gzip
import json
import statistics

import pytest

from sae_dist.metrics.catalogue import ALWAYS, EVAL, PHASES, SUMMARY, known, names
from sae_dist.metrics.clock import PHASES as OF_A_STEP
from tests.helpers.commands import TINY, rows
from tests.helpers.small_llm import SMALL_LLM
from tests.helpers.wandb_files import history, of_folder, of_kind, summary
from tests.helpers.warm import warm

SHORT = [word for word in TINY if not word.startswith(("metrics.wandb", "eval."))]
SHORT += [*SMALL_LLM, "train_tokens=15360", "metrics.telemetry_s=0.05", "checkpoint.every=7680"]


def run(folder, name, *words, ranks=1, plots=False):
    done = warm(folder, "train", *SHORT, f"name={name}", *words, ranks=ranks, plots=plots)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / name, done.stderr


@pytest.fixture(scope="module")
def whole(folder):
    words = ["metrics.wandb=offline", "metrics.profile=[3,2]", "eval.tokens=4096", "eval.ce_tokens=2048"]
    return run(folder, "whole", *words, plots=True)


def unknown(found):
    return {name for row in found for name in row if not known(name)}


def test_every_column_is_in_the_catalogue_and_what_is_always_there_is_there(whole):
    found = rows(whole[0])
    assert len(found) == 20 and not unknown(found)
    for row in found:
        assert set(names(ALWAYS)) | set(names(PHASES)) | {"perf/make_chunks_s"} <= set(row)
    sampled = [row for row in found if "host/cpu" in row]
    assert sampled and all("host/0/rss_gib" in row for row in sampled)
    assert "telemetry every 0.05 s: hosts; no GPU in this run" in whole[1]


def test_the_phases_are_the_time_of_the_steps(whole):
    """But for what lies between two steps: loading before the first row, a checkpoint, the trace."""
    found = rows(whole[0])
    shares = {phase: sum(row[f"perf/{phase}_ms"] for row in found) for phase in OF_A_STEP}
    parts = [sum(row[f"perf/{phase}_ms"] for phase in OF_A_STEP) / row["perf/wall_ms"] for row in found]
    assert 0.7 < statistics.median(parts) < 1.05
    assert all(shares[phase] > 0 for phase in ("receive", "encode", "decode", "backward", "step", "record"))
    assert shares["exchange"] == 0, "one process exchanges nothing"
    assert all(0 < row["perf/gemm_share"] < 1.5 for row in found)


def test_a_trace_of_the_steps_asked_for(whole):
    trace = json.loads(gzip.open(whole[0] / "traces" / "rank_0.json.gz").read())
    marked = [each for each in trace["traceEvents"] if each.get("name") == "encode"]
    assert len([each for each in marked if each["ph"] == "X"]) == 2


def test_every_number_of_the_summary_is_in_the_catalogue(whole):
    found = json.loads((whole[0] / "summary.json").read_text())
    numbers = {key for key, value in found.items() if isinstance(value, int | float)}
    listed = {metric.name.split("/")[-1] for metric in (*EVAL, *SUMMARY)}
    assert not numbers - listed
    assert found["gemm_tflops"] > 0 and "gpu_hours" not in found


def test_wandb_has_the_rows_and_at_the_end_the_evaluation(whole):
    found = of_folder(whole[0])
    *training, last = history(found)
    assert [row["step"] for row in training] == list(range(1, 21))
    logged = [{key: row[key] for key in row if not key.startswith("_")} for row in training]
    assert logged == rows(whole[0])
    result = json.loads((whole[0] / "summary.json").read_text())
    assert last["eval/fvu"] == result["fvu"] and last["tokens"] == 15360
    assert {"eval/table", "eval/density", "plots/loss_fvu"} <= set(last)
    assert summary(found)["summary/gemm_tflops"] == result["gemm_tflops"]
    assert len({each.run_id for each in of_kind(found, "run")}) == 1
    assert whole[1].count("wandb sync") == 1


def test_producers_and_consumers(folder):
    split, _ = run(
        folder,
        "split",
        "metrics.wandb=off",
        "eval.tokens=0",
        "topology.producers=1",
        "topology.shard=2",
        ranks=3,
    )
    found = rows(split)
    assert not unknown(found)
    for row in found:
        assert set(names(ALWAYS)) | set(names(PHASES)) | {"perf/wait_for_chunks_s"} <= set(row)
    assert sum(row["perf/exchange_ms"] for row in found) > 0
    assert sum(row["perf/select_ms"] for row in found) > 0
    assert any("host/cpu" in row for row in found)


def test_telemetry_can_be_switched_off(folder):
    words = [word for word in SHORT if "telemetry" not in word]
    done = warm(
        folder,
        "train",
        *words,
        "metrics.telemetry_s=null",
        "metrics.wandb=off",
        "eval.tokens=0",
        "name=off",
    )
    assert done.returncode == 0 and "telemetry" not in done.stderr
    assert not [name for row in rows(folder / "outputs" / "off") for name in row if name.startswith("host/")]


def test_numbers_that_break_are_an_alert(folder):
    words = ["metrics.wandb=offline", "eval.tokens=0", "optim.lr=1e30", "optim.clip=null", "name=broken"]
    done = warm(folder, "train", *SHORT, *words)
    assert done.returncode == 1 and "the loss is not finite" in done.stderr
    assert "alert: training has ended: step" in done.stderr
    alerts = of_kind(of_folder(folder / "outputs" / "broken"), "alert")
    assert "training has ended" in {alert.title for alert in alerts}
