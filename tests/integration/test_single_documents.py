"""Models that cannot keep packed documents apart, trained from one end to the other."""

import json
import signal

import pytest

from tests.helpers.architectures import save_small, short_texts
from tests.helpers.commands import TINY, rows, train
from tests.helpers.runs import relative, results, same_weights, values, wait_for_checkpoint
from tests.helpers.warm import Command, warm

pytestmark = pytest.mark.long
LENGTH = ["train_tokens=40960", "checkpoint.every=4096", "eval.tokens=10k", "eval.ce_tokens=4k"]


@pytest.fixture(scope="module")
def texts(folder):
    (folder / "short").mkdir()
    return f"tokens.path={short_texts(folder / 'short', documents=4000)}"


@pytest.fixture(scope="module")
def small(folder):
    def save(kind):
        if not (folder / kind).exists():
            (folder / kind).mkdir()
            save_small(kind, folder / kind)
        return f"llm.name={kind}"

    return save


@pytest.mark.parametrize("kind", ["mamba", "esm", "bloom", "qwen3_next"])
def test_a_run_ends_with_evaluation_and_export(folder, small, texts, kind):
    done = warm(folder, "train", "debug=tiny", small(kind), texts, *LENGTH, f"name=run_{kind}")
    assert done.returncode == 0, done.stderr
    assert (
        f"one document in a sequence, since {kind}" in done.stderr
        and "is padding, in the first chunk" in done.stderr
    )
    assert "rows are those of the whole model" in done.stderr
    run = folder / "outputs" / f"run_{kind}"
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["fvu"] < 1 and summary["status"] == "finished"
    assert (summary["ce_clean"] is None) == (kind == "esm")
    assert (run / "export" / "sae_weights.safetensors").exists()


def test_a_run_that_was_killed_is_the_one_that_was_not_and_ranks_see_the_same_rows(folder, small, texts):
    # Forty steps, which are not evaluated: a mamba is slow without its kernels.
    few = ["batch=192", "shuffle.chunk_rows=64", "train_tokens=7680", "checkpoint.every=768", "eval.tokens=0"]
    arguments = [small("mamba"), texts, *LENGTH, *few]
    whole = train(folder, "alone", *arguments)
    process = Command(folder, "train", *TINY, *arguments, "name=hit")
    wait_for_checkpoint(process, folder / "outputs" / "hit")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(folder, "hit", *arguments, "resume=auto")
    assert results(folder / "outputs" / "hit") == results(folder / "outputs" / "alone")
    assert same_weights(folder / "outputs" / "hit", folder / "outputs" / "alone")
    split = train(folder, "split", *arguments, "topology.producers=1", "topology.shard=2")
    assert values(split, "stream/batch_hash") == values(whole, "stream/batch_hash")
    assert max(relative(values(split, "loss/fvu")[:10], values(whole, "loss/fvu")[:10])) < 1e-4
    assert len(rows(folder / "outputs" / "split")) == len(whole)
