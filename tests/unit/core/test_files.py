"""What files that last look like to others."""

import pytest
import torch
from safetensors.torch import load_file

from sae_dist.core.files import replacing, write_json, write_tensors, write_text


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
