"""Activation files as people have them: several, in 8 and 16 bits, empty, changed while they are read."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_file_source import numbered, source

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.transport.file import open_array


def opened(path, key=None):
    return open_array(str(path), key)


@pytest.fixture
def folder(tmp_path):
    """Three files of rows numbered from 0 on, one of them empty."""
    rows = numbered(100)
    np.save(tmp_path / "b.npy", rows[40:])
    save_file({"rows": torch.from_numpy(rows[:40])}, tmp_path / "a.safetensors")
    np.save(tmp_path / "c.npy", rows[:0])
    (tmp_path / "meta.json").write_text("{}")
    return tmp_path


def test_a_folder_and_a_pattern_are_read_as_one_array(folder):
    array = opened(folder)
    assert array.shape == (100, 3) and torch.equal(array[:], torch.from_numpy(numbered(100)))
    assert array[38:43][:, 0].tolist() == [38, 39, 40, 41, 42]
    assert array.where(41) == f"row 1 of {folder / 'b.npy'}"
    assert opened(folder / "?.npy").shape == (60, 3)
    chunk = next(source(array).open(1, None))
    assert torch.equal(chunk.rows_RD[:, 0].long(), chunk.ids_R)


def test_many_files(tmp_path):
    for number in range(300):
        np.save(tmp_path / f"{number:03d}.npy", np.full((2, 3), number, np.float32))
    array = opened(tmp_path)
    assert array.shape == (600, 3) and array[599:][0, 0] == 299


@pytest.mark.parametrize(
    "more, says",
    [
        (
            np.zeros((4, 5), np.float32),
            "d.npy holds float32 of width 5, and a.safetensors float32 of width 3",
        ),
        (np.zeros((4, 3), np.float16), "d.npy holds float16 of width 3, and a.safetensors float32"),
        (np.zeros(4, np.float32), r"d.npy holds float32 of shape \[4\]; it must be"),
    ],
)
def test_files_of_other_shapes_are_named(folder, more, says):
    np.save(folder / "d.npy", more)
    with pytest.raises(ConfigError, match=says):
        opened(folder)


def test_what_cannot_be_read_says_how_it_can(tmp_path):
    torch.save(torch.zeros(4, 3), tmp_path / "a.pt")
    for path in (tmp_path, tmp_path / "a.pt"):
        with pytest.raises(ConfigError, match="a.pt is a pickle.*convert it once: safetensors") as refusal:
            opened(path)
        assert "\n" not in str(refusal.value)
    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.int8))
    with pytest.raises(ConfigError, match="holds int8 without a scale; store both"):
        opened(tmp_path / "a.npy")
    with pytest.raises(ConfigError, match="x-.* matches no file"):
        opened(tmp_path / "x-*.npy")
    np.save(tmp_path / "a.npy", np.zeros((0, 3), np.float32))
    with pytest.raises(ConfigError, match=r"has no rows: a.npy has shape \[0, 3\]"):
        opened(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (1, 4), (4,)])
@pytest.mark.parametrize("name", ["scale", "rows_scale", "rows.scale"])
def test_eight_bits_and_a_scale(tmp_path, shape, name):
    rows = torch.arange(-12, 12, dtype=torch.int8).reshape(6, 4)
    scale = torch.rand(shape) + 0.5
    save_file({"rows": rows, name: scale}, tmp_path / "a.safetensors")
    as_rows = scale.reshape(-1, 1) if shape == (6,) else scale
    assert torch.equal(opened(tmp_path)[1:4], (rows.float() * as_rows)[1:4])


def test_sixteen_bits_and_a_scale(tmp_path):
    rows = torch.randn(6, 4).bfloat16()
    save_file({"acts": rows}, tmp_path / "plain.safetensors")
    plain = opened(tmp_path / "plain.safetensors")
    assert plain[2:].dtype == torch.bfloat16 and torch.equal(plain[2:], rows[2:])
    save_file({"acts": rows, "acts_scale": torch.tensor(2.0)}, tmp_path / "scaled.safetensors")
    assert torch.equal(opened(tmp_path / "scaled.safetensors")[:], rows.float() * 2)


def test_a_scale_that_does_not_fit(tmp_path):
    save_file(
        {"rows": torch.zeros(6, 4, dtype=torch.int8), "scale": torch.ones(5)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ConfigError, match=r"the scale has shape \[5\], and the rows \[6, 4\]"):
        opened(tmp_path)
    save_file({"rows": torch.zeros(6, 4, dtype=torch.int8)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="holds int8 without a scale; add a tensor scale"):
        opened(tmp_path)


def test_rows_stored_by_columns(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(24, dtype=np.float32).reshape(6, 4)))
    assert opened(tmp_path)[2:3].tolist() == [[8, 9, 10, 11]]


def test_a_file_that_changes_in_the_run_is_named(folder):
    array = opened(folder)
    np.save(folder / "b.npy", numbered(10))
    with pytest.raises(DataError, match="b.npy was changed since the run began"):
        array[30:50]
    (folder / "b.npy").unlink()
    with pytest.raises(DataError, match="b.npy cannot be read"):
        array[30:50]


def test_rows_of_outlying_norm_are_replaced_and_counted():
    array = torch.randn(640, 8)
    array[[3, 200, 201]] *= 1e4
    plain, filtered = (source(array, rows=64, max_norm_multiple=each) for each in (None, 10.0))
    found = [
        [chunk for lane in range(4) for chunk, _ in zip(each.open(lane, None), range(2), strict=False)]
        for each in (plain, filtered)
    ]
    assert max(chunk.rows_RD.norm(dim=1).max() for chunk in found[0]) > 1e3
    assert max(chunk.rows_RD.norm(dim=1).max() for chunk in found[1]) < 1e2
    assert sum(chunk.excluded for chunk in found[1]) == sum(chunk.repeated for chunk in found[1]) == 3
    for one, other in zip(*found, strict=True):
        kept = torch.isin(one.ids_R, other.ids_R)
        assert len(other.rows_RD) == 64 and torch.equal(one.ids_R[kept], other.ids_R[: int(kept.sum())])
        assert torch.equal(array[other.ids_R], other.rows_RD)


def test_rows_that_are_mostly_zeros_have_no_outliers():
    array = torch.zeros(640, 8)
    array[::9] = 1
    chunk = next(source(array, rows=64, max_norm_multiple=10.0).open(0, None))
    assert chunk.excluded == 0 and chunk.rows_RD.any()


def test_a_pass_leaves_no_chunk_out():
    training = source(torch.from_numpy(numbered(60_000 // 8)), lanes=48, rows=1024)
    chunks = len(training.places)
    assert chunks % 48, "or nothing would be left over"
    lanes = [training.open(lane, None) for lane in range(48)]
    seen = [next(lanes[number % 48]).ids_R[0].item() for number in range(2 * chunks)]
    assert len(set(seen[:chunks])) == chunks and sorted(seen[:chunks]) == sorted(seen[chunks:])
    assert training.passes(2 * chunks * training.rows) == 2


def test_passes_that_the_lanes_divide_have_the_order_they_always_had():
    training = source(torch.from_numpy(numbered(4 * 16 * 10)))
    training.places = training.places[: len(training.places) // 4 * 4]
    drawn = [np.random.Philox(seed=[0, epoch]).random_raw(len(training.places)) for epoch in (0, 1)]
    expected = np.concatenate([training.places[np.argsort(each, kind="stable")] for each in drawn])
    for lane in range(4):
        chunks = training.open(lane, None)
        found = [next(chunks).ids_R[0].item() // 16 for _ in range(len(expected) // 4)]
        assert found == expected[lane::4].tolist()
