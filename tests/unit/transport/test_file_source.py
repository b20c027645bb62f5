"""Activations from a file: mapped, dealt out to lanes, held-out rows apart, bad files refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.transport.file import FileChunkSource, open_array


def numbered(rows: int, width: int = 3) -> np.ndarray:
    return np.arange(rows, dtype=np.float32)[:, None].repeat(width, 1)


def source(array, *, lanes=4, rows=16, held_out=False, seed=0, max_norm_multiple=None):
    return FileChunkSource(
        array,
        lanes=lanes,
        rows=rows,
        seed=seed,
        held_out=held_out,
        dtype=torch.float32,
        max_norm_multiple=max_norm_multiple,
    )


def ids_of(chunks, count):
    return torch.cat([next(chunks).ids_R for _ in range(count)])


def test_npy_and_safetensors_are_mapped_alike(tmp_path):
    array = numbered(640)
    np.save(tmp_path / "a.npy", array)
    save_file({"x": torch.from_numpy(array), "y": torch.zeros(2)}, tmp_path / "a.safetensors")
    one, two = open_array(str(tmp_path / "a.npy"), None), open_array(str(tmp_path / "a.safetensors"), "x")
    assert torch.equal(one[:], two[:])
    chunk = next(source(one).open(2, None))
    assert chunk.rows_RD.shape == (16, 3)
    assert torch.equal(chunk.rows_RD[:, 0].long(), chunk.ids_R)


def test_lanes_and_held_out_chunks_share_out_the_rows():
    array = torch.from_numpy(numbered(4 * 16 * 10))
    training = source(array)
    per_lane = len(training.places) // 4
    lanes = [ids_of(training.open(lane, None), per_lane) for lane in range(4)]
    held_out = torch.cat([chunk.ids_R for chunk in source(array, held_out=True).open(0, None)])
    everything = torch.cat([*lanes, held_out])
    assert len(everything.unique()) == len(everything)
    assert len(everything) > 0.9 * len(array)
    assert 0 < len(held_out) < 0.3 * len(array)


def test_reopening_and_epochs():
    training = source(torch.from_numpy(numbered(1000)))
    per_lane = len(training.places) // 4
    chunks = training.open(1, None)
    seen = [next(chunks) for _ in range(3 * per_lane)]
    for index in (0, 1, per_lane, 2 * per_lane + 1):
        again = next(training.open(1, seen[index].start))
        assert again.number == seen[index].number == index * 4 + 1
        assert torch.equal(again.ids_R, seen[index].ids_R)
    epochs = [torch.cat([c.ids_R for c in seen[e * per_lane : (e + 1) * per_lane]]) for e in range(2)]
    assert not torch.equal(*epochs)


@pytest.mark.parametrize(
    "write,match",
    [
        (lambda p: None, "does not exist"),
        (lambda p: np.save(p, np.zeros((2, 3, 4), dtype=np.float32)), r"shape \[2, 3, 4\].*\[N, D\]"),
        (lambda p: np.save(p, np.zeros((20, 3), dtype=np.int64)), "int64"),
        (lambda p: np.save(p, np.full((20, 3), np.nan, dtype=np.float32)), "NaN or inf in row 0"),
        (lambda p: p.write_bytes(b"not numpy"), "not a readable"),
    ],
)
def test_bad_npy(tmp_path, write, match):
    path = tmp_path / "a.npy"
    write(path)
    with pytest.raises(ConfigError, match=match):
        open_array(str(path), None)


def test_bad_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(64, 4), "y": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="activations.key=None is not in .* it holds x, y"):
        open_array(str(path), None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not fully covered"):
        open_array(str(path), "x")
    path.write_bytes(json.dumps({"no": "header"}).encode())
    with pytest.raises(ConfigError, match="not a readable"):
        open_array(str(path), "x")


def test_nan_that_the_sample_missed_is_found_when_read(tmp_path):
    array = numbered(20000)
    array[4001] = np.inf
    np.save(tmp_path / "a.npy", array)
    training = source(open_array(str(tmp_path / "a.npy"), None), rows=64)
    with pytest.raises(DataError, match="row 4001"):
        for lane in range(4):
            ids_of(training.open(lane, None), len(training.places) // 4)


def test_too_few_rows_for_the_lanes():
    with pytest.raises(ConfigError, match="at least 8 rows or fewer lanes"):
        source(torch.zeros(7, 3))
