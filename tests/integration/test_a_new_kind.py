"""CONTRIBUTING's "A new kind of dictionary", followed to the letter in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from sae_dist.checkpoint.read import load_full, newest
from sae_dist.export.saelens import load_exported

ROOT = Path(__file__).parents[2]
FILE = '''
"""Scores above a threshold that is trained as softplus(raw_threshold)."""

from torch.nn.functional import softplus

from sae_dist.dictionary.base import Dictionary
from sae_dist.dictionary.penalised import Tile, TiledDictionary


class SoftJump(TiledDictionary):
    """code = score where score > softplus(raw_threshold), else 0."""

    sharded = ("W_enc", "b_enc", "raw_threshold", "W_dec")
    lr_groups = Dictionary.lr_groups | {"raw_threshold": "encoder"}
    form = "jumprelu"

    def tile(self, z_Bf, W_dec_fE, vectors):
        score_Bf, threshold_f = z_Bf + vectors["b_enc"], softplus(vectors["raw_threshold"])
        code_Bf = score_Bf * (score_Bf > threshold_f)
        penalty = (score_Bf - threshold_f).relu().sum()
        active_Bf = code_Bf > 0
        return Tile(code_Bf @ W_dec_fE, penalty, penalty * 0, active_Bf.sum(), active_Bf.any(0))

    @classmethod
    def to_form(cls, tensors):
        return {"b_enc_F": tensors["b_enc"], "threshold_F": softplus(tensors["raw_threshold"])}

    @classmethod
    def from_form(cls, vectors, norm_F, scale):
        raw_F = (vectors["threshold_F"] * norm_F * scale).expm1().log()
        return {"b_enc": vectors["b_enc_F"], "raw_threshold": raw_F}
'''
ROW = '    "softjump": Kind("SoftJump", reads=PENALTY, vectors=2),\n'
VALUES = "kind: softjump\nnum_latents: null\nencoder_scale: 0.8\nsparsity: 0.01\nsparsity_warmup: 0.0\n"
SHORT = [
    "sae=softjump",
    "activations=synthetic",
    "sae.num_latents=64",
    "batch=96",
    "train_tokens=960",
    "shuffle.lanes=8",
    "shuffle.chunk_rows=32",
    "metrics.wandb=off",
    "eval.tokens=0",
]


BOTH = """
import sys
from sae_dist.cli import main

short = sys.argv[1:]
first = main(["train", *short, "name=first"])
again = main(["train", *short, "name=again", "sae.start=outputs/first", "optim.lr=1e-30"])
sys.exit(first or again)
"""


def test_a_file_a_row_and_values_make_a_kind_that_trains_exports_and_starts_again(tmp_path):
    for name in ("sae_dist", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    package = tmp_path / "sae_dist"
    (package / "dictionary" / "kinds" / "softjump.py").write_text(FILE)
    (tmp_path / "conf" / "sae" / "softjump.yaml").write_text(VALUES)
    table = package / "config" / "kinds.py"
    table.write_text(table.read_text().replace("KINDS = {\n", "KINDS = {\n" + ROW))

    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BOTH, *SHORT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    names = ["b_enc", "raw_threshold"]
    trained, again = (load_full(newest(tmp_path / "outputs" / n), names)[0] for n in ("first", "again"))
    assert (trained["raw_threshold"] != 0).any(), "its own parameter is trained"
    sae = load_exported(tmp_path / "outputs" / "first" / "export")
    assert (sae.kind, sae.trained_as) == ("jumprelu", "softjump")
    scale = trained["b_enc"][0] / sae.b_enc_F[0]
    torch.testing.assert_close(
        sae.threshold_F * scale, torch.nn.functional.softplus(trained["raw_threshold"])
    )
    torch.testing.assert_close(again["raw_threshold"], trained["raw_threshold"])
