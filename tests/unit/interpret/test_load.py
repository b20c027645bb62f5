"""What can be opened: runs, exports, other libraries' folders, repositories; mapped, not read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sae_dist as sd
from sae_dist.config.run import save_config
from sae_dist.core.errors import ConfigError
from sae_dist.export.formats import FORMATS, check_format
from sae_dist.export.saelens import export_firing_rates, export_saelens
from tests.helpers.dictionaries import FORMS, KINDS, D, F, random_sae
from tests.unit.config.test_config_rules import resolved
from tests.unit.export.test_export_formats import make

HEADER = 8


def rows():
    return torch.randn(32, D, generator=torch.Generator().manual_seed(1))


def same(one, other, atol=1e-5):
    x = rows()
    assert torch.allclose(one.encode(x).dense(), other.encode(x).dense(), atol=atol)
    assert torch.allclose(one(x), other(x), atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_opened_as_the_dictionary_that_was_exported(kind, form, tmp_path):
    sae = random_sae(kind, form)
    export_saelens(tmp_path, sae)
    d = sd.load(tmp_path)
    same(d, sd.Dictionary(sae, d.place))
    assert d.hook == "h" and d.rate is None and d.cfg["d_sae"] == F and d.is_transcoder == sae.transcoder


@pytest.mark.parametrize("name", ["sparsify", "dictionary_learning"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_libraries_formats_are_opened(kind, name, tmp_path):
    sae = random_sae(kind, out=D)
    try:
        check_format(name, sae)
    except ConfigError:
        pytest.skip("this format has no such kind")
    FORMATS[name].write(tmp_path, sae)
    d = sd.load(tmp_path)
    same(d, sd.Dictionary(sae, d.place))


def test_device_and_dtype_are_chosen(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    d = sd.load(tmp_path, dtype=torch.float64)
    assert d.dtype == torch.float64 and d.encode(rows()).values.dtype == torch.float64
    assert sd.load(tmp_path, device="meta").device.type == "meta"


def test_rates_are_those_beside_the_weights(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    rates = torch.linspace(0, 1, F)
    export_firing_rates(tmp_path, rates)
    assert torch.allclose(sd.load(tmp_path).rate, rates, atol=1e-6)
    os.utime(tmp_path / "sparsity.safetensors", (0, 0))  # of an earlier export
    assert sd.load(tmp_path).rate is None
    export_firing_rates(tmp_path, rates[:-1])
    assert sd.load(tmp_path).rate is None


def test_nothing_that_is_done_to_weights_reaches_the_file(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    before = (tmp_path / "sae_weights.safetensors").read_bytes()
    d = sd.load(tmp_path)
    d.W_dec.zero_()
    d.W_enc.zero_()
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == before


LARGE = """
import sys, time
import torch
import sae_dist as sd
import sae_dist.interpret.load

def held():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

before, begin = held(), time.process_time()
d = sd.load(sys.argv[1])
took = time.process_time() - begin
assert d.num_latents == 5_000_000 and float(d.W_dec[4_999_999].sum()) == 0
print((held() - before) // 1024, took)
"""


def large(folder: Path, kind: str) -> Path:
    """An export of 10 GB, all holes: it takes no room on the disk."""
    width, latents = 256, 5_000_000
    shapes = {"W_enc": [width, latents], "W_dec": [latents, width], "b_dec": [width], "b_enc": [latents]}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER)
    with open(folder / "sae_weights.safetensors", "wb") as file:
        file.write(len(text).to_bytes(HEADER, "little") + text)
        file.truncate(HEADER + len(text) + offset)
    config = {"architecture": kind, "d_in": width, "d_sae": latents, "k": 32, "metadata": {}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_ten_gigabytes_are_opened_within_a_second_and_200_megabytes(tmp_path):
    """By two processes at once."""
    folder = large(tmp_path, "topk")
    command = [sys.executable, "-c", LARGE, str(folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        out, _ = each.communicate(timeout=120)
        assert each.returncode == 0
        megabytes, seconds = out.split()
        assert int(megabytes) < 200 and float(seconds) < 1


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, time; begin = time.process_time(); import sae_dist as sd; "
        "took = time.process_time() - begin; "
        "assert not {'torch', 'numpy', 'transformers', 'omegaconf'} & set(sys.modules); dir(sd); "
        "sd.clamp; print(took)"
    )
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(took) < 0.05


def test_every_public_name_is_there():
    for name in sd.__all__:
        assert getattr(sd, name) is not None and name in dir(sd)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sd.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "nowhere does not exist; give a run folder, an export"),
        ("/nowhere/at/all", "does not exist"),
        ("organisation/name", "HF_HUB_OFFLINE is set"),
        ("organisation/name/../../etc", "does not exist"),
        ("", "contains none of"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=message) as error:
        sd.load(where)
    assert "\n" not in str(error.value) and time.monotonic() - begin < 20


def hostile(folder: Path, what: str) -> None:
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    said = json.loads(config.read_text())
    if what == "weights cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif what == "weights of no tensors":
        weights.write_bytes(b"\xff" * 64)
    elif what == "config cut":
        config.write_text(config.read_text()[:20])
    elif what == "config of a list":
        config.write_text("[1]")
    elif what == "more latents":
        config.write_text(json.dumps(said | {"d_sae": 10**12}))
    elif what == "a k that is no number":
        config.write_text(json.dumps(said | {"k": "32"}))
    elif what == "k above all":
        config.write_text(json.dumps(said | {"k": 10**9}))
    elif what == "a hook that is no text":
        config.write_text(json.dumps(said | {"metadata": {"hook_name": ["rm"]}}))
    elif what == "no weights":
        weights.unlink()
    elif what == "a pickle":
        torch.save({"W_enc": torch.zeros(2)}, weights)


@pytest.mark.parametrize(
    "what",
    [
        "weights cut",
        "weights of no tensors",
        "config cut",
        "config of a list",
        "more latents",
        "a k that is no number",
        "k above all",
        "a hook that is no text",
        "no weights",
        "a pickle",
    ],
)
def test_damaged_files_are_one_line(what, tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    hostile(tmp_path, what)
    with pytest.raises(ConfigError) as error:
        sd.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    """As `--push` lays a repository out: a folder for each format."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    root = tmp_path / "models--me--mine"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    folder = root / "snapshots" / commit / "saelens"
    folder.mkdir(parents=True)
    sae = random_sae("topk")
    export_saelens(folder, sae)
    for where in ("me/mine", "me/mine/saelens", "hf://me/mine"):
        d = sd.load(where)
        same(d, sd.Dictionary(sae, d.place))
    with pytest.raises(ConfigError, match="the repository me/mine has no other"):
        sd.load("me/mine/other")


def test_a_run_with_code_of_its_model_is_not_used_without_it_in_silence(tmp_path):
    (tmp_path / "export").mkdir()
    FORMATS["saelens"].write(tmp_path / "export", make("topk"))
    cfg = resolved()
    cfg.llm.trust_remote_code = True
    save_config(cfg, tmp_path / "config.yaml")
    for where in (tmp_path, tmp_path / "export"):
        d = sd.load(where)
        with pytest.raises(ConfigError, match="brings along; if you trust it, say so again"):
            sd.model(d)
    cfg.llm.trust_remote_code = False
    save_config(cfg, tmp_path / "config.yaml")
    assert not sd.load(tmp_path).place.own_code
