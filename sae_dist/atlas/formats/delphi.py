"""An atlas as a cache of delphi, so that its explaining and scoring start without a pass of their own.

delphi reads text as rows of equal length. Here these are stretches of the atlas's text as it stands: special
tokens included, across documents, as delphi packs its own. What does not fill the last row is left out.
Letters: P codes.
"""

import json
from pathlib import Path

import numpy as np

from sae_dist.atlas.formats.names import Names, hook_folder
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.table import numbers
from sae_dist.atlas.schema import POSTINGS, part_latents
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_tensors

ROW = 256
"""Tokens of a row, delphi's own default."""
SPLITS = 5
SPLIT_CODES = 1 << 24
"""Codes of a file, about, where five files would have more."""
GREATEST = np.finfo(np.float16).max


def write_delphi(atlas: Atlas, names: Names, out: Path, latents: list[int]) -> None:
    """Write `HOOK/FIRST_LAST.safetensors` and `HOOK/config.json` into a folder.

    Raises:
        ConfigError: the text does not fill a row, or a file is damaged.
    """
    import torch

    token_T = np.concatenate([numbers(each, "token") for each in atlas.places.table.batches(["token"])])
    rows = len(token_T) // ROW
    if not rows:
        raise ConfigError(
            f"delphi reads rows of {ROW} tokens, and the atlas has {len(token_T)}; give more text"
        )
    folder = out / hook_folder(atlas.facts["hook"])
    folder.mkdir()
    tokens = token_T[: rows * ROW].astype(np.int64).reshape(rows, ROW)
    F = atlas.num_latents
    splits = min(F, max(SPLITS, -(-int(atlas.counts.sum()) // SPLIT_CODES)))
    edges = [F * number // splits for number in range(splits + 1)]
    chosen_F = np.zeros(F, bool)
    chosen_F[latents] = True
    for first, end in zip(edges, edges[1:], strict=False):
        latent_P, at_P, code_P = _codes(atlas, first, end, chosen_F, rows * ROW)
        locations = np.stack([at_P // ROW, at_P % ROW, latent_P - first], axis=1)
        narrow = rows < 1 << 16 and end - first < 1 << 16
        content: dict[str, np.ndarray] = {
            "locations": locations.astype(np.uint16 if narrow else np.uint32),
            "activations": np.minimum(code_P, GREATEST).astype(np.float16),
            "tokens": tokens,
        }
        tensors = {name: torch.from_numpy(values) for name, values in content.items()}
        write_tensors(folder / f"{first}_{end - 1}.safetensors", tensors)
    config = {
        "dataset_repo": names.dataset,
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 32,
        "cache_ctx_len": ROW,
        "n_tokens": rows * ROW,
        "n_splits": splits,
        "model_name": names.model_path,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")


def _codes(
    atlas: Atlas, first: int, end: int, chosen_F: np.ndarray, places: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latent, place and code of the chosen latents of a split, at the first places."""
    each = part_latents(atlas.num_latents)
    kinds = (np.int64, np.int64, np.float32)
    found: list[list[np.ndarray]] = [[np.empty(0, kind)] for kind in kinds]
    for part in range(first // each, (end - 1) // each + 1):
        file = atlas.table(POSTINGS, part)
        table = file.read(file.groups_with("latent", first, end - 1), ["latent", "at", "code"])
        latent_P, at_P = (numbers(table, name).astype(np.int64) for name in ("latent", "at"))
        mine_P = (latent_P >= first) & (latent_P < end) & (at_P < places)
        mine_P[mine_P] &= chosen_F[latent_P[mine_P]]
        for column, values in zip(found, (latent_P, at_P, numbers(table, "code")), strict=True):
            column.append(values[mine_P])
    latents, places_P, codes = (np.concatenate(column) for column in found)
    return latents, places_P, codes
