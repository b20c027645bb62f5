"""Files of text as people have them: encodings, links, and lines that are no documents."""

import codecs
import json
import os
from itertools import islice

import pytest
from test_tokens_sources import FACTS

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens.source import open_tokens
from sae_dist.tokens.text_files import text_files

GOOD = json.dumps({"text": "a few words of text, in one line"}) + "\n"


def opened(path, *, lanes=1):
    cfg = TokensConfig(kind="text", path=str(path), context=64)
    return open_tokens(cfg, FACTS, lanes=lanes, seed=0, rows=20, held_out=False)


def names(root):
    return [file.relative_to(root).as_posix() for file in text_files(root, "tokens.path=x")]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("b.txt", codecs.BOM_UTF16_LE + "text".encode("utf-16-le"), "is UTF-16; convert it to UTF-8"),
        ("b.txt", codecs.BOM_UTF32_LE + "text".encode("utf-32-le"), "is UTF-32"),
        ("b.txt", "text".encode("utf-16-le"), "is not text"),
        ("b.txt", b"caf\xe9 au lait", r"is not UTF-8 \(byte 3: 0xe9\)"),
        ("b.jsonl", b'\n{"body": "x", "n": 1}\n', 'line 2 is not an object with a "text" .*fields: body, n'),
        ("b.jsonl", b"no json\n", 'line 1 is not an object with a "text"'),
        ("b.jsonl", b'{"text": 3}\n', "line 1 is not an object"),
    ],
)
def test_the_head_of_every_file_is_looked_at(tmp_path, name, content, says):
    (tmp_path / "a.txt").write_text("text\n" * 2000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} {says}"):
        opened(tmp_path)


def test_a_character_cut_by_the_end_of_the_head_is_none_the_worse(tmp_path):
    (tmp_path / "a.txt").write_text("x" + "\u00e9" * 5000)
    assert names(tmp_path) == ["a.txt"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, text in (("a.txt", "word\n" * 3000), ("b.jsonl", GOOD * 50)):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        corpus = opened(tmp_path / name).documents.corpus
        assert corpus.document(0).text()[:4] in ("word", "a fe")


def test_links_are_followed_once(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "b.txt").write_text("b")
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts")
    assert names(tmp_path / "texts") == ["a.txt", "linked/deep/b.txt"]


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".#a.txt").symlink_to("somebody@host")
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "part2").symlink_to("/nowhere/part2")
    with pytest.raises(ConfigError, match="part2 is a link to /nowhere/part2, which is not there"):
        names(tmp_path)


def test_a_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("word\n" * 3000)
    assert next(opened(tmp_path).open(0, None)).keep_NS.any()


@pytest.mark.parametrize(
    "bad", ["no json", '{"body": "x"}', '{"text": null}', '{"text": [1]}', '{"text": "x']
)
def test_a_bad_line_is_left_out_counted_and_named(tmp_path, capsys, bad):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 30 + bad + "\n" + GOOD * 20)
    source = opened(path)
    source.epochs = 3
    chunks = list(source.open(0, None))
    assert 2 <= sum(chunk.left_out.get("documents", 0) for chunk in chunks) <= 3
    assert f"left out: {path}, line 31 is not an object" in capsys.readouterr().err
    again = list(source.open(0, chunks[3].start))
    assert [chunk.left_out for chunk in again] == [chunk.left_out for chunk in chunks[3:]]


def test_many_bad_lines_end_the_run(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD * 10 + "broken\n" * 60)
    with pytest.raises(DataError, match=r"\d+ of \d+ documents of lane 0 cannot be used, .*a.jsonl, line"):
        list(islice(opened(path).open(0, None), 200))
    assert capsys.readouterr().err.count("left out: ") == 8


def test_half_of_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d half, \\ud83d\\ude00 whole, \\u0000"}\n' * 50)
    source = opened(path)
    ids = source.documents.corpus.read(0).ids_T
    text = source.documents.corpus.encoder.tokenizer.decode(ids)
    assert text == "\ufffd half, \U0001f600 whole, \0"


def test_a_file_that_shrinks_in_the_run_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word\n" * 20000)
    chunks = opened(path).open(0, None)
    next(chunks)
    path.write_text("word\n" * 10)
    with pytest.raises(DataError, match="a.txt was changed since the run began: it has 50 bytes"):
        list(islice(chunks, 2000))


def test_where_links_lead_out_of_a_folder_is_said(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.txt").write_text("private")
    theirs = tmp_path / "theirs"
    (theirs / "own" / "deep").mkdir(parents=True)
    (theirs / "own" / "deep" / "a.txt").write_text("a text")
    (theirs / "own" / "out").symlink_to(tmp_path / "mine")
    (theirs / "b.txt").symlink_to(tmp_path / "mine" / "private.txt")
    (theirs / "c.txt").symlink_to("own/deep/a.txt")
    assert len(text_files(theirs, "tokens.path=x")) == 4 and not capsys.readouterr().err
    text_files(theirs, "tokens.path=x", say_links=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"tokens.path=x: {theirs}/{link} is a link: text is read from {tmp_path}/mine{file}"
        for link, file in (("b.txt", "/private.txt"), ("own/out", ""))
    ]


def test_folders_that_link_to_one_another_are_refused_soon(tmp_path):
    for folder in range(10):
        (tmp_path / f"f{folder}").mkdir()
        for other in range(10):
            (tmp_path / f"f{folder}" / f"to{other}").symlink_to(tmp_path / f"f{other}")
    with pytest.raises(ConfigError, match="links lead to .* more than 100 times; remove some"):
        text_files(tmp_path, "tokens.path=x")
