"""Harvest once, train many: the curve of a live run from a cache, and files that no incident changes."""

import json
import shutil
import signal
import time

import pytest

from sae_dist import cli
from tests.helpers.commands import TINY, rows, train
from tests.helpers.runs import wait_for_checkpoint
from tests.helpers.small_llm import SMALL_LLM
from tests.helpers.sources import served
from tests.helpers.warm import Command, warm

SHAPE = [*SMALL_LLM, "train_tokens=19200"]
HARVEST = [
    "harvest",
    "shuffle.lanes=8",
    "shuffle.chunk_rows=128",
    "eval.tokens=0",
    "cache.shard_chunks=4",
    *SHAPE,
]
CURVE = "step loss/total loss/fvu loss/aux sparsity/l0 stream/batch_hash stream/excluded_rows".split()


@pytest.fixture(scope="module")
def live(folder):
    return train(folder, "live", *SHAPE)


def harvest(folder, name, *overrides):
    """Harvest to the end; its folder."""
    done = warm(folder, *HARVEST, f"name={name}", *overrides)
    assert done.returncode == 0, done.stderr
    assert f"train with: activations=cache activations.path=outputs/{name}" in done.stdout
    return folder / "outputs" / name


@pytest.fixture(scope="module")
def exact(folder):
    return harvest(folder, "exact", "cache.dtype=float32")


def files(cache):
    """Everything that training reads."""
    return {path.name: path.read_bytes() for path in (cache / "manifest.json", *cache.glob("shards/*"))}


def curve(found, keys=CURVE):
    return [[row[key] for key in keys] for row in found]


def test_a_float32_cache_gives_the_live_curve_bit_for_bit(folder, live, exact):
    cached = train(folder, "cached", "train_tokens=19200", "activations=cache", f"activations.path={exact}")
    assert len(live) == 25 and curve(cached) == curve(live)


