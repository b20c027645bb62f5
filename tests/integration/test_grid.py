"""Many dictionaries on one stream: each is the dictionary that a run of its own would have trained."""

import csv
import json
import signal

import pytest

from tests.helpers.commands import TINY, ranks_of, rows, train
from tests.helpers.runs import same_weights, wait_for_checkpoint
from tests.helpers.small_llm import SMALL, SMALL_LLM
from tests.helpers.warm import Command, warm

LENGTH = [*SMALL, "train_tokens=3840"]
WORDS = ["train", *TINY, *LENGTH, "name=grid"]
GRID = ["grid.num_latents=[512,1024]", "grid.k=[8,16]"]
OF_GRID = [word for word in WORDS[:-1] if not word.startswith(("sae.num_latents=", "sae.k="))] + GRID
CURVE = (
    "step loss/total loss/fvu loss/aux sparsity/l0 latents/dead_fraction optim/lr stream/batch_hash".split()
)


def curve(run, keys=CURVE):
    return [[row[key] for key in keys] for row in rows(run)]


@pytest.fixture(scope="module")
def whole(folder):
    """A grid's folder, and what the command printed."""
    done = warm(folder, *OF_GRID, "name=grid")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "grid", done.stdout


def test_each_dictionary_is_the_one_trained_alone(folder, whole):
    run, _ = whole
    for latents, k in ((512, 16), (1024, 8)):
        name = f"num_latents={latents},k={k}"
        train(folder, f"alone{k}", *LENGTH, f"sae.num_latents={latents}", f"sae.k={k}")
        alone = folder / "outputs" / f"alone{k}"
        assert len(curve(alone)) == 20 and curve(run / name) == curve(alone)
        assert same_weights(run / name, alone)
    assert curve(run / "num_latents=512,k=16") != curve(run / "num_latents=512,k=8")


def test_the_table_has_a_row_for_each_and_says_what_one_stream_saved(whole):
    run, printed = whole
    summary = json.loads((run / "summary.json").read_text())
    names = [f"num_latents={latents},k={k}" for latents in (512, 1024) for k in (8, 16)]
    assert summary["status"] == "finished" and list(summary["dictionaries"]) == names
    assert all(name in printed for name in names)
    cost = summary["cost"]
    assert cost["alone_seconds"] == pytest.approx(4 * cost["stream_seconds"] + cost["dictionary_seconds"])
    assert f"{cost['share']:.0%} of the" in printed and 0.25 < cost["share"] < 1
    for command in ("eval", "export"):
        done = warm(run, command, ".")
        assert done.returncode == 2 and "is a grid of 4 dictionaries; give the folder of one" in done.stderr


@pytest.mark.long
def test_a_producer_and_groups_of_consumers_train_the_same_grid(folder, whole):
    run, _ = whole
    topology = ["topology.producers=1", "topology.groups=2", "topology.shard=2"]
    done = warm(folder, *OF_GRID, "name=split", *topology, ranks=5)
    assert done.returncode == 0, done.stderr
    assert "2 groups of 1 x 2 consumers" in done.stderr
    for each in ("num_latents=512,k=16", "num_latents=1024,k=8"):
        split, alone = rows(folder / "outputs" / "split" / each), rows(run / each)
        assert [row["stream/batch_hash"] for row in split] == [row["stream/batch_hash"] for row in alone]
        off = [abs(a["loss/total"] / b["loss/total"] - 1) for a, b in zip(split, alone, strict=True)]
        assert max(off[:3]) < 1e-4, off
    assert json.loads((folder / "outputs" / "split" / "summary.json").read_text())["cost"] is None


def test_a_killed_grid_goes_on_from_a_step_that_all_have(folder, whole):
    run, _ = whole
    words = [*OF_GRID, "name=killed", "checkpoint.every=768"]
    process = Command(folder, *words)
    killed = folder / "outputs" / "killed"
    wait_for_checkpoint(process, killed / "num_latents=512,k=8")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = warm(folder, *words, "resume=auto")
    assert done.returncode == 0, done.stderr
    for each in ("num_latents=512,k=8", "num_latents=1024,k=16"):
        assert curve(killed / each) == curve(run / each)
        assert same_weights(killed / each, run / each)


