"""The layout of dictionary_learning: ae.pt and config.json, as its `load_dictionary` reads them.

That library has a class for each of our forms of autoencoder, and no class for transcoders. ae.pt is a state
dict written by torch.save. It is read without unpickling anything but tensors.

Loading an AutoEncoder (relu) there scales its decoder rows to unit norm, which changes its codes. So a relu
dictionary with other rows is written as AutoEncoderNew, whose rows stay as they are. AutoEncoderNew and
JumpReluAutoEncoder do not subtract b_dec from the input: W_enc b_dec is part of their encoder's bias.
"""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.export.exported import ExportedSae, Latents, tiles
from sae_dist.export.keys import DICTIONARY_LEARNING
from sae_dist.export.names import FILES
from sae_dist.export.reading import WHOLE, check_k, check_shapes, existing, read_json, require
from sae_dist.export.sliced import SlicedFile, torch_file, untouched, writing
from sae_dist.export.state import read_state

SAE_CONFIG, WEIGHTS = FILES["dictionary_learning"]
UNIT_ERROR = 1e-5
LINEAR = ("encoder.weight", "decoder.weight", "encoder.bias")
MATRICES = ("W_enc", "W_dec", "b_enc")
LAYOUTS: dict[str, tuple[tuple[str, str, str | None], dict[str, str]]] = {
    "AutoEncoder": (LINEAR, {"bias": "b_dec_E"}),
    "AutoEncoderNew": (LINEAR, {"decoder.bias": "b_dec_E"}),
    "AutoEncoderTopK": (LINEAR, {"b_dec": "b_dec_E"}),
    "BatchTopKSAE": (LINEAR, {"b_dec": "b_dec_E"}),
    "MatryoshkaBatchTopKSAE": (MATRICES, {"b_dec": "b_dec_E"}),
    "JumpReluAutoEncoder": (MATRICES, {"b_dec": "b_dec_E", "threshold": "threshold_F"}),
    "GatedAutoEncoder": (
        (*LINEAR[:2], None),
        {"decoder_bias": "b_dec_E", "gate_bias": "b_gate_F", "mag_bias": "b_mag_F", "r_mag": "r_mag_F"},
    ),
}
"""Class -> its names of encoder, decoder and encoder bias; its other names -> fields of `ExportedSae`."""
CLASSES = {
    "topk": "AutoEncoderTopK",
    "relu": "AutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}
"""Form of a dictionary -> its class, in most cases; see `_class_of`."""
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
}
"""Class -> the class of the trainer that writes it, by which SAEBench chooses its loader."""
WITHOUT_B_DEC = ("AutoEncoderNew", "JumpReluAutoEncoder")
SELECTING = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def cannot_hold(head: ExportedSae) -> str | None:
    """Return why dictionary_learning has no class for this dictionary; None: it has one."""
    if head.kind not in CLASSES:
        return f"a {head.trained_as or head.kind} dictionary, only {', '.join(CLASSES)}"
    return "transcoders, only autoencoders" if head.transcoder else None


def export_dictionary_learning(folder: Path, latents: Latents) -> None:
    """Write the dictionary, a tile of latents at a time; each file is complete or absent.

    Raises:
        SaeDistError: the weights could not be written.
    """
    head = latents.head
    name = _class_of(latents)
    (encoder, decoder, bias), others = LAYOUTS[name]
    D, F = head.width, head.num_latents
    turned = encoder == "W_enc"
    shapes: dict[str, tuple[int, ...]] = {
        encoder: (D, F) if turned else (F, D),
        decoder: (F, D) if turned else (D, F),
        **({} if bias is None else {bias: (F,)}),
        **{theirs: (D,) if ours == "b_dec_E" else (F,) for theirs, ours in others.items()},
    }
    vectors = {theirs: ours for theirs, ours in others.items() if ours != "b_dec_E"}
    small = _buffers(latents, name)
    with writing(folder, [WEIGHTS, SAE_CONFIG]), untouched(folder, shapes) as state:
        with torch_file(folder / "ae.tmp", state | small) as file:
            for first, tile in tiles(latents):
                _put_matrix(file, encoder, tile.W_enc_FD, first, as_columns=turned)
                _put_matrix(file, decoder, tile.W_dec_FE, first, as_columns=not turned)
                if bias is not None:
                    assert tile.b_enc_F is not None
                    moved = tile.W_enc_FD @ head.b_dec_E if name in WITHOUT_B_DEC else 0
                    file.put(bias, tile.b_enc_F - moved, first)
                for theirs, ours in vectors.items():
                    file.put(theirs, getattr(tile, ours), first)
            for theirs, ours in others.items():
                if ours == "b_dec_E":
                    file.put(theirs, head.b_dec_E)
            for theirs, value in small.items():
                file.put(theirs, value)
            file.publish(folder / WEIGHTS)
        write_json(folder / SAE_CONFIG, _config(head, name))


