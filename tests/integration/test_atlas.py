"""An atlas of a run: the same bytes for any topology and after any stop, and what the untouched model has."""

import json
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_dist.atlas.schema import KEPT
from sae_dist.export.saelens import load_exported
from tests.helpers.untrained import untrained_run
from tests.helpers.warm import Command, warm

TEXT = ["atlas.tokens=4000", "atlas.lanes=8", "atlas.lens=2"]
TOPOLOGIES = [
    "topology.shard=4",
    "topology.dp=2",
    "topology.producers=2",
    "topology.producers=3 topology.shard=2 topology.dp=2",
]


def ranks_of(words):
    given = dict(word.split("=") for word in words.split())
    size = {key: int(given.get(f"topology.{key}", 1)) for key in ("shard", "dp")}
    return int(given.get("topology.producers", 0)) + size["shard"] * size["dp"]


def atlas_of(run, *words, ranks=1):
    done = warm(run.parent, "atlas", str(run), *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return run / "atlas"


def files(atlas):
    """Every table, and the manifest, by name."""
    assert not (atlas / "work").exists()
    found = {path.relative_to(atlas).as_posix(): path.read_bytes() for path in atlas.rglob("*.parquet")}
    return found | {"atlas.json": (atlas / "atlas.json").read_bytes()}


def again(run, name):
    """The same run under another name, without its atlas."""
    other = run.parent / name
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("atlas"))
    return other


@pytest.fixture(scope="module", params=["topk"])
def run(request, folder):
    return untrained_run(folder, f"a-{request.param}", request.param)


@pytest.fixture(scope="module")
def whole(run):
    return atlas_of(run, *TEXT)


@pytest.mark.parametrize(
    "topology",
    [
        "topology.shard=2 topology.producers=1",
        *(pytest.param(each, marks=pytest.mark.long) for each in TOPOLOGIES),
    ],
)
def test_no_topology_changes_a_byte(run, whole, topology):
    other = again(run, topology.replace("topology.", "").replace(" ", "-"))
    assert files(atlas_of(other, *TEXT, *topology.split(), ranks=ranks_of(topology))) == files(whole)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_nor_in_an_atlas_of_another_kind(folder, kind):
    run = untrained_run(folder, f"b-{kind}", kind)
    one = atlas_of(run, *TEXT)
    other = atlas_of(again(run, f"c-{kind}"), *TEXT, "topology.shard=2", "topology.producers=1", ranks=3)
    assert files(one) == files(other)


@pytest.mark.long
def test_nor_does_a_model_that_two_ranks_hold(run, whole):
    """With ZeRO-3 rows are the same to the bit; with tensor parallelism the model's own sums differ."""
    other = again(run, "zero3")
    text = (other / "config.yaml").read_text()
    text = text.replace("shard: none", "shard: zero3", 1).replace("shard_size: 1", "shard_size: 2", 1)
    (other / "config.yaml").write_text(text)
    found = files(atlas_of(other, *TEXT, "topology.producers=1", ranks=3))
    assert found == files(whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stop_changes_nothing_nor_does_another_topology_after_it(run, whole, number):
    other = again(run, f"stopped-{number.name}")
    done = other / "atlas" / "work" / "done.json"
    process = Command(run.parent, "atlas", str(other), *TEXT, "topology.shard=2", ranks=2)
    until = time.monotonic() + 120
    while not done.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate(60)
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(60)
    assert process.poll() == (75 if number == signal.SIGTERM else -number)
    assert not (other / "atlas" / "atlas.json").exists() and json.loads(done.read_text())["windows"] >= 1
    refused = warm(run.parent, "atlas", str(other), *TEXT)
    assert refused.returncode == 2 and "continue it with resume=auto" in refused.stderr
    assert files(atlas_of(other, "resume=auto", "topology.shard=1")) == files(whole)


def columns(path):
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names if name != "at"}