def test_a_cache_is_trained_on_over_http(folder, live, exact, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served(exact.parent) as url:
        place = f"activations.path={url}/{exact.name}"
        found = train(folder, "http", "train_tokens=19200", "activations=cache", place)
    assert curve(found) == curve(live)


def test_a_bfloat16_cache_gives_the_live_curve_in_bfloat16(folder, live):
    cache = harvest(folder, "half")
    words = ["activations=cache", f"activations.path={cache}", "train_tokens=19200"]
    same = [train(folder, "half_live", *SHAPE, "precision=bfloat16")]
    same.append(train(folder, "half_cached", *words, "precision=bfloat16"))
    assert curve(same[0]) == curve(same[1])
    # Rows rounded to 8 bits flip near-ties of TopK, and that grows.
    wide = train(folder, "half_wide", *words)
    assert [row["stream/batch_hash"] for row in wide] == [row["stream/batch_hash"] for row in live]
    off = [abs(a["loss/fvu"] / b["loss/fvu"] - 1) for a, b in zip(wide, live, strict=True)]
    assert off[0] < 1e-3 and max(off) < 3e-2, off


def test_a_killed_run_goes_on_in_the_middle_of_lanes_on_other_ranks(folder, live, exact):
    words = ["train", *TINY, "train_tokens=19200", "activations=cache", f"activations.path={exact}"]
    # The hook, the model and the seed of the cache, the hook by another of its names.
    words += [
        "hook=blocks.1.hook_resid_post",
        SMALL_LLM[0],
        "seed=0",
        "name=killed",
        "checkpoint.every=3840",
    ]
    process = Command(folder, *words)
    run = folder / "outputs" / "killed"
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = warm(folder, *words, "resume=auto", "topology.shard=2", ranks=2)
    assert done.returncode == 0, done.stderr
    found = rows(run)
    assert curve(found, ["step", "stream/batch_hash"]) == curve(live, ["step", "stream/batch_hash"])


def test_a_killed_harvest_goes_on_and_leaves_the_same_files(folder, exact, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    words = [*HARVEST, "name=broken", "cache.dtype=float32"]
    process = Command(folder, *words)
    cache, until = folder / "outputs" / "broken", time.monotonic() + 120
    while len(list(cache.glob("shards/[!.]*"))) < 5:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = {path.name: path.stat().st_mtime_ns for path in cache.glob("shards/[!.]*")}
    assert not (cache / "manifest.json").exists() and 5 <= len(there) < len(files(exact)) - 1

    assert cli.main(words) == 2 and "unfinished; continue it with resume=auto" in capfd.readouterr().err
    assert cli.main(["train", *TINY, "activations=cache", f"activations.path={cache}"]) == 2
    assert "continue its harvest with resume=auto" in capfd.readouterr().err
    done = warm(folder, *words, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert files(cache) == files(exact)
    assert all((cache / "shards" / name).stat().st_mtime_ns == when for name, when in there.items())

    assert cli.main(words) == 0 and "broken is finished" in capfd.readouterr().out
    assert cli.main([*words, "seed=1", "resume=auto"]) == 2
    assert "seed is 0 there and 1 here" in capfd.readouterr().err


def test_a_lost_shard_is_written_again(folder, exact):
    cache = folder / "outputs" / "lossy"
    shutil.copytree(exact, cache)
    (cache / "shards" / "lane_3_00001.tar").unlink()
    words = [*HARVEST, "name=lossy", "cache.dtype=float32"]
    assert warm(folder, *words, "resume=auto").returncode == 0
    assert files(cache) == files(exact)


@pytest.mark.long
def test_sigterm_stops_two_producers_which_go_on_and_write_the_files_of_one(folder, exact):
    words = [*HARVEST, "name=stopped", "cache.dtype=float32", "topology.producers=2"]
    process = Command(folder, *words)
    cache, until = folder / "outputs" / "stopped", time.monotonic() + 120
    while not list(cache.glob("shards/[!.]*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.poll() == 75 and "resume=auto" in err and "Traceback" not in err
    assert (cache / "logs" / "rank_1.log").exists() and not (cache / "manifest.json").exists()
    done = warm(folder, *words, "resume=auto", ranks=2)
    assert done.returncode == 0, done.stderr
    assert files(cache) == files(exact)


def test_ranks_of_a_launcher_harvest_together(folder, exact):
    done = warm(folder, *HARVEST, "name=joined", "cache.dtype=float32", "topology.producers=2", ranks=2)
    assert done.returncode == 0, done.stderr
    assert files(folder / "outputs" / "joined") == files(exact)


def damaged(content):
    """Bytes with one bit of the first chunk's rows turned."""
    return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]


def test_a_damaged_shard_stops_the_run_in_one_line(folder, exact):
    cache = folder / "outputs" / "damaged"
    shutil.copytree(exact, cache)
    shard = cache / "shards" / "lane_5_00002.tar"
    shard.write_bytes(damaged(shard.read_bytes()))
    words = [*TINY, "train_tokens=19200", "activations=cache", f"activations.path={cache}", "name=unlucky"]
    done = warm(folder, "train", *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr
    assert "lane_5_00002.tar (chunks 69 to 93 of lane 5" in lines[0] and "is damaged" in lines[0]


def test_evaluation_needs_the_llm_and_says_so(folder, exact):
    cache = folder / "outputs" / "elsewhere"
    shutil.copytree(exact, cache)
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["settings"]["llm.name"] = manifest["facts"]["name"] = "/another/machine/llm"
    manifest["schema"] = 1  # changed on purpose: as before there was a checksum
    (cache / "manifest.json").write_text(json.dumps(manifest))
    words = ["train_tokens=1536", "activations=cache", f"activations.path={cache}", "eval.tokens=2048"]
    train(folder, "abroad", *words)
    summary = json.loads((folder / "outputs" / "abroad" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["fvu"] is None
    assert "/another/machine/llm does not exist" in summary["fvu_reason"]


@pytest.fixture(scope="module")
def caches(folder, exact):
    """Caches that are wrong, each in its own way."""
    made = {}
    for name in ("empty", "short", "schema"):
        made[name] = folder / name
        shutil.copytree(exact, made[name])
    (made["empty"] / "manifest.json").unlink()
    (made["empty"] / "harvest.yaml").unlink()
    (made["short"] / "shards" / "lane_7_00000.tar").unlink()
    text = (made["schema"] / "manifest.json").read_text()
    (made["schema"] / "manifest.json").write_text(text.replace('"schema": 2', '"schema": 7'))
    return made | {"good": exact}


TABLE = [
    ("path={empty}", "has no manifest.json", "sae-dist harvest"),
    ("path={schema}", "schema 7", "reads 2"),
    ("path={short}", "shards/lane_7_00000.tar (chunks 7 to 31 of lane 7", "is missing"),
    ("path={good}/nowhere", "nowhere is not a cache", "sae-dist harvest"),
    ("path={good} train_tokens=1M", "train_tokens=1000000 needs", "at most train_tokens="),
    ("path={good} llm=minilm", "llm.name=minilm", "llm.name=llm; leave llm.name out"),
    ("path={good} hook=layers.2", "hook=layers.2", "hook=layers.1:out; leave hook out"),
    ("path={good} target_hook=layers.2", "target_hook=layers.2", "leave target_hook out"),
    ("path={good} tokens.path=mine", "tokens.path=mine", "leave tokens.path out"),
    ("path={good} seed=1", "seed=1", "seed=0; leave seed out"),
    ("path={good} shuffle.lanes=4", "shuffle.lanes=4", "shuffle.lanes=8"),
    ("path={good} shuffle.chunk_rows=64", "shuffle.chunk_rows=64", "shuffle.chunk_rows=128"),
    ("path={good} topology.producers=1", "topology.producers=1", "=0"),
    ("path={good} activations.key=x", "activations.key=x", "leave activations.key out"),
]


@pytest.mark.parametrize(("overrides", "names", "fix"), TABLE, ids=[row[0] for row in TABLE])
def test_one_line_and_nothing_written(overrides, names, fix, caches, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = f"activations=cache batch=768 train_tokens=19200 activations.{overrides.format(**caches)}".split()
    assert cli.main(["train", *words]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and err.startswith("sae-dist: error: "), err
    assert names in err and fix in err
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("activations=synthetic", "a harvest keeps the activations of a language model"),
        ("cache.dtype=int8", "cache.dtype=int8 is not one of bfloat16, float32, float64"),
        ("cache.shard_chunks=0", "cache.shard_chunks=0 must be greater than 0"),
        ("topology.producers=9 shuffle.lanes=8", "use at most 8 producers"),
        ("train_tokens=100T", "GiB free and this cache needs"),
        ("hook=layers.9", "the layers are 0 to 3"),
        ("llm.shard=tp llm.shard_size=2 topology.producers=1", "every rank holds the whole model"),
        ("name=live output={folder}/outputs", "is no cache folder"),
    ],
)
def test_a_harvest_of_wrong_input(overrides, says, folder, live, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = overrides.format(folder=folder).split()
    assert cli.main(["harvest", "eval.tokens=0", *words]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and says in err, err
    assert list(tmp_path.iterdir()) == []
