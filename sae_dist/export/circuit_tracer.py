"""circuit-tracer's layout: config.yaml and a file layer_<n>.safetensors for each layer, of transcoders.

It has ReLU, and JumpReLU with a threshold for each latent, from the input of a layer's MLP to its output. A
set needs every layer from 0 on, all of one width. Its newer versions have TopK, whose k is in the config.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_dist.config.plain import read_yaml
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.parsing import read_bounded, reading
from sae_dist.export.exported import ExportedSae, Latents, tiles
from sae_dist.export.keys import CIRCUIT_TRACER, METADATA, OBJECT, checked
from sae_dist.export.names import FILES, LAYER_FILE, MODULE
from sae_dist.export.reading import check_k, check_shapes, existing, floats, read_safetensors, require
from sae_dist.export.sliced import Shapes, safetensors_file, writing

SAE_CONFIG, WEIGHTS = FILES["circuit_tracer"]
THRESHOLD = "activation_function.threshold"
KIND = "transcoder_set"
ACTIVATIONS = ("relu", "jumprelu", "topk")
INPUT, OUTPUT = "mlp.hook_in", "hook_mlp_out"
"""TransformerLens' names, within a layer, of what its MLP reads and gives."""
NORM_BEHIND = re.compile(r"gemma-?[23]|olmo-?2")
"""Models with a norm behind the MLP, whose output is what TransformerLens calls the MLP's."""
PLACES = {INPUT: "layers.{}.mlp:in", OUTPUT: "layers.{}.mlp"}


def cannot_hold(head: ExportedSae) -> str | None:
    """Return why circuit-tracer cannot hold this dictionary; None: it can."""
    if not head.transcoder:
        return "autoencoders, only transcoders"
    if head.kind not in ("relu", "jumprelu"):
        return f"a {head.trained_as or head.kind} dictionary, only relu, jumprelu, batchtopk and matryoshka"
    if head.width != len(head.b_dec_E):
        return f"a transcoder from {head.width} to {len(head.b_dec_E)} dimensions, only between equal widths"
    if _layer(head) is None:
        hooks = f"{head.metadata.get('hook_name')} to {head.metadata.get('hook_name_out')}"
        return f"a transcoder from {hooks}, only from the input of a layer's mlp to its output"
    return None


def _layer(head: ExportedSae) -> int | None:
    """Return the layer whose MLP a transcoder replaces; None: it reads or gives something else."""
    source, target = (
        str(head.metadata.get(key, "")).removesuffix(":out") for key in ("hook_name", "hook_name_out")
    )
    numbers = [part for part in target.split(".") if part.isdigit()]
    if len(numbers) != 1 or MODULE.fullmatch(target) is None:
        return None
    layer, _, part = target.rpartition(".")
    behind = NORM_BEHIND.search(str(head.metadata.get("model_name")).lower()) is not None
    own = source == f"{layer}.mlp:in" and part == ("post_feedforward_layernorm" if behind else "mlp")
    lens = source == f"blocks.{numbers[0]}.{INPUT}" and part == OUTPUT
    return int(numbers[0]) if own or lens else None


def why_no_set(heads: Sequence[ExportedSae]) -> str | None:
    """Return why dictionaries that each can be held make no set that circuit-tracer loads; None: they do."""
    layers = [_layer(head) for head in heads]
    if sorted(layers, key=lambda each: each or 0) != list(range(len(layers))):
        return f"transcoders of the layers {', '.join(map(str, layers))}, only of every layer from 0 on"
    if len(widths := {head.num_latents for head in heads}) > 1:
        return f"sets of {' and '.join(map(str, sorted(widths)))} latents, only of one number in all layers"
    if len({head.W_skip_ED is None for head in heads}) > 1:
        return "sets with and without skip connections, only one of both"
    return None


def export_circuit_tracer(folder: Path, *dictionaries: Latents) -> None:
    """Write dictionaries, each in a file of its layer, a tile of latents at a time; one config is of all.

    Each file is complete or absent.

    Raises:
        SaeDistError: the weights could not be written.
    """
    files = {f"layer_{_layer(each.head)}.safetensors": each for each in dictionaries}
    with writing(folder, *([name] for name in files), [SAE_CONFIG]):
        for name, each in files.items():
            _export_layer(folder / name, each)
        write_text(folder / SAE_CONFIG, yaml.safe_dump(_config(files), sort_keys=False))