def test_codes_are_those_of_the_untouched_model(run, whole):
    """Every segment of some documents is given to transformers' own model, alone; codes by the formula."""
    tokens, postings = columns(whole / "tokens.parquet"), []
    for path in sorted((whole / "postings").glob("*.parquet")):
        postings.append(pq.read_table(path))
    model = AutoModelForCausalLM.from_pretrained(run.parent / "llm", dtype=torch.float32).eval()
    seen = {}
    model.model.layers[1].register_forward_hook(lambda *args: seen.update(x=args[2]))
    sae = load_exported(run / "export")
    begins = np.flatnonzero(tokens["position"] == 0)
    at_P = np.concatenate([table["at"].to_numpy() for table in postings])
    latent_P = np.concatenate([table["latent"].to_numpy() for table in postings])
    code_P = np.concatenate([table["code"].to_numpy() for table in postings])
    assert len(begins) > 20
    for first, end in list(zip(begins, [*begins[1:], len(tokens["token"])], strict=True))[:20]:
        with torch.no_grad():
            model(torch.from_numpy(tokens["token"][first:end].astype(np.int64))[None])
            x_SD = seen["x"][0] if isinstance(seen["x"], tuple) else seen["x"]
            score_SF = (x_SD.view(end - first, -1) - sae.b_dec_E) @ sae.W_enc_FD.T + sae.b_enc_F
        best = score_SF.topk(sae.k, dim=1)
        expected = torch.zeros_like(score_SF).scatter_(1, best.indices, best.values.relu())
        expected[torch.from_numpy(tokens["state"][first:end] != KEPT)] = 0
        mine = (at_P >= first) & (at_P < end)
        found = torch.zeros_like(score_SF)
        found[at_P[mine] - first, latent_P[mine].astype(np.int64)] = torch.from_numpy(code_P[mine])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_documents_are_whole_and_their_tokens_are_the_tokenizer_s(run, whole):
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "llm")
    texts = [json.loads(line)["text"] for line in (run.parent / "texts.jsonl").read_text().splitlines()]
    known = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    tokens, documents = columns(whole / "tokens.parquet"), columns(whole / "documents.parquet")
    ends_early = 0
    for number, first, length in zip(
        *(documents[name] for name in ("document", "begin", "tokens")), strict=True
    ):
        own = slice(first, first + length)
        assert (tokens["document"][own] == number).all()
        ids = tuple(tokens["token"][own][tokens["state"][own] == KEPT].tolist())
        ends_early += ids not in known
        assert any(ids == each[: len(ids)] for each in known)
    assert len(documents["document"]) > 20 and ends_early <= 8, "a lane's last document may be cut"
    assert (tokens["state"] == KEPT).sum() == 4096, "32 chunks of 128"


def test_a_given_text_is_read_whole(run):
    """All its documents, those too that a run would hold out; a lane has few, or none."""
    other, path = again(run, "given"), run.parent / "given.jsonl"
    texts = [f"number {n} of a few short texts, and {n} more words" for n in range(11)]
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    atlas = atlas_of(other, f"atlas.text={path}", "atlas.lens=0", "atlas.near=false")
    tokens = columns(atlas / "tokens.parquet")
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "llm")
    found = [
        tokenizer.decode(tokens["token"][(tokens["document"] == n) & (tokens["state"] == KEPT)])
        for n in range(11)
    ]
    assert sorted(found) == sorted(texts)
    said = json.loads((atlas / "atlas.json").read_text())
    assert said["documents"] == 11 and said["text"] == str(path)
    assert said["near"] == "atlas.near=false" and said["lens"] == "not fitted: atlas.lens=0"
    latents = pq.read_table(atlas / "latents")
    assert latents["near"].null_count == latents["lens_up"].null_count == 512 and not latents["up"].null_count


@pytest.mark.parametrize("name", ["neuronpedia", "circuit_tracer", "delphi", "pages"])
def test_it_is_handed_on(run, whole, name):
    out = run.parent / f"out-{name}"
    done = warm(run.parent, "atlas", str(run), "--format", name, "--latents", "0-9,300", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert any(out.rglob("*")) and str(out) in done.stdout
    again = warm(run.parent, "atlas", str(run), "--format", name, "--latents", "0-9", f"--out={out}")
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1


def test_what_stands_in_its_place_is_left_alone(run):
    """A file, a folder with something else: one line. A link to a folder elsewhere is followed, and said."""
    other, elsewhere = again(run, "taken"), run.parent / "elsewhere"
    place = other / "atlas"
    for make in (lambda: place.write_text("x"), lambda: place.mkdir() or (place / "mine").write_text("x")):
        make()
        done = warm(run.parent, "atlas", str(other))
        assert done.returncode == 2 and "is no atlas" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        place.unlink() if place.is_file() else shutil.rmtree(place)
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    done = warm(run.parent, "atlas", str(other), "atlas.tokens=300", "atlas.lens=0")
    assert (
        done.returncode == 0
        and f"is a link: what is written and removed there is in {elsewhere}" in done.stderr
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["atlas.tokens=0"], "atlas.tokens=0"),
        (["atlas.lane=5"], "only atlas.tokens"),
        (["atlas.lanes=0"], "at least 1"),
        (["atlas.top=x"], "atlas.top=x has the wrong type"),
        (["topology.shard=3"], "topology.shard=3 does not divide the 512 latents"),
        (["topology.dp=0"], "topology.dp=0"),
        (["atlas.text=/no/such"], "atlas.text=/no/such does not exist"),
        (["atlas.text=pipe:rm x"], "pipe:rm x"),
        (["resume=yes"], "resume=yes"),
        (["sae.k=3"], "only atlas.tokens"),
        (["--fast"], "no option --fast"),
        (["--format", "csv"], "--format csv is none of neuronpedia, circuit_tracer, delphi, pages"),
        (["--format", "pages"], "--format pages needs --latents"),
        (["--format", "delphi", "--latents", "3-x"], "--latents 3-x is no list"),
        (["--format", "delphi", "--latents", "0-99999999"], "more than 1,000,000"),
        (["--format", "delphi"], "sae-dist atlas"),
        (["--latents", "3"], "--latents goes with --format"),
        (["--format", "delphi", "atlas.tokens=3"], "handed on as it is"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, words, said):
    other = run.parent / "bad"
    if not other.exists():
        again(run, "bad")
    done = warm(run.parent, "atlas", str(other), *words)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (other / "atlas").exists()
