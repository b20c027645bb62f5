"""What files that last look like to others."""

import errno
import os
import resource

import pytest
import torch
from safetensors.torch import load_file

from sae_dist.commands import main
from sae_dist.core.files import in_words, remove_temporaries, replacing, write_json, write_tensors, write_text
from sae_dist.core.owner import claim


def test_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path):
    """A dictionary in a folder of a team is the team's; the library alone would write mode 600."""
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"format": "pt"})
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["a.safetensors"] == modes["a.json"]
    assert modes.keys() == {"a.safetensors", "a.json"}, "nothing temporary is left"
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old", synced=True)
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("No space left on device")
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"], "nothing temporary is left"


def test_no_folder_is_one_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "a.txt", "")


def test_what_dead_processes_left_half_written_goes_with_the_next_owner(tmp_path):
    (tmp_path / "checkpoints" / ".step_1.ab.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_1.ab.tmp" / "rows.safetensors").write_bytes(b"half")
    for name in (
        ".metrics.jsonl.77.tmp",
        ".owner-ab.tmp",
        "export/.tmpAb12Cd",
        "export/.sae_weights.safetensors.tmp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    kept = ["notes.tmp", ".hidden", "export/cfg.json"]
    for name in kept:
        (tmp_path / name).write_text("whole")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    (tmp_path.parent / ".of_another.tmp").write_text("")
    with pytest.raises(OSError), replacing(tmp_path / "a.txt") as temporary:
        assert temporary.name.startswith(".") and temporary.name.endswith(".tmp")
        raise OSError
    claim(tmp_path, "trained").release()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(kept) and (tmp_path.parent / ".of_another.tmp").exists()
    remove_temporaries(tmp_path / "gone")


def test_who_cannot_clear_away_does_not_own(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("sae_dist.core.owner.remove_temporaries", fails)
    with pytest.raises(OSError):
        claim(tmp_path, "trained")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_library_is_the_systems_and_names_the_file(tmp_path):
    """A limit on the size of files, met by Rust's writes; its own error class says nothing of that."""
    path = tmp_path / "a.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for write in (
            lambda: write_tensors(path, {"x": torch.zeros(1 << 20)}),
            lambda: write_text(path, "x" * 9999),
        ):
            with pytest.raises(OSError) as failure:
                write()
            assert (
                failure.value.errno == errno.EFBIG and in_words(failure.value) == f"File too large ({path})"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name,said", [("EIO", "look at the disk"), ("EDQUOT", "make room"), ("EROFS", "writable")]
)
def test_an_error_of_the_system_is_a_line_that_says_what_to_do(name, said, capsys, monkeypatch):
    number = getattr(errno, name)

    def fails(_):
        raise OSError(number, os.strerror(number), "metrics.jsonl")

    monkeypatch.setattr(main, "dispatch", fails)
    assert main.main([]) == 1
    line = capsys.readouterr().err
    assert (
        line.count("\n") == 1 and "metrics.jsonl: " in line and said in line and os.strerror(number) in line
    )
    assert ("free" in line, "make room" in line) == (False, name == "EDQUOT")
