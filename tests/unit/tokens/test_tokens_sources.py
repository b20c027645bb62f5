"""Token sources of every kind: exact, resumable, dealt out to lanes, evaluation kept apart."""

import io
import json
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch

from sae_dist.config.sections import TokensConfig
from sae_dist.core.types import LlmFacts
from sae_dist.tokens.source import open_tokens
from sae_dist.tokens.text import PythonCorpus
from tests.helpers.tiny_llms import EMBEDDED

FIELDS = ("ids_NS", "segment_NS", "position_NS", "keep_NS", "document_NS")
LANES, ROWS = 3, 90
KINDS = (
    "python", "folder", "jsonl", "webdataset", "webdataset_json", "hf", "hf_shards", "hf_mapped", "hf_ids"
)  # fmt: skip
FACTS = LlmFacts("embedded", str(EMBEDDED), "layers.1:out", 256, True, 64, 2048, (0,), ())
DOCUMENTS = 60


def texts() -> list[str]:
    random = np.random.default_rng(0)
    return [f"Document {i}: " + " ".join(map(str, random.integers(0, 999, 20 + i))) for i in range(DOCUMENTS)]


def ids() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [[i + 1, *random.integers(1, 2048, 30 + i).tolist()] for i in range(DOCUMENTS)]


def write_tar(path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def npy(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, np.uint16))
    return buffer.getvalue()


def make(kind: str, folder) -> TokensConfig:
    """Write a corpus of `kind` into `folder`; returns the config that reads it."""
    if kind == "python":
        return TokensConfig(kind="text", context=64)
    if kind == "folder":
        for i, text in enumerate(texts()):
            (folder / f"{i // 10}").mkdir(exist_ok=True)
            (folder / f"{i // 10}" / f"{i}.txt").write_text(text + "\n")
        return TokensConfig(kind="text", path=str(folder), context=64)
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
        return TokensConfig(kind="text", path=str(folder / "a.jsonl"), context=64)
    if kind.startswith("webdataset"):
        for shard in range(3):
            rows = [(f"{i:04d}", each) for i, each in enumerate(ids()) if i % 3 == shard]
            if kind == "webdataset":
                mine = {f"{key}.ids.npy": npy(each) for key, each in rows}
            else:
                mine = {f"{key}.ids.json": json.dumps(each).encode() for key, each in rows}
            write_tar(folder / f"x-{shard}.tar", {**mine, "note.txt": b"left out"})
        return TokensConfig(kind="webdataset", path=str(folder / "x-{0..2}.tar"), context=64)
    column, rows = ("ids", ids()) if kind == "hf_ids" else ("text", texts())
    shards = 4 if kind == "hf_shards" else 1
    for shard in range(shards):
        lines = [json.dumps({column: row, "other": 1}) + "\n" for row in rows[shard::shards]]
        (folder / f"part-{shard}.jsonl").write_text("".join(lines))
    return TokensConfig(
        kind="hf",
        dataset="json",
        data_files=str(folder / "part-*.jsonl"),
        column=column,
        streaming=kind != "hf_mapped",
        context=64,
    )


@pytest.fixture(scope="module", params=KINDS)
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make(request.param, folder)


def opened(cfg, *, held_out=False, seed=0, lanes=LANES, rows=ROWS):
    return open_tokens(cfg, FACTS, lanes=lanes, seed=seed, rows=rows, held_out=held_out)


def epoch(source, lane, number=0) -> list[tuple[int, ...]]:
    """A lane's documents; of Python's own text, which is large, only the first few."""
    of_python = isinstance(getattr(source.documents, "corpus", None), PythonCorpus)
    found = islice(source.documents.documents(lane, number, 0), 8 if of_python else DOCUMENTS)
    return [tuple(each.ids_T.tolist()) for _, each in found]


def same(a, b) -> bool:
    return (a.number, a.lane, a.start) == (b.number, b.lane, b.start) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS
    )