def _put_matrix(file: SlicedFile, name: str, rows: Tensor, first: int, *, as_columns: bool) -> None:
    (file.put_columns if as_columns else file.put)(name, rows, first)


def _class_of(latents: Latents) -> str:
    head = latents.head
    if head.trained_as in ("batchtopk", "matryoshka") and "training_k" in head.metadata:
        nested = head.trained_as == "matryoshka" and "matryoshka_prefixes" in head.metadata
        return "MatryoshkaBatchTopKSAE" if nested else "BatchTopKSAE"
    if head.kind == "relu":
        norms = (tile.W_dec_FE.norm(dim=1) for _, tile in tiles(latents))
        if not all(float((norm - 1).abs().max()) < UNIT_ERROR for norm in norms):
            return "AutoEncoderNew"
    return CLASSES[head.kind]


def _buffers(latents: Latents, name: str) -> dict[str, Tensor]:
    """Return the small tensors that selecting classes keep besides their weights."""
    head = latents.head
    if name not in SELECTING:
        return {}
    threshold_F = latents.tile(slice(0, 1)).threshold_F
    found = {
        "k": torch.tensor(_k(head), dtype=torch.int32),
        "threshold": torch.tensor(-1.0) if threshold_F is None else threshold_F[0].float().clone(),
    }
    if name == "MatryoshkaBatchTopKSAE":
        prefixes = [0, *head.metadata["matryoshka_prefixes"]]
        sizes = [end - begin for begin, end in itertools.pairwise(prefixes)]
        # Fractions that round to one number of latents: no group may be empty.
        found["group_sizes"] = torch.tensor([size for size in sizes if size])
    return found


def _k(head: ExportedSae) -> int:
    return head.k if head.k is not None else head.metadata["training_k"]


def _config(head: ExportedSae, name: str) -> dict[str, Any]:
    hook = str(head.metadata.get("hook_name") or "")
    trainer: dict[str, Any] = {
        "trainer_class": TRAINERS[name],
        "dict_class": name,
        "activation_dim": head.width,
        "dict_size": head.num_latents,
        "device": "cpu",
        "layer": next((int(part) for part in hook.split(".") if part.isdigit()), None),
        "lm_name": head.metadata.get("model_name"),
        "submodule_name": hook or None,
        "wandb_name": name,
    }
    if name in SELECTING:
        trainer["k"] = _k(head)
    buffer = {"d_submodule": head.width, "io": "out", "ctx_len": head.metadata.get("context_size")}
    return {"trainer": trainer, "buffer": buffer, "metadata": head.metadata, "written_by": "sae_dist"}


