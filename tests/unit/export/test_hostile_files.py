"""Files made to break their readers, each in one line that names the file, before memory is asked for."""

import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sae_dist.config.run import load_config, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.export.formats import FORMATS
from sae_dist.export.importing import Imported
from sae_dist.transport.array_file import find_arrays
from tests.helpers.dictionaries import D, F, unlisted
from tests.unit.config.test_config_rules import resolved
from tests.unit.export.test_export_formats import make
from tests.unit.export.test_export_scopes import save_scope

MOST_BYTES = 32 << 20
BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg", "gh", "hi")
)


def refused(read, says) -> None:
    tracemalloc.start()
    with pytest.raises(ConfigError, match=says) as refusal:
        read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(refusal.value) and most < MOST_BYTES


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"data_offsets": [-8, 2040]}, "not a readable .safetensors file"),
        ({"data_offsets": [0, 4096]}, "not a readable .safetensors file"),
        ({"shape": [-1, 8]}, "not a readable .safetensors file"),
        ({"shape": [2**62, 8]}, "not a readable .safetensors file"),
        ({"shape": [[64], 8]}, "not a readable .safetensors file"),
        ({"dtype": "F33"}, "not a readable .safetensors file"),
        ({"dtype": ["F32"]}, "not a readable .safetensors file"),
    ],
)
def test_activations_of_safetensors(tmp_path, entry, says):
    path = tmp_path / "a.safetensors"
    save_file({"rows": np.ones((64, 8), np.float32)}, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["rows"] |= entry
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    refused(lambda: find_arrays(str(path), None), says)


def test_a_header_of_many_tensors(tmp_path):
    """A valid one, of a hundred thousand tensors without numbers."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"{number:09d}": entry for number in range(100_000)}).encode()
    for name in ("a.safetensors", "sae_weights.safetensors"):
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text)
    (tmp_path / "cfg.json").write_text("{}")
    del text
    refused(lambda: find_arrays(str(tmp_path / "a.safetensors"), None), "its header would have")
    refused(lambda: Imported.read(tmp_path, "saelens"), "its header would have")


def test_activations_of_npy_that_are_not_there(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((64, 8), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(64, 8), }         ", b"(1099511627776, 8)}"))
    refused(lambda: find_arrays(str(tmp_path / "a.npy"), None), "it needs 35184372088832 bytes")


def archived(path, change) -> None:
    """Write an archive again with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        change(archive, entries)


def packed(archive, entries) -> None:
    for name, data in entries.items():
        archive.writestr(name, data, zipfile.ZIP_DEFLATED)


def with_a_large_pickle(archive, entries) -> None:
    for name, data in entries.items():
        archive.writestr(name, data + b"N" * (2 << 20) if name.endswith("data.pkl") else data)


def with_a_long_name(archive, entries) -> None:
    for name, data in entries.items():
        archive.writestr(name, pickle.dumps({"x" * 100_000: 1}) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("change", [packed, with_a_large_pickle, with_a_long_name])
def test_archives_that_torch_would_unpack(tmp_path, change):
    FORMATS["dictionary_learning"].write(tmp_path, make("relu"))
    unlisted(tmp_path)
    archived(tmp_path / "ae.pt", change)
    refused(lambda: Imported.read(tmp_path, None), "ae.pt is not a file of tensors as torch.save writes it")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(F, D),
        torch.zeros(F, D).to_sparse(),
        torch.empty(F, D, device="meta"),
    ],
    ids=["one number", "sparse", "meta"],
)
def test_tensors_that_have_no_place_for_each_number(tmp_path, tensor):
    FORMATS["dictionary_learning"].write(tmp_path, make("relu"))
    unlisted(tmp_path)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save(state | {"encoder.weight": tensor}, tmp_path / "ae.pt")
    refused(lambda: Imported.read(tmp_path, None), "ae.pt is not a file of tensors")


def test_an_archive_that_unpacks_to_far_more(tmp_path):
    save_scope(tmp_path, make("jumprelu"))
    np.savez_compressed(tmp_path / "params.npz", W_enc=np.zeros(1 << 24, np.float32))
    refused(lambda: Imported.read(tmp_path, None), "would unpack to 67,108,9")


def test_configs_that_stand_for_more_than_there_is_memory(tmp_path):
    save_config(resolved(), tmp_path / "config.yaml")
    with open(tmp_path / "config.yaml", "a") as file:
        file.write(BOMB)
    refused(lambda: load_config(tmp_path / "config.yaml"), "anchors or aliases")
    folder = tmp_path / "set"
    FORMATS["circuit_tracer"].write(folder, make("jumprelu", "transcoder"))
    (unlisted(folder) / "config.yaml").write_text(BOMB)
    refused(lambda: Imported.read(folder, None), "config.yaml is not YAML")
    (folder / "config.yaml").write_text("feature_input_hook: a{0.__class__}{b}")
    assert Imported.read(folder, None).sae.metadata["hook_name"] == "blocks.3.a{0.__class__}{b}"
    for text in ("- " * 5000, "[" * 5000, "a: !!python/object/apply:os.system [true]", "\0"):
        (folder / "config.yaml").write_text(text)
        refused(lambda: Imported.read(folder, None), "config.yaml is not YAML")
