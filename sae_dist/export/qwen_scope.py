"""The dictionaries of Qwen-Scope: a file layer<n>.sae.pt for each layer, which torch.save wrote.

They are TopK, of the output of a layer, and encode the input as it is: W_enc [F, D], W_dec [D, F]. The files
say neither k nor model; the name of their repository does, SAE-Res-<model>-W<width>K-L0_<k>.
"""

import re
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.export.names import FILES
from sae_dist.export.reading import check_k, check_shapes, existing
from sae_dist.export.state import read_state

WEIGHTS = FILES["qwen_scope"][1]
FILE = re.compile(r"layer(\d+)\.sae\.pt")
K_OF, MODEL_OF = re.compile(r"L0[_-](\d{1,9})\b"), re.compile(r"SAE-Res-(.+?)-W\d+K-L0")
ORGANISATION = "Qwen"
DEPTH = 4
"""How many names of folders above a file are looked at: the Hub's cache has two of its own in between."""


def load_qwen_scope(place: Path) -> ExportedSae:
    """Read one layer's dictionary.

    Args:
        place: the file of the layer, or a folder with one such file.

    Raises:
        ConfigError: the folder has several layers, no name of a folder says k, or a tensor is missing or has
            the wrong shape.
    """
    path = _file(place)
    weights = read_state(path)
    F, D = weights["W_enc"].shape if "W_enc" in weights and weights["W_enc"].dim() == 2 else (0, 0)
    check_shapes(path, weights, {"W_enc": [F, D], "W_dec": [D, F], "b_enc": [F], "b_dec": [D]}, "W_enc")
    # The Hub's cache has links to files that are named by their content.
    names = path.parent.resolve().parts[-DEPTH:]
    k = next((found[1] for name in reversed(names) if (found := K_OF.search(name))), None)
    if k is None:
        raise ConfigError(
            f"{path} does not say k, which its folder's name has; keep that, such as "
            "SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    return ExportedSae(
        kind="topk",
        W_enc_FD=weights["W_enc"],
        W_dec_FE=weights["W_dec"].T.contiguous(),
        b_dec_E=weights["b_dec"],
        # W_enc x + b_enc = W_enc (x - b_dec) + (b_enc + W_enc b_dec)
        b_enc_F=weights["b_enc"] + weights["W_enc"] @ weights["b_dec"],
        k=check_k(path, int(k), F),
        metadata=_metadata(path.name, names),
    )


def _file(place: Path) -> Path:
    """Return the file of a layer."""
    if place.is_file():
        return existing(place.parent, place.name, (WEIGHTS,))
    found = sorted(place.glob(WEIGHTS), key=lambda path: (len(path.name), path.name))
    if len(found) > 1:
        raise ConfigError(f"{place} has the files of {len(found)} layers; give one of them: {found[0]}")
    return existing(place, found[0].name if found else WEIGHTS, (WEIGHTS,))


def _metadata(file: str, folders: tuple[str, ...]) -> dict[str, Any]:
    """Return where the dictionary comes from, under SAELens' names."""
    found: dict[str, Any] = {}
    if layer := FILE.fullmatch(file):
        found["hook_name"] = f"layers.{layer[1]}"
    model = next((match[1] for name in reversed(folders) if (match := MODEL_OF.search(name))), None)
    return found if model is None else found | {"model_name": f"{ORGANISATION}/{model}"}