def test_chunks_are_exact_and_every_one_is_reached_again(corpus):
    source = opened(corpus)
    for lane in (0, LANES - 1):
        chunks = list(islice(source.open(lane, None), 45))
        assert all(int(chunk.keep_NS.sum()) == ROWS for chunk in chunks)
        assert [chunk.number for chunk in chunks] == [i * LANES + lane for i in range(45)]
        fresh = opened(corpus)
        for index in (0, 1, 7, 30):
            start = json.loads(json.dumps(chunks[index].start))
            assert all(map(same, islice(fresh.open(lane, start), 4), chunks[index : index + 4]))


def test_lanes_share_out_the_documents_and_evaluation_has_its_own(corpus):
    training = opened(corpus)
    lanes = [epoch(training, lane) for lane in range(LANES)]
    out = [epoch(opened(corpus, held_out=True, seed=seed, lanes=1), 0) for seed in (0, 5)]
    assert out[0] == out[1] and out[0]
    if corpus.path is None and corpus.dataset is None:
        return  # Python's own text is too much to read whole.
    dealt = [document for lane in lanes for document in lane]
    assert len(set(dealt)) == len(dealt)
    assert len(dealt) + len(out[0]) == DOCUMENTS and not set(dealt) & set(out[0])


def test_each_epoch_and_each_seed_has_its_own_order(corpus):
    def order(seed, number):
        source = opened(corpus, seed=seed)
        return [epoch(source, lane, number) for lane in range(LANES)]

    first = order(0, 0)
    assert first == order(0, 0)
    assert first != order(0, 1) and first != order(1, 0)


def test_epochs_end_the_lane(tmp_path):
    cfg = make("jsonl", tmp_path)
    cfg.epochs = 2
    source = opened(cfg)
    tokens = sum(len(document) for number in range(2) for document in epoch(source, 1, number))
    chunks = list(source.open(1, None))
    assert len(chunks) == tokens // ROWS
    assert {chunk.start["epoch"] for chunk in chunks} == {0, 1}


@pytest.mark.parametrize("kind", ["folder", "jsonl", "hf", "hf_shards", "hf_mapped"])
def test_reopening_tokenises_only_the_document_it_stands_in(tmp_path, kind):
    cfg = make(kind, tmp_path)
    source = opened(cfg, rows=11)
    holder = source.documents if kind in ("hf", "hf_shards") else source.documents.corpus
    holder = getattr(holder, "column", holder)
    encoder, calls = holder.encoder, []

    class Counting:
        def ids(self, text):
            calls.append(text)
            return encoder.ids(text)

    late = next(islice(source.open(0, None), 80, None))
    assert late.start["document"] > 3
    holder.encoder = Counting()
    again = next(source.open(0, late.start))
    assert same(late, again)
    assert len(calls) <= 2 and len(set(late.document_NS[late.keep_NS].tolist())) == len(calls)


def test_the_smallest_corpus_has_something_to_evaluate_on(tmp_path):
    (tmp_path / "one.txt").write_text("word\n" * 2000)
    cfg = TokensConfig(kind="text", path=str(tmp_path / "one.txt"), context=64)
    assert epoch(opened(cfg, held_out=True, lanes=1), 0)


def test_a_document_that_begins_with_bos_gets_no_second_one(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{i}.ids.npy": npy([0, *range(5 + i, 60)]) for i in range(20)})
    cfg = TokensConfig(kind="webdataset", path=str(tmp_path / "a.tar"), context=64)
    chunk = next(opened(cfg).open(0, None))
    assert not (chunk.ids_NS[chunk.keep_NS] == 0).any()
    assert chunk.ids_NS[0, 0] == 0 and chunk.ids_NS[0, 1] != 0


def test_context_is_at_most_the_models():
    cfg = TokensConfig(kind="text", context=512)
    assert next(opened(cfg).open(0, None)).ids_NS.shape[1] == FACTS.context
