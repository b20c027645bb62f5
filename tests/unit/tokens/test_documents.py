"""Documents of local text: pieces make up the file, and evaluation gets its own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_dist.core.errors import DataError
from sae_dist.tokens.documents import PIECE_BYTES, Document, held_out, pieces, python_documents
from sae_dist.tokens.kept import UnusableDocument

lines = st.lists(st.text(alphabet="ab\u00e9\u4e2d\U0001f600 ", max_size=40), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(lines=lines, ending=st.sampled_from(["\n", ""]), piece_bytes=st.integers(1, 400))
def test_pieces_make_up_the_file(tmp_path_factory, lines, ending, piece_bytes):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    text = "\n".join(lines) + ending
    path.write_bytes(text.encode())
    assert "".join(piece.text() for piece in pieces("a.txt", path, piece_bytes)) == text


def test_a_file_without_line_ends_is_cut_between_characters(tmp_path):
    path = tmp_path / "a.txt"
    text = "\u4e2d\u00e9x" * 20_000
    path.write_bytes(text.encode())
    parts = [piece.text() for piece in pieces("a.txt", path)]
    assert "".join(parts) == text and "\ufffd" not in "".join(parts)
    assert max(len(part.encode()) for part in parts) <= 3 * PIECE_BYTES


def test_bytes_that_are_not_utf8_do_not_stop_the_reader(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\xfe two\n")
    assert "\ufffd" in Document("a.txt", path, 0, path.stat().st_size).text()


def test_python_text_is_large_and_split_by_file():
    documents = python_documents()
    out = [document for document in documents if held_out(document.key)]
    assert 0.05 < len(out) / len(documents) < 0.25
    files = {document.key.split("#")[0] for document in out}
    assert not files & {document.key.split("#")[0] for document in documents if not held_out(document.key)}
    assert sum(document.end - document.start for document in documents) > 5_000_000


@pytest.mark.parametrize("line", ['{"no": 1}', "not json", '{"text": 3}', "[1]"])
def test_a_bad_line_of_jsonl_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    first = json.dumps({"text": "fine"}) + "\n"
    path.write_text(first + line + "\n")
    document = Document("a", path, len(first), path.stat().st_size)
    with pytest.raises(UnusableDocument, match='is not an object with a "text"'):
        document.text()
    assert document.where() == f"{path}, line 2"


def test_a_file_that_went_away_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.txt cannot be read"):
        Document("a", tmp_path / "gone.txt", 0, 10).text()
