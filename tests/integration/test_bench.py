"""Real trials on a tiny array: ours always, a peer's where its environment is given."""

import csv

import numpy as np
import pytest
import torch

from sae_dist import cli
from sae_dist.bench.contestant import PEERS, TrialFailed
from sae_dist.bench.quality.contestants import CONTESTANTS
from sae_dist.bench.quality.data import order_file, prepare_data
from sae_dist.bench.quality.plan import Outcome, QualityPlan
from sae_dist.bench.quality.run import one_trial
from sae_dist.config.run import load_config
from sae_dist.train.meter import HASH_PRIME
from tests.helpers.commands import rows
from tests.helpers.warm import warm

D, F, K = 24, 256, 4
PEER_NAMES = sorted({each.peer for each in CONTESTANTS.values() if each.peer})


def sparse_rows(held_out: bool):
    """Sums of a few of 64 directions, which a dictionary can find."""
    direction = torch.nn.functional.normalize(torch.randn(64, D, generator=torch.Generator().manual_seed(5)))
    draw = torch.Generator().manual_seed(int(held_out))
    while True:
        on = (torch.rand(512, 64, generator=draw) < 0.04) * torch.rand(512, 64, generator=draw)
        yield on @ direction + 0.01 * torch.randn(512, D, generator=draw)


@pytest.fixture
def plan(tmp_path, request) -> QualityPlan:
    given = request.config.getoption("--peer-python", default=None) or ""
    peers = dict(part.split("=", 1) for part in given.split(",") if part)
    plan = QualityPlan(
        tmp_path / "bench",
        tokens=256 * 250,
        shapes=((F, K),),
        seeds=1,
        batch=256,
        test_rows=4096,
        peer_python=peers,
    )
    prepare_data(plan, sparse_rows)
    return plan


def trial(plan: QualityPlan, name: str, lr: float = 1e-2) -> dict:
    contestant = CONTESTANTS[name]
    return one_trial(plan, contestant, F, K, Outcome(name, contestant.label, F, K), lr, 0)


@pytest.mark.long
def test_ours_learns_and_draws_the_rows_that_peers_are_given(plan):
    result = trial(plan, "ours")
    assert result["fvu"] < 0.3 and result["l0"] <= K and result["train_seconds"] > 0
    folder = plan.folder / "trials" / f"{F}-k{K}" / "ours" / "lr0.01-seed0"
    assert (folder / "weights.safetensors").is_file() and not (folder / "run" / "checkpoints").exists()
    cfg = load_config(folder / "run" / "config.yaml")
    assert cfg.sae.num_latents == F and cfg.optim.lr == 0.01
    # metrics.jsonl has a hash of (place, row) summed over each `metrics.every` steps.
    ids = np.load(order_file(plan, 0))[: cfg.metrics.every * plan.batch]
    mixed = (np.arange(len(ids)) % HASH_PRIME * 48271 + ids * 69621 + 12345) % HASH_PRIME
    assert rows(folder / "run")[0]["stream/batch_hash"] == ((mixed * mixed) % HASH_PRIME).sum()


def test_a_missing_peer_says_how_to_get_it(plan):
    plan.peer_python.clear()
    with pytest.raises(TrialFailed, match="sae-dist bench peers"):
        trial(plan, "saelens")


