"""Damage of exports is found: bits that turn over, and weights that are no floating-point numbers."""

import json
import os
import shutil
import subprocess
import time
from math import prod

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae_dist as sd
from sae_dist.core.errors import ConfigError
from sae_dist.export.formats import FORMATS
from sae_dist.export.importing import Imported
from sae_dist.export.saelens import export_saelens, load_exported
from sae_dist.train.warm import check_start
from tests.helpers.dictionaries import D, F, random_sae
from tests.helpers.flips import KINDS, missed
from tests.unit.config.test_config_rules import resolved
from tests.unit.export.test_export_formats import make

WEIGHTS, LISTED = "sae_weights.safetensors", "sae_weights.safetensors.sha256"


@pytest.mark.parametrize("name", KINDS)
def test_a_bit_that_turns_over_is_found(tmp_path, name):
    assert missed(name, 12, tmp_path) == []


@pytest.mark.parametrize("file", [WEIGHTS, "cfg.json", LISTED])
def test_who_looks(tmp_path, file):
    export_saelens(tmp_path, random_sae("topk"))
    at = (tmp_path / file).stat().st_size // 2
    with open(tmp_path / file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    wrong = "is not what was written|is not a list of checksums"
    for read in (load_exported, sd.load, lambda folder: Imported.read(folder, None)):
        with pytest.raises(ConfigError, match=wrong):
            read(tmp_path)
    with pytest.raises(ConfigError, match=wrong):
        check_start(resolved(), str(tmp_path), D)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_a_list_is_one_that_others_read(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    done = subprocess.run(["sha256sum", "-c", LISTED], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{WEIGHTS}: OK\ncfg.json: OK\n"
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        Imported.read(tmp_path, "saelens")


def test_what_was_changed_on_purpose_is_read_without_the_list(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"k": 3}))
    with pytest.raises(ConfigError, match=f"remove {LISTED} if it was changed on purpose"):
        load_exported(tmp_path)
    (tmp_path / LISTED).unlink()
    assert load_exported(tmp_path).k == 3


def test_an_export_that_is_written_again_is_not_taken_for_damaged(tmp_path):
    for kind in ("topk", "relu"):
        export_saelens(tmp_path, random_sae(kind))
        assert load_exported(tmp_path).kind == kind
    (tmp_path / LISTED).write_text("0" * 64 + f"  {WEIGHTS}\n")
    export_saelens(tmp_path, random_sae("topk"))
    assert load_exported(tmp_path).kind == "topk"


def test_opening_what_is_large_takes_no_time(tmp_path):
    """8 GiB of zeros that are on no disk, and a list that does not fit them: only `verify` looks."""
    F, D = 1 << 18, 4096
    export_saelens(tmp_path, random_sae("topk"))
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"d_in": D, "d_sae": F}))
    header, end = {}, 0
    for name, shape in {"W_enc": [D, F], "W_dec": [F, D], "b_enc": [F], "b_dec": [D]}.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * prod(shape)]}
        end += 4 * prod(shape)
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(tmp_path / WEIGHTS, 8 + len(text) + end)
    begin = time.process_time()
    assert sd.load(tmp_path).num_latents == F and time.process_time() - begin < 1
    os.truncate(tmp_path / WEIGHTS, 9 + len(text) + end)
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        sd.load(tmp_path)


def _changed(folder, change):
    """Change the weights in a folder, as whoever writes no list."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    (folder / LISTED).unlink()


NO_NUMBERS = {
    "NaN in the encoder": (
        lambda w: w["W_enc"][3].fill_(float("nan")),
        "W_enc has NaN or inf, first in row 0",
    ),
    "one NaN": (lambda w: w["W_dec"][7].fill_(float("nan")), "W_dec has NaN or inf, first in row 7"),
    "inf": (lambda w: w["b_dec"][1:2].fill_(float("inf")), "b_dec has NaN or inf, first in row 1"),
    "complex": (lambda w: w.update(W_enc=w["W_enc"].to(torch.complex64)), "W_enc holds complex64, and must"),
    "bool": (lambda w: w.update(b_enc=w["b_enc"] > 0), "b_enc holds bool, and must hold floating-point"),
    "int": (lambda w: w.update(W_dec=w["W_dec"].to(torch.int8)), "W_dec holds int8, and must hold"),
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_weights_are_numbers(tmp_path, what):
    change, says = NO_NUMBERS[what]
    export_saelens(tmp_path, random_sae("topk"))
    _changed(tmp_path, change)
    for read in (load_exported, sd.load, lambda folder: Imported.read(folder, "saelens")):
        with pytest.raises(ConfigError, match=says) as refusal:
            read(tmp_path)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match=says):
        check_start(resolved(), str(tmp_path), D)


def test_weights_of_a_byte_are_numbers_too(tmp_path):
    export_saelens(tmp_path, random_sae("topk"))
    _changed(tmp_path, lambda w: w.update(W_dec=w["W_dec"].to(torch.float8_e4m3fn)))
    assert load_exported(tmp_path).W_dec_FE.dtype == torch.float8_e4m3fn


def test_a_threshold_that_is_never_reached_is_one(tmp_path):
    export_saelens(tmp_path, random_sae("jumprelu"))
    _changed(tmp_path, lambda w: w["threshold"][2:3].fill_(float("inf")))
    assert load_exported(tmp_path).threshold_F[2] == float("inf")


@pytest.mark.parametrize("k", [-1, 0, 1.5, F + 1, 1e30, True, "5", None])
@pytest.mark.parametrize("name", ["saelens", "sparsify"])
def test_k_is_a_number_of_latents(tmp_path, name, k):
    FORMATS[name].write(tmp_path, make("topk"))
    for each in tmp_path.glob("*.sha256"):
        each.unlink()
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"k": k}))
    with pytest.raises(ConfigError, match=r"k=|no key k"):
        Imported.read(tmp_path, name)


def test_more_were_not_selected_than_there_are(tmp_path):
    sae = make("batchtopk")
    sae.metadata["training_k"] = F + 1
    export_saelens(tmp_path, sae)
    with pytest.raises(ConfigError, match=f"training_k={F + 1} is more than the {F} latents"):
        load_exported(tmp_path)