def _export_layer(path: Path, latents: Latents) -> None:
    head = latents.head
    D, F = head.width, head.num_latents
    shapes: Shapes = {"W_enc": (F, D), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    shapes |= {THRESHOLD: (F,)} if head.kind == "jumprelu" else {}
    shapes |= {} if head.W_skip_ED is None else {"W_skip": (D, D)}
    with safetensors_file(path.parent / f".{path.name}.tmp", shapes) as file:
        for first, tile in tiles(latents):
            assert tile.b_enc_F is not None
            file.put("W_enc", tile.W_enc_FD, first)
            file.put("W_dec", tile.W_dec_FE, first)
            file.put("b_enc", tile.b_enc_F, first)
            if tile.threshold_F is not None:
                # Its JumpReLU has no ReLU behind the threshold.
                file.put(THRESHOLD, tile.threshold_F.clamp(min=0), first)
        file.put("b_dec", head.b_dec_E)
        if head.W_skip_ED is not None:
            file.put("W_skip", head.W_skip_ED)
        file.publish(path)


def _config(files: Mapping[str, Latents]) -> dict[str, Any]:
    said = {name: each.head.metadata for name, each in files.items()}
    return {
        "model_name": next(iter(said.values())).get("model_name"),
        "model_kind": KIND,
        "feature_input_hook": INPUT,
        "feature_output_hook": OUTPUT,
        "layers": said,
    }


def load_circuit_tracer(place: Path) -> ExportedSae:
    """Read one layer's transcoder; config.yaml may be missing.

    Args:
        place: the file of the layer, or a folder with one such file.

    Raises:
        ConfigError: the folder has several layers, or a tensor is missing or has the wrong shape.
    """
    folder, name = _file(place)
    config = _read_config(folder / SAE_CONFIG)
    if config.get("model_kind", KIND) != KIND:
        raise ConfigError(
            f"{folder / SAE_CONFIG}: model_kind={config['model_kind']} is not supported, only {KIND}"
        )
    activation = config.get("activation")
    if activation not in (None, *ACTIVATIONS):
        raise ConfigError(
            f"{folder / SAE_CONFIG}: activation={activation} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    weights = floats(read_safetensors(folder, name, SAE_CONFIG))
    F, D = weights["W_enc"].shape if "W_enc" in weights and weights["W_enc"].dim() == 2 else (0, 0)
    E = len(weights["b_dec"]) if "b_dec" in weights and weights["b_dec"].dim() == 1 else D
    shapes = {"W_enc": [F, D], "W_dec": [F, E], "b_enc": [F], "b_dec": [E]}
    shapes |= {"W_skip": [E, D]} if "W_skip" in weights else {}
    threshold = weights.get(THRESHOLD)
    if threshold is not None and threshold.numel() == 1:
        weights[THRESHOLD] = threshold.reshape(1).expand(F).clone()
    check_shapes(
        folder / name, weights, shapes | ({} if threshold is None else {THRESHOLD: [F]}), "W_enc and b_dec"
    )
    by_tensors = "relu" if threshold is None else "jumprelu"
    kind = activation if activation in ("relu", "topk") else by_tensors
    if kind == "topk":
        require(folder / SAE_CONFIG, config, "k")
        check_k(folder / SAE_CONFIG, config["k"], F)
    return ExportedSae(
        kind=kind,
        W_enc_FD=weights["W_enc"],
        W_dec_FE=weights["W_dec"],
        b_dec_E=weights["b_dec"],
        b_enc_F=weights["b_enc"],
        threshold_F=weights.get(THRESHOLD) if kind == "jumprelu" else None,
        k=config["k"] if kind == "topk" else None,
        W_skip_ED=weights.get("W_skip"),
        transcoder=True,
        metadata=_metadata(config, folder / name),
    )


def _file(place: Path) -> tuple[Path, str]:
    """Return the folder and the name of a layer's file."""
    if place.is_file():
        return place.parent, place.name
    found = sorted(place.glob(WEIGHTS), key=lambda path: (len(path.name), path.name))
    if len(found) > 1:
        raise ConfigError(f"{place} has the files of {len(found)} layers; give one of them: {found[0]}")
    name = found[0].name if found else WEIGHTS
    return existing(place, name, (SAE_CONFIG, WEIGHTS)).parent, name


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with reading(path, "is not YAML ({reason}); export the dictionary again"):
        found = read_yaml(read_bounded(path).decode("utf-8-sig"))
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no keys; export the dictionary again")
    return checked(path, {str(key): value for key, value in found.items()}, CIRCUIT_TRACER)


def _metadata(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return where the dictionary in a file comes from, under SAELens' names."""
    own = config.get("layers", {}).get(path.name)
    if own is not None:
        if not OBJECT.holds(own):
            raise ConfigError(f"{path.parent / SAE_CONFIG}: layers.{path.name} must be {OBJECT.words}")
        return checked(path.parent / SAE_CONFIG, own, METADATA, f"layers.{path.name}.")
    found = {"model_name": config["model_name"]} if "model_name" in config else {}
    layer = LAYER_FILE.fullmatch(path.name)
    # One metadata beside the files of several layers, which were put together, is of one of them.
    said = config.get("metadata", {})
    if layer is None or "hook_name" in said and f".{layer[1]}." in f".{said['hook_name'].partition(':')[0]}.":
        return said or found
    for ours, theirs in (("hook_name", "feature_input_hook"), ("hook_name_out", "feature_output_hook")):
        hook = config.get(theirs)
        if hook is not None:
            own = PLACES[hook].format(layer[1]) if hook in PLACES else None
            found[ours] = own or f"blocks.{layer[1]}.{hook}"
    return found
