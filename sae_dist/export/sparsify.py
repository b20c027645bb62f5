"""The layout of EleutherAI's sparsify: sae.safetensors and cfg.json, for `SparseCoder.load_from_disk`.

Its one class selects the k best latents of each row. It can hold topk: autoencoders, and transcoders between
activations of one width, with and without skip. delphi reads the same files.
"""

from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.export.exported import ExportedSae, Latents, tiles
from sae_dist.export.keys import SPARSIFY
from sae_dist.export.names import FILES
from sae_dist.export.reading import (
    check_k,
    check_shapes,
    read_json,
    read_safetensors,
    require,
    weight_files,
)
from sae_dist.export.sliced import Shapes, safetensors_file, writing

SAE_CONFIG, WEIGHTS = FILES["sparsify"]


def cannot_hold(head: ExportedSae) -> str | None:
    """Return why sparsify's class cannot hold this dictionary; None: it can."""
    if head.kind != "topk":
        return f"a {head.trained_as or head.kind} dictionary, only topk"
    if head.width != len(head.b_dec_E):
        return f"a transcoder from {head.width} to {len(head.b_dec_E)} dimensions, only between equal widths"
    return None


def export_sparsify(folder: Path, latents: Latents) -> None:
    """Write the dictionary, a tile of latents at a time; each file is complete or absent.

    Raises:
        SaeDistError: the weights could not be written.
    """
    head = latents.head
    D, F = head.width, head.num_latents
    shapes: Shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    shapes |= {} if head.W_skip_ED is None else {"W_skip": (D, D)}
    with writing(folder, [WEIGHTS, SAE_CONFIG]):
        with safetensors_file(folder / f".{WEIGHTS}.tmp", shapes) as file:
            for first, tile in tiles(latents):
                assert tile.b_enc_F is not None
                file.put("encoder.weight", tile.W_enc_FD, first)
                file.put("encoder.bias", tile.b_enc_F, first)
                file.put("W_dec", tile.W_dec_FE, first)
            file.put("b_dec", head.b_dec_E)
            if head.W_skip_ED is not None:
                file.put("W_skip", head.W_skip_ED)
            file.publish(folder / WEIGHTS)
        write_json(folder / SAE_CONFIG, _config(head))


def _config(head: ExportedSae) -> dict[str, Any]:
    return {
        "activation": "topk",
        # Read by sparsify only where num_latents is 0.
        "expansion_factor": max(1, head.num_latents // head.width),
        "normalize_decoder": not head.transcoder,
        "num_latents": head.num_latents,
        "k": head.k,
        "multi_topk": False,
        "skip_connection": head.W_skip_ED is not None,
        "transcode": head.transcoder,
        "d_in": head.width,
        "metadata": head.metadata,
    }


def load_sparsify(folder: Path) -> ExportedSae:
    """Read a dictionary that sparsify, or `export_sparsify`, wrote.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another computation.
    """
    weight_files(folder, WEIGHTS, SAE_CONFIG)  # other formats have a cfg.json too
    config = read_json(folder, SAE_CONFIG, WEIGHTS, SPARSIFY)
    require(folder / SAE_CONFIG, config, "d_in", "k")
    skip, transcoder = config.get("skip_connection", False), config.get("transcode", False)
    activation = config.get("activation", "topk")
    refused = {
        f"activation={activation} is not supported, only activation=topk": activation != "topk",
        "signed=true is not supported, only codes above zero": config.get("signed", False),
        "skip_connection=true is supported with transcode=true only": skip and not transcoder,
    }
    for reason, applies in refused.items():
        if applies:
            raise ConfigError(f"{folder / SAE_CONFIG}: {reason}")
    D = config["d_in"]
    if not config.get("num_latents"):
        require(folder / SAE_CONFIG, config, "expansion_factor")
    F = config.get("num_latents") or D * config["expansion_factor"]
    weights = read_safetensors(folder, WEIGHTS, SAE_CONFIG)
    shapes = {"encoder.weight": [F, D], "encoder.bias": [F], "W_dec": [F, D], "b_dec": [D]}
    check_shapes(folder / WEIGHTS, weights, shapes | ({"W_skip": [D, D]} if skip else {}), SAE_CONFIG)
    check_k(folder / SAE_CONFIG, config["k"], F)
    return ExportedSae(
        kind="topk",
        W_enc_FD=weights["encoder.weight"].float(),
        W_dec_FE=weights["W_dec"].float(),
        b_dec_E=weights["b_dec"].float(),
        b_enc_F=weights["encoder.bias"].float(),
        k=config["k"],
        W_skip_ED=weights["W_skip"].float() if skip else None,
        transcoder=transcoder,
        metadata=config.get("metadata", {}),
    )
