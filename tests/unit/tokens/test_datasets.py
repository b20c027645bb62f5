"""Hugging Face datasets as people have them: masks, saved folders, ids alone, lines that are no JSON."""

import json
from dataclasses import replace
from itertools import islice

import datasets
import pytest
from test_tokens_sources import FACTS

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens import hf, hf_files, hf_places
from sae_dist.tokens.source import open_tokens

ROWS = [{"text": f"a few words of text, number {number}"} for number in range(60)]
NO_TOKENIZER = replace(FACTS, path="/nowhere", prefix=(), vocab_size=61)


def opened(facts=FACTS, *, lanes=1, held_out=False, **fields):
    cfg = TokensConfig(kind="hf", context=64, **fields)
    hf_files.check_files(cfg, f"tokens.dataset={cfg.dataset}")
    return open_tokens(cfg, facts, lanes=lanes, seed=0, rows=20, held_out=held_out)


def lines(path, rows):
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows))
    return {"dataset": "json", "data_files": str(path)}


@pytest.mark.parametrize("streaming", [True, False])
def test_ids_need_no_tokenizer_and_masked_ones_are_not_read(tmp_path, streaming):
    rows = [
        {
            "input_ids": [*range(1, 21 + n), *[60] * (40 - n)],
            "attention_mask": [1] * (20 + n) + [0] * (40 - n),
        }
        for n in range(40)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "padded.parquet")
    fields = {"dataset": "parquet", "data_files": str(tmp_path / "padded.parquet"), "column": "input_ids"}
    chunks = list(islice(opened(NO_TOKENIZER, streaming=streaming, **fields).open(0, None), 10))
    assert not any((chunk.ids_NS == 60).any() for chunk in chunks)
    assert sum(chunk.left_out.get("masked", 0) for chunk in chunks) > 20


@pytest.mark.parametrize("split", ["train", None])
def test_a_folder_that_save_to_disk_wrote(tmp_path, split):
    saved = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({split: saved}) if split else saved).save_to_disk(tmp_path / "saved")
    source = opened(dataset=str(tmp_path / "saved"))
    assert len(list(source.documents.documents(0, 0, 0))) == len(ROWS) - len(ROWS) // 8
    if split:
        with pytest.raises(ConfigError, match="tokens.split=test is not in .*; it has train"):
            opened(dataset=str(tmp_path / "saved"), split="test")


@pytest.mark.parametrize(
    "bad, says",
    [
        ('{"text": "\\ud83d half"}\n', "line 31 has half of a surrogate pair"),
        ('{"text": "cut\n', "line 31 is not JSON"),
    ],
)
def test_a_line_that_no_reader_accepts_is_named(tmp_path, monkeypatch, bad, says):
    fields = lines(tmp_path / "a.jsonl", [*ROWS[:30], bad, *ROWS[30:]])
    with pytest.raises(ConfigError, match=f"a.jsonl, {says}"):
        opened(**fields)
    # A file too large to be read whole before the run.
    monkeypatch.setattr(hf_files, "READ_WHOLE_BYTES", 100)
    with pytest.raises((ConfigError, DataError), match=f"cannot be (read|loaded): .*a.jsonl, {says}"):
        list(islice(opened(**fields).open(0, None), 40))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("bad", [{"text": None}, {"body": "x"}])
def test_an_example_without_text_is_left_out_counted_and_named(tmp_path, capsys, streaming, bad):
    fields = lines(tmp_path / "a.jsonl", [*ROWS[:30], bad, *ROWS[30:]])
    found = [opened(streaming=streaming, held_out=out, epochs=1, **fields) for out in (False, True)]
    chunks = [chunk for source in found for chunk in source.open(0, None)]
    assert sum(chunk.left_out.get("documents", 0) for chunk in chunks) <= 1
    assert "has no text (null)" in capsys.readouterr().err


def test_foreign_ids_end_the_run_by_name(tmp_path):
    rows = [{"ids": [1, 2, 3]} for _ in range(20)] + [{"ids": [1, 61]} for _ in range(40)]
    fields = lines(tmp_path / "a.jsonl", rows) | {"column": "ids", "streaming": False}
    with pytest.raises(DataError, match=r"tokens.dataset=json, example \d+: it has token ids from 1 to 61"):
        list(islice(opened(NO_TOKENIZER, **fields).open(0, None), 40))


def test_a_parquet_file_without_the_column_is_named(tmp_path):
    for name, column in (("a", "text"), ("b", "body")):
        table = datasets.Dataset.from_list([{column: each["text"]} for each in ROWS])
        table.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ConfigError, match="tokens.column=text is not a column of .*b.parquet; .*: body"):
        opened(dataset="parquet", data_files=str(tmp_path / "*.parquet"))


def test_text_needs_a_tokenizer_that_the_model_has_embeddings_for(tmp_path):
    fields = lines(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="has embeddings for 900 tokens, and its tokenizer makes 2048"):
        opened(replace(FACTS, vocab_size=900), **fields)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        opened(NO_TOKENIZER, **fields)


@pytest.mark.parametrize("named", ["{outside}/private.jsonl", "../outside/private.jsonl", "../outside/*"])
def test_a_folder_names_no_file_outside_of_it(tmp_path, named):
    (tmp_path / "outside").mkdir()
    lines(tmp_path / "outside" / "private.jsonl", ROWS)
    (tmp_path / "theirs").mkdir()
    files = named.format(outside=tmp_path / "outside")
    card = tmp_path / "theirs" / "README.md"
    card.write_text(f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n")
    with pytest.raises(ConfigError, match="README.md names a file outside of the folder|cannot be loaded"):
        opened(dataset=str(tmp_path / "theirs"))
    lines(tmp_path / "theirs" / "own.jsonl", ROWS)
    card.write_text("---\nconfigs:\n- config_name: default\n  data_files: 'own.jsonl'\n---\n")
    assert opened(dataset=str(tmp_path / "theirs"))


@pytest.mark.parametrize("name", ["../../outside/data-00000-of-00001.arrow", "/outside.arrow", 5])
def test_a_saved_folder_names_no_file_outside_of_it(tmp_path, name):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"][0]["filename"] = name
    state.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="names a file outside of its folder"):
        opened(dataset=str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["../elsewhere"]}))
    with pytest.raises(ConfigError, match="names a file outside of its folder"):
        opened(dataset=str(tmp_path / "saved"))


@pytest.mark.parametrize(
    "files, system",
    [
        ("reference::file:///a.json", "reference"),
        ("reference://x::/a.json", "reference"),
        ("zip://a::reference://b::https://c", "reference"),
        ("ssh://host/a", "ssh"),
        ("https://example.org/a.json", None),
        ("zip://*.jsonl::https://example.org/a.zip", None),
    ],
)
def test_addresses_are_of_systems_that_only_read(files, system):
    cfg = TokensConfig(kind="hf", context=64, dataset="json", data_files=files)
    if system is None:
        hf_places.check_addresses(cfg)
        return
    for use in (hf_places.check_addresses, hf.check_dataset, hf.identity_of_dataset):
        with pytest.raises(ConfigError, match=f"is an address of {system}, which is not read here"):
            use(cfg)