def load_dictionary_learning(folder: Path) -> ExportedSae:
    """Read a dictionary that dictionary_learning, or `export_dictionary_learning`, wrote.

    Nothing is unpickled but tensors and their containers.

    Raises:
        ConfigError: a file, key or tensor is missing, has the wrong shape, or means another computation.
    """
    config = read_json(folder, SAE_CONFIG, WEIGHTS, DICTIONARY_LEARNING)
    require(folder / SAE_CONFIG, config, "trainer")
    trainer = config["trainer"]
    require(folder / SAE_CONFIG, trainer, "dict_class", "activation_dim", "dict_size")
    name, D, F = trainer["dict_class"], trainer["activation_dim"], trainer["dict_size"]
    if name not in LAYOUTS:
        raise ConfigError(
            f"{folder / SAE_CONFIG}: dict_class={name} is not supported, only {', '.join(LAYOUTS)}"
        )
    (encoder, decoder, bias), others = LAYOUTS[name]
    weights = read_state(existing(folder, WEIGHTS, (SAE_CONFIG, WEIGHTS)))
    turned = encoder == "W_enc"
    shapes = {encoder: [D, F] if turned else [F, D], decoder: [F, D] if turned else [D, F]}
    shapes |= {} if bias is None else {bias: [F]}
    shapes |= {theirs: [D] if ours == "b_dec_E" else [F] for theirs, ours in others.items()}
    shapes |= {"k": [], "threshold": []} if name in SELECTING else {}
    check_shapes(folder / WEIGHTS, weights, shapes, SAE_CONFIG, whole=("k",))
    k = check_k(folder / WEIGHTS, float(weights["k"]), F) if name in SELECTING else None
    own: dict[str, Any] = {ours: weights[theirs] for theirs, ours in others.items()}
    W_enc_FD = weights[encoder].T if turned else weights[encoder]
    W_dec_FE = weights[decoder] if turned else weights[decoder].T
    if bias is not None:
        own["b_enc_F"] = weights[bias] + (W_enc_FD @ own["b_dec_E"] if name in WITHOUT_B_DEC else 0)
    sae = ExportedSae(
        W_enc_FD=W_enc_FD.contiguous(),
        W_dec_FE=W_dec_FE.contiguous(),
        metadata=_metadata(config) | _training(folder, name, k, weights, F),
        **own,
        **_selection(name, k, weights, F),
    )
    return _with_unit_rows(sae) if name == "AutoEncoder" else sae


def _training(folder: Path, name: str, k: int | None, weights: dict[str, Tensor], F: int) -> dict[str, Any]:
    """Return metadata on training, for classes that compute their codes otherwise than in training."""
    if name not in SELECTING[1:]:
        return {}
    if name == "BatchTopKSAE":
        return {"training_k": k}
    sizes = weights.get("group_sizes", torch.zeros(1, dtype=torch.int64))
    whole = sizes.dim() == 1 and sizes.dtype in WHOLE and bool((sizes > 0).all())
    if not whole or int(sizes.sum()) != F:
        raise ConfigError(
            f"{folder / WEIGHTS}: group_sizes must be whole numbers above 0 that add up to dict_size={F} of "
            f"{SAE_CONFIG}"
        )
    return {"training_k": k, "matryoshka_prefixes": sizes.cumsum(0).tolist()}


def _selection(name: str, k: int | None, weights: dict[str, Tensor], F: int) -> dict[str, Any]:
    """Return the fields `kind`, `k`, `threshold_F` and `trained_as` of a dictionary, by its class."""
    if name not in SELECTING:
        kinds = {its_class: kind for kind, its_class in CLASSES.items()}
        return {"kind": kinds.get(name, "relu")}
    if name == "AutoEncoderTopK":
        return {"kind": "topk", "k": k}
    trained_as = "batchtopk" if name == "BatchTopKSAE" else "matryoshka"
    return {
        "kind": "jumprelu",
        "trained_as": trained_as,
        "threshold_F": weights["threshold"].expand(F).clone(),
    }


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Return where the dictionary comes from, under SAELens' names."""
    if "metadata" in config:
        return config["metadata"]
    trainer, buffer = config["trainer"], config.get("buffer", {})
    hook = None
    if trainer.get("submodule_name", "").startswith("resid_post") and "layer" in trainer:
        hook = f"layers.{trainer['layer']}"
    found = {
        "model_name": trainer.get("lm_name"),
        "hook_name": hook,
        "context_size": buffer.get("ctx_len"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _with_unit_rows(sae: ExportedSae) -> ExportedSae:
    """Return an AutoEncoder as its own library loads it: decoder rows of unit norm, codes scaled to match."""
    norm_F = sae.W_dec_FE.norm(dim=1)
    if torch.allclose(norm_F, torch.ones_like(norm_F)):
        return sae
    norm_F = torch.where(norm_F > 0, norm_F, 1)
    assert sae.b_enc_F is not None
    sae.W_dec_FE, sae.W_enc_FD = sae.W_dec_FE / norm_F[:, None], sae.W_enc_FD * norm_F[:, None]
    sae.b_enc_F = sae.b_enc_F * norm_F
    return sae
