"""The manifest of an atlas and the progress of its pass: read as written, refused in a line if damaged."""

import json

import pytest

from sae_dist.atlas.manifest import SEAL, Manifest, read_manifest, sealed_json
from sae_dist.atlas.progress import Done
from sae_dist.core.errors import ConfigError

TEXTS = dict.fromkeys("kind model hook dictionary text lens".split(), "x")
NUMBERS = dict.fromkeys("num_latents tokens documents kept left_out outliers postings".split(), 7)
NUMBERS |= dict.fromkeys("silent too_rare top bins each few".split(), 3)
WHOLE = Manifest(
    version=1,
    k=32,
    target_hook=None,
    context=None,
    effects=None,
    near=None,
    files={"tokens.parquet": "ab"},
    footers={},
    **TEXTS,
    **NUMBERS,
)
START = {"chunk": 3, "epoch": 0, "document": 5, "offset": 17}


def test_what_is_written_is_read(tmp_path):
    WHOLE.write(tmp_path)
    assert read_manifest(tmp_path) == WHOLE
    assert Done.of(tmp_path) == Done()
    done = Done(4, {0: START, 11: START}, True)
    done.write(tmp_path)
    assert Done.of(tmp_path) == done


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"tokens": -1}, "tokens=-1"),
        ({"tokens": "7"}, "tokens"),
        ({"tokens": 2**80}, "tokens"),
        ({"hook": None}, "hook"),
        ({"more": 1}, "keys"),
        ({"files": {"../x": "ab"}}, "files"),
        ({"files": {"/etc/passwd": "ab"}}, "files"),
        ({"files": {"x": 3}}, "files"),
        ({"files": []}, "files"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, change, said):
    WHOLE.write(tmp_path)
    path = tmp_path / "atlas.json"
    values = json.loads(path.read_text()) | change
    path.write_text(sealed_json({key: each for key, each in values.items() if key != SEAL}))
    with pytest.raises(ConfigError, match=said) as caught:
        read_manifest(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"windows": -1},
        {"windows": True},
        {"windows": "1"},
        {"starts": []},
        {"starts": {"x": START}},
        {"starts": {"1": {"chunk": 1}}},
        {"starts": {"1": START | {"offset": -1}}},
        {"over": 1},
    ],
)
def test_damaged_progress_is_named(tmp_path, change):
    Done(4, {0: START}, False).write(tmp_path)
    path = tmp_path / "work" / "done.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match="done.json is damaged"):
        Done.of(tmp_path)


def test_an_atlas_that_is_not_there_or_not_complete_is_told_how_it_comes_about(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; sae-dist atlas .* makes it"):
        read_manifest(tmp_path / "run" / "atlas")
    with pytest.raises(ConfigError, match="unfinished: go on with resume=auto"):
        read_manifest(tmp_path)
