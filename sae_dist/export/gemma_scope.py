"""The dictionaries of Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors, config.json).

Both are JumpReLU with a threshold for each latent, W_enc [D, F] and W_dec [F, E], and encode the input as it
is. A transcoder of Gemma Scope has the same tensors, and differs by the place that it is kept in. Gemma Scope
2 adds a skip [D, E] to some transcoders. Nothing in these files is unpickled.
"""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.npy import npy_array
from sae_dist.core.parsing import check_archive, reading
from sae_dist.export.exported import ExportedSae
from sae_dist.export.keys import GEMMA_SCOPE, checked
from sae_dist.export.names import FILES
from sae_dist.export.reading import check_shapes, existing, floats, json_object, read_safetensors

PARAMS = FILES["gemma_scope"][1]
SAE_CONFIG, PARAMS_2 = FILES["gemma_scope_2"]
TRANSCODER = "transcoder"
"""A word in the names of folders that hold transcoders."""
SKIP = "affine_skip_connection"
UNPACKED_TIMES = 16
"""Weights hardly get smaller by packing: an archive that unpacks to more times its size holds no weights."""


def load_gemma_scope(folder: Path, transcoder: bool = False) -> ExportedSae:
    """Read a dictionary of Gemma Scope.

    Args:
        transcoder: it is one, whatever the names of its folders say.

    Raises:
        ConfigError: a tensor is missing, has the wrong shape, or means another computation.
    """
    path = existing(folder, PARAMS, (PARAMS,))
    weights = {name.lower(): each for name, each in _arrays(path).items()}
    if not torch.all(weights.pop("scaling_factor", torch.ones(1)) == 1):
        raise ConfigError(f"{path}: a scaling_factor other than 1 is not supported")
    return _dictionary(path, weights, transcoder or _is_transcoder(folder), {})


def load_gemma_scope_2(folder: Path, transcoder: bool = False) -> ExportedSae:
    """Read a dictionary of Gemma Scope 2; its config.json may be missing.

    Args:
        transcoder: see `load_gemma_scope`.

    Raises:
        ConfigError: a tensor is missing, has the wrong shape, or means another computation.
    """
    config: dict[str, Any] = {}
    if (folder / SAE_CONFIG).is_file():
        path = existing(folder, SAE_CONFIG, (SAE_CONFIG, PARAMS_2))
        config = checked(path, json_object(path), GEMMA_SCOPE)
        if config.get("architecture", "jump_relu") != "jump_relu":
            raise ConfigError(
                f"{path}: architecture={config['architecture']} is not supported, only jump_relu"
            )
    weights = read_safetensors(folder, PARAMS_2, SAE_CONFIG)
    transcoder = transcoder or "hf_hook_point_out" in config or SKIP in weights or _is_transcoder(folder)
    return _dictionary(folder / PARAMS_2, weights, transcoder, _metadata(config))


def _arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file; objects in it are refused, and what unpacks to far more than it."""
    with reading(path, "is not an .npz file of numbers ({reason}); download it again"):
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size, UNPACKED_TIMES)
            return dict(map(partial(_array, archive), archive.infolist()))


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[str, Tensor]:
    """Return the name and the numbers of an array in an .npz file."""
    found = npy_array(archive.read(entry))
    if found.dtype.kind != "f":
        raise ValueError(f"{entry.filename} holds {found.dtype}")
    return entry.filename.removesuffix(".npy"), torch.from_numpy(np.array(found, np.float32))


def _dictionary(
    path: Path, weights: dict[str, Tensor], transcoder: bool, metadata: dict[str, Any]
) -> ExportedSae:
    for name in ("w_enc", "w_dec"):
        dim = weights[name].dim() if name in weights else 2
        if dim != 2:
            raise ConfigError(
                f"{path}: {name} has {dim} dimensions; a cross-layer transcoder is not supported, only "
                "dictionaries of one layer"
            )
    weights = floats(weights)
    D, F = weights["w_enc"].shape if "w_enc" in weights else (0, 0)
    E = weights["w_dec"].shape[-1] if "w_dec" in weights else 0
    transcoder = transcoder or D != E
    shapes = {"w_enc": [D, F], "w_dec": [F, E], "b_enc": [F], "b_dec": [E], "threshold": [F]}
    skip = {SKIP: [D, E]} if SKIP in weights else {}
    check_shapes(path, weights, shapes | skip, "w_enc" if D else path.name)
    W_enc_FD = weights["w_enc"].T.contiguous()
    return ExportedSae(
        kind="jumprelu",
        W_enc_FD=W_enc_FD,
        W_dec_FE=weights["w_dec"],
        b_dec_E=weights["b_dec"],
        # W_enc x + b_enc = W_enc (x - b_dec) + (b_enc + W_enc b_dec)
        b_enc_F=weights["b_enc"] + (0 if transcoder else W_enc_FD @ weights["b_dec"]),
        threshold_F=weights["threshold"],
        W_skip_ED=weights[SKIP].T.contiguous() if skip else None,
        transcoder=transcoder,
        metadata=metadata,
    )


def _is_transcoder(folder: Path) -> bool:
    return any(TRANSCODER in part.lower() for part in folder.resolve().parts[-6:])


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Return where the dictionary comes from, under SAELens' names."""
    found: dict[str, Any] = {"model_name": config.get("model_name")}
    for ours, theirs in (("hook_name", "hf_hook_point_in"), ("hook_name_out", "hf_hook_point_out")):
        hook = config.get(theirs)
        if hook is not None:
            hook = hook.removesuffix(".output")
            found[ours] = f"{hook.removesuffix('.input')}:in" if hook.endswith(".input") else hook
    return {key: value for key, value in found.items() if value is not None}
