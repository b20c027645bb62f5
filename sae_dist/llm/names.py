"""Names of hooks: module paths of this model, of similar models, and of TransformerLens."""

import difflib
import re
from typing import TYPE_CHECKING

from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech", "video", "vpm", "qformer", "sam_")
Place = tuple[str, str]

LENS_NAME = re.compile(r"blocks\.(\d+)\.(.*hook_.+)")
LAYER_NAME = re.compile(r"(?:\w+\.)*?(?:layers|layer|h|blocks)\.(\d+)(?:\.(mlp|attn|self_attn|attention))?")


def find_layers(model: "nn.Module", num_layers: int) -> str | None:
    """Return the path of the list of `num_layers` layers in a base model; None: it has no such list.

    Towers that read images or sound have such lists, too; the one inside the part that reads text counts.
    """
    from torch import nn

    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and num_layers
    ]
    others = [name for name in found if not any(word in name for word in OTHER_TOWERS)]
    return min(others or found, key=len, default=None)


def split_hook(hook: str, key: str) -> tuple[str, str]:
    """Return the path of a hook, and `in` or `out`.

    Raises:
        ConfigError: it ends in another word.
    """
    path, _, direction = hook.partition(":")
    if direction not in ("", "in", "out"):
        raise ConfigError(f"{key}={hook} ends in :{direction}; write {path}:in or {path}:out")
    return path, direction or "out"


def check_layer(hook: str, num_layers: int, key: str) -> None:
    """Check the number of a layer in a hook's name, as far as the name has one.

    Raises:
        ConfigError: there are fewer layers.
    """
    path, _ = split_hook(hook, key)
    match = LENS_NAME.fullmatch(path) or LAYER_NAME.fullmatch(path)
    if match and int(match[1]) >= num_layers:
        raise ConfigError(f"{key}={hook} names layer {match[1]}, but the layers are 0 to {num_layers - 1}")


def resolve_hook(
    hook: str | None, model: "nn.Module", num_layers: int, key: str = "hook"
) -> tuple[str, str | None]:
    """Find a hook in a base model.

    Args:
        hook: a module's path, followed by `:in` or `:out` (the default); a path of the whole model; the
            same place in another architecture's names (`h.3.attn`); a name of TransformerLens. None: the
            output of the middle layer.
        model: the base model; it may be on the meta device.
        key: the hook's key in the config, for messages.

    Returns:
        `path:in` or `path:out`; and a line that reports the translation (None: the name was used as it is).

    Raises:
        ConfigError: there is no such place; the message names the nearest.
    """
    layers = find_layers(model, num_layers)
    if hook is None:
        if layers is None:
            raise ConfigError("hook=null needs a model with a list of layers; give the path of a module")
        return f"{layers}.{max(num_layers // 2 - 1, 0)}:out", None
    path, direction = split_hook(hook, key)
    if _has(model, path):
        return f"{path}:{direction}", None
    lens = LENS_NAME.fullmatch(path)
    if lens:
        place: Place | None = _from_lens(hook, lens, model, layers, num_layers, key)
    else:
        place = _relative(path, model, layers, direction)
    if place is None or not _has(model, place[0]):
        names = sorted(name for name, _ in model.named_modules() if name)
        near = difflib.get_close_matches(path, names, n=4, cutoff=0.3) or names[:4]
        raise ConfigError(
            f"{key}={hook} names no module of this model, which has {num_layers} layers; "
            f"nearest: {', '.join(near)}"
        )
    resolved = f"{place[0]}:{place[1]}"
    return resolved, f"{key}={hook} is {resolved} in this model"


def _relative(path: str, model: "nn.Module", layers: str | None, direction: str) -> Place | None:
    """Resolve a path that starts at the whole model, or that names a layer or its parts as others do."""
    first, _, rest = path.partition(".")
    if first in ("model", getattr(model, "base_model_prefix", "model")) and _has(model, rest):
        return rest, direction
    match = LAYER_NAME.fullmatch(path)
    if not match or layers is None:
        return None
    number, part = match.groups()
    if part is None:
        return f"{layers}.{number}", direction
    # BERT has no module for the MLP: it begins at `intermediate.dense` and ends at `output.dense`.
    mlp = ("mlp", "intermediate.dense" if direction == "in" else "output.dense")
    names = (f"{layers}.{number}.{name}" for name in (mlp if part == "mlp" else ATTENTION))
    return next(((name, direction) for name in names if _has(model, name)), None)


def _from_lens(
    hook: str, match: re.Match[str], model: "nn.Module", layers: str | None, num_layers: int, key: str
) -> Place:
    number, name = match.groups()
    if layers is None or int(number) >= num_layers:
        raise ConfigError(f"{key}={hook} names layer {number}, but the layers are 0 to {num_layers - 1}")
    layer = model.get_submodule(f"{layers}.{number}")
    known = _lens_places(layer)
    if name not in known:
        raise ConfigError(
            f"{key}={hook} has no counterpart; these TransformerLens names have: {', '.join(known)}"
        )
    if name == "hook_resid_mid" and getattr(model.config, "use_parallel_residual", False):
        raise ConfigError(f"{key}={hook} does not exist: attention and MLP read the same residual here")
    for part, direction in known[name]:
        if not part:
            return f"{layers}.{number}", direction
        if _has(layer, part):
            return f"{layers}.{number}.{part}", direction
    raise ConfigError(f"{key}={hook} has no counterpart in {type(layer).__name__}; give the path of a module")


def _lens_places(layer: "nn.Module") -> dict[str, list[Place]]:
    """Map TransformerLens' names to modules of a layer that may be that place; the first that exists is."""
    # A layer with a norm after attention and MLP (Gemma 2, OLMo 2) adds that norm's output to the residual.
    norm_behind = _has(layer, "post_feedforward_layernorm")
    middle: tuple[str, ...] = ("ln_2", "attention.output.LayerNorm", "post_attention_layernorm")
    if norm_behind:
        middle = ("pre_feedforward_layernorm", "mlp")
    down = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "output.dense")
    mixers = ("o_proj", "c_proj", "output.dense", "dense")
    heads = [f"{part}.{mixer}" for part in ATTENTION for mixer in mixers]
    attention = ("post_attention_layernorm",) if norm_behind else ("attention.output.dense", *ATTENTION)
    mlp = ("post_feedforward_layernorm", "mlp", "output.dense")
    return {
        "hook_resid_pre": [("", "in")],
        "hook_resid_mid": [(part, "in") for part in middle],
        "hook_resid_post": [("", "out")],
        "hook_attn_out": [(part, "out") for part in attention],
        "hook_mlp_out": [(part, "out") for part in mlp],
        "mlp.hook_post": [(part, "in") for part in down],
        "attn.hook_z": [(part, "in") for part in heads],
    }


def _has(module: "nn.Module", path: str) -> bool:
    try:
        return bool(path) and module.get_submodule(path) is not None
    except AttributeError:
        return False