def test_the_command_answers_wrong_words_with_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    wrong = [
        "quality --only mine",
        "sweep",
        "scaling --k 0",
        "peers --only mine",
        "stream --only x",
        "step --k 0",
    ]
    for words in wrong:
        assert cli.main(["bench", *words.split()]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and err.startswith("sae-dist: error: "), err
        assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_step_times_ours_beside_a_dense_one_and_the_floor(tmp_path, monkeypatch, request):
    pythons = (request.config.getoption("--peer-python", default=None) or "").split(",")
    given = ",".join(each for each in pythons if each.split("=")[0] in PEER_NAMES)
    peers = [name for name, each in CONTESTANTS.items() if f"{each.peer}=" in given]
    only = ["ours", "ours_row_adam", "dense", *peers]
    # Compiling takes longer than all the rest; what is timed is then the same code, uncompiled.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    sizes = "--width 64 --latents 2048 --k 8 --batch 256 --rounds 2 --device cpu"
    words = [*sizes.split(), "--only", ",".join(only), "--peer-python", given]
    done = warm(tmp_path, "bench", "step", "--folder", "out", *words)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "step.csv", newline="") as file:
        found = {(row["contestant"], row["mode"]): row for row in csv.DictReader(file)}
    assert {name for name, _ in found} == {"product_float32", "product_bfloat16", "copy", *only}
    for name in only:
        rest, aux = found[name, "rest"], found[name, "aux"]
        assert rest["status"] == aux["status"] == "timed" and rest["rounds"] == "2", done.stderr
        assert float(rest["over_product_float32"]) > 0.5 and float(rest["peak_bytes"]) > 0
        assert float(rest["fvu"]) == pytest.approx(float(found["product_float32", "rest"]["fvu"]), rel=1e-3)
        assert rest["dead_latents"] == "0" and float(aux["dead_latents"]) == pytest.approx(204, abs=2)
    assert "| sae_dist, row_adam |" in (tmp_path / "out" / "step.md").read_text()


@pytest.mark.long
def test_stream_measures_transport_capture_split_topology_and_grid(tmp_path):
    sizes = "--rows 128 --widths 16 --chunks 16 --latents 512 --batch 384 --steps 20 --rounds 1 --device cpu"
    words = [*sizes.split(), "--dictionaries", "2"]
    done = warm(tmp_path, "bench", "stream", "--folder", "out", *words)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "stream.csv", newline="") as file:
        found = {row[""]: row for row in csv.DictReader(file)}
    assert [name.split(":")[0] for name in found] == [
        "wire, 128 x 16 float32",
        "wire, 128 x 16 bfloat16",
        "capture",
        "capture",
        "split, 512 latents",
        "split, 512 latents",
        "split, 512 latents",
        "grid of 2 x 512 latents on embedded, and as many runs",
        "grid of 2 x 512 latents on embedded",
    ]
    figures = list(found.values())
    stalled = figures.pop(6)
    for row in figures:
        assert float(row["sae_dist"]) > 0 and float(row["against"]) > 0, row
        # Of one round the ratio is that of the two figures.
        if row["rounds"] == "1":
            times = float(row["sae_dist"]) / float(row["against"])
            assert float(row["ratio"]) == pytest.approx(times, rel=0.02, abs=0.001)
    assert 0 <= float(stalled["sae_dist"]) <= 100
    assert "| wire, 128 x 16 float32 |" in (tmp_path / "out" / "stream.md").read_text()


def test_mixing_counts_rows_of_one_document_by_block_size(tmp_path):
    words = "--blocks 1,8 --chunk-rows 64 --tokens 24k --device cpu"
    done = warm(tmp_path, "bench", "mixing", "--folder", "out", *words.split())
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "mixing.csv", newline="") as file:
        small, large = csv.DictReader(file)
    assert float(small["partners per row"]) > float(large["partners per row"])
    assert float(large["GiB of waiting rows"]) > float(small["GiB of waiting rows"])
    assert 0 < float(large["correlation"]) < 0.5


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, each in CONTESTANTS.items() if each.peer])
def test_a_peer_learns(plan, name):
    if CONTESTANTS[name].peer not in plan.peer_python:
        pytest.skip(f"--peer-python {CONTESTANTS[name].peer}=... is not given")
    result = trial(plan, name)
    assert result["fvu"] < 0.3 and result["l0"] <= K and result["version"]


def test_scripts_of_peers_know_nothing_of_us():
    for script in PEERS.glob("*.py"):
        assert "import sae_dist" not in script.read_text() and "from sae_dist" not in script.read_text()