@pytest.mark.parametrize("topology", [[], ["topology.producers=1", "topology.groups=2"]])
def test_a_rate_that_breaks_one_dictionary_leaves_the_others(topology, folder, without_clip):
    """In two groups of consumers, the first has nothing left to train, and the second goes on to the end."""
    name = "groups" if topology else "broken"
    words = ["sae.num_latents=512", "grid.lr=[1e30,5e-3]", "optim.clip=null", *topology]
    done = warm(folder, *WORDS[:-1], f"name={name}", *words, ranks=ranks_of(topology))
    assert done.returncode == 0, done.stderr
    broken = folder / "outputs" / name
    found = json.loads((broken / "summary.json").read_text())["dictionaries"]
    assert found["lr=1e+30"]["status"] == "diverged" and "not finite" in found["lr=1e+30"]["reason"]
    assert found["lr=0.005"]["status"] == "finished" and "lr=1e+30: given up: step" in done.stdout
    assert curve(broken / "lr=0.005") == curve(without_clip)


@pytest.fixture(scope="module")
def without_clip(folder):
    train(folder, "lr", *LENGTH, "sae.num_latents=512", "optim.lr=5e-3", "optim.clip=null")
    return folder / "outputs" / "lr"


def test_groups_that_were_stopped_go_on_as_one(folder, whole):
    run, _ = whole
    words = [*OF_GRID, "name=regrouped", "checkpoint.every=384", "checkpoint.keep=20"]
    process = Command(folder, *words, "topology.producers=1", "topology.groups=2", ranks=3)
    stopped = folder / "outputs" / "regrouped"
    for name in ("num_latents=512,k=8", "num_latents=1024,k=16"):
        wait_for_checkpoint(process, stopped / name)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.poll() == 75, err
    done = warm(folder, *words, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "from step 0" not in done.stderr
    for latents, k in ((512, 8), (512, 16), (1024, 8), (1024, 16)):
        name = f"num_latents={latents},k={k}"
        assert curve(stopped / name) == curve(run / name)
        assert same_weights(stopped / name, run / name)


@pytest.mark.long
def test_hooks_are_read_in_one_forward_and_seeds_are_compared(folder):
    # In a trained model latents of two seeds find each other; in the small random one none do.
    words = [word for word in WORDS[:-1] if word not in SMALL_LLM]
    words += ["sae.num_latents=512", "tokens.max_norm_multiple=null", "eval.tokens=2k"]
    words += ["eval.ce_tokens=512"]
    hooks = "grid.hook=[layers.0,layers.1.mlp:in]"
    done = warm(folder, *words, "name=hooks", hooks, "grid.seed=[0,1]")
    assert done.returncode == 0, done.stderr
    run = folder / "outputs" / "hooks"
    name = "hook=layers.1.mlp_in,seed=0"
    done = warm(folder, *words, "name=one", "hook=layers.1.mlp:in")
    assert done.returncode == 0, done.stderr
    alone = folder / "outputs" / "one"
    assert curve(run / name) == curve(alone) and same_weights(run / name, alone)
    ours, theirs = (json.loads((each / "summary.json").read_text()) for each in (run / name, alone))
    assert [ours[key] for key in ("fvu", "ce_recovered")] == [theirs[key] for key in ("fvu", "ce_recovered")]
    seeds = json.loads((run / "summary.json").read_text())["seeds"]
    assert len(seeds) == 2 and all(0 < each["matched"] < 1 for each in seeds)
    with open(run / seeds[0]["file"], newline="") as file:
        table = list(csv.DictReader(file))
    fires = [row for row in table if float(row["firing_rate"]) > 0]
    partners = [row for row in fires if row["partners"] == "1" and float(row["cosine"]) > 0.7]
    assert len(table) == 512 and len(partners) / len(fires) == pytest.approx(seeds[0]["matched"])
