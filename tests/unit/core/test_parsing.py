"""The door for what files say: bounds hold before anything is made, errors become one line."""

import io
import json
import os
import threading
import time

import numpy as np
import pytest

from sae_dist.core.claims import content_of
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.files import read_json
from sae_dist.core.npy import npy_array, npy_header
from sae_dist.core.parsing import check_header, parse_json, read_bounded, reading
from sae_dist.core.sums import OPEN, checksum, is_sealed, sealed
from sae_dist.core.typed import of_type
from sae_dist.metrics.jsonl import read_rows


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 70,
        "[" * 65 + "]" * 65,
        '{"a": 1, "a": 2}',
        "1" * 5000,
        "",
        "\ud800",
        b"\xff",
        "'",
    ],
)
def test_json_that_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text, unique=True)


def test_json_that_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": "[[[["}') == {"a": "[[[["}
    assert parse_json("[" * 64 + "]" * 64)
    rows = [{"a": ["[" * 80, '"' * 3]}] * 100
    assert parse_json(json.dumps(rows)) == rows


@pytest.mark.parametrize("text", ['"' + '\\"' * 500_000, '["' * 300_000, '\\"[' * 300_000, "[]" * 500_000])
def test_the_depth_of_a_text_is_found_in_one_pass(text):
    begin = time.process_time()
    with pytest.raises(ValueError):
        parse_json(text + "[" * 70)
    assert time.process_time() - begin < 2


def test_files_have_a_size(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_bounded(tmp_path / "a", 100) == b"x" * 100
    with pytest.raises(ValueError, match="more than 0 MiB"):
        read_bounded(tmp_path / "a", 99)


@pytest.mark.parametrize(
    "error",
    [RecursionError(), MemoryError(), KeyError("a"), OverflowError("big\nlines"), OSError(5, "bad disk")],
)
def test_errors_of_parsers_become_a_line(error):
    with pytest.raises(ConfigError) as refusal, reading("x.json", "is not {} ({reason})"):
        raise error
    assert str(refusal.value).startswith("x.json is not {} (") and "\n" not in str(refusal.value)


def test_errors_of_the_program_are_passed_on():
    for error in (DataError("said"), AssertionError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading("x.json", "is not ({reason})"):
            raise error


def saved(array, version=None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", ">i4", "?"])
def test_arrays_are_those_of_numpy(version, dtype):
    for array in (np.ones((3, 4), dtype), np.asfortranarray(np.ones((3, 4), dtype)), np.zeros((0, 4), dtype)):
        assert np.array_equal(npy_array(saved(array, version)), array)


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode("latin1") + data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not begin"),
        (saved([object()]), "Python objects"),
        (saved(np.zeros(2, "f4,f4")), "records"),
        (saved(np.ones(4))[:-1], "needs 32 bytes for shape"),
        (
            header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
            "needs 8000000000000",
        ),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4)}"), "its shape is"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}"), "its shape is"),
        (header("{'descr': '<f8', 'fortran_order': 0, 'shape': ()}"), "neither True nor False"),
        (header("{'descr': '<f8', 'shape': ()}"), "header is damaged"),
        (header("(" * 5000), "header is damaged"),
        (header("{'descr': '<f8'" + "\0"), "header is damaged"),
        (header("{'descr': __import__('os'), 'fortran_order': 0, 'shape': ()}"), "header is damaged"),
        (header("x" * 20_000), "has 20000 bytes"),
    ],
)
def test_arrays_that_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        npy_header(io.BytesIO(data), len(data))


def test_a_text_has_its_own_checksum():
    text = sealed(json.dumps({"sha256": OPEN, "a": 1}))
    digest = json.loads(text)["sha256"]
    assert digest != OPEN and is_sealed(text, digest)
    assert not is_sealed(text.replace("1", "2"), digest) and not is_sealed(text, None)
    assert not is_sealed(text + digest, digest) and not is_sealed(text, OPEN)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, 1, True),
        (int | None, None, 1.0),
        (tuple[int, ...], (1, 2), (1, "2")),
        (tuple[str, str], ("a", "b"), ("a",)),
        (dict[str, int], {"a": 1}, {"a": None}),
        (bool, True, 1),
    ],
)
def test_values_are_of_the_type_of_their_field(hint, good, bad):
    assert of_type(hint, good) and not of_type(hint, bad)


@pytest.mark.parametrize(
    "read", [read_bounded, checksum, check_header, read_rows, lambda path: content_of(path.parent, 1)]
)
def test_a_pipe_in_a_folder_is_not_waited_for(read, tmp_path):
    path = tmp_path / ".owner.1"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is a pipe or a device, and no file; remove it"):
        read(path)


def test_a_pipe_that_a_person_names_is_read(tmp_path):
    path = tmp_path / "prompts"
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_text("one\ntwo\n")).start()
    assert read_bounded(path, pipes=True) == b"one\ntwo\n"


@pytest.mark.parametrize("number", ["1" + "0" * 101, "-1e101", "[0, [1e300]]"])
def test_no_number_is_beyond_what_is_measured(number, tmp_path):
    (tmp_path / "summary.json").write_text(f'{{"fvu": {number}}}')
    with pytest.raises(ConfigError, match="it has a number of more than 1e\\+100"):
        read_json(tmp_path / "summary.json")
    rows = tmp_path / "metrics.jsonl"
    rows.write_text(f'{{"step": 1, "tokens": 2, "loss/fvu": {number}}}\n{{"step": 2, "tokens": 4}}\n')
    assert [row["step"] for row in read_rows(rows)] == [2]
