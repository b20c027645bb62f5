"""What files that last look like to others."""

import torch
from safetensors.torch import load_file

from sae_dist.core.files import write_json
from sae_dist.core.tensors import write_tensors


def test_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path):
    """A dictionary in a folder of a team is the team's; the library alone would write mode 600."""
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"format": "pt"})
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["a.safetensors"] == modes["a.json"]
    assert modes.keys() == {"a.safetensors", "a.json"}, "nothing temporary is left"
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]
