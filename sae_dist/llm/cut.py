"""Models that end with the last layer that hooks need; everything else about them is the whole model's.

Some models compute with their own number of layers: a residual scale, keys shared between layers, embeddings
for each layer. The config therefore stays the whole model's, and layers are removed from the list of modules.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sae_dist.llm.hub import loading


def layers_of(hooks: Iterable[str]) -> tuple[str, int] | None:
    """Return the path of the list of layers that all hooks are in, and the last layer's number.

    None: a hook is outside of the layers, or they are in several lists; all of the model is needed.
    """
    found = [_place(hook.split(":")[0]) for hook in hooks]
    places = [each for each in found if each is not None]
    if len(places) < len(found) or len({path for path, _ in places}) != 1:
        return None
    return places[0][0], max(number for _, number in places)


def _place(path: str) -> tuple[str, int] | None:
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return None if not first else (".".join(parts[:first]), int(parts[first]))


def is_needed(name: str, place: tuple[str, int] | None) -> bool:
    """Tell whether a parameter of this name is used up to the last hook, by what `layers_of` returned."""
    if place is None or not name.startswith(f"{place[0]}."):
        return True
    return int(name[len(place[0]) + 1 :].split(".")[0]) <= place[1]


def is_layer(hook: str, place: tuple[str, int]) -> bool:
    """Tell whether a hook is at a whole layer of the list that `layers_of` returned."""
    return hook.split(":")[0].rpartition(".")[0] == place[0]


def class_of(auto: Any, config: Any, name: str, **how: Any) -> type:
    """Return the class of which `auto` makes a model."""
    with loading(name), torch.device("meta"):
        return type(auto.from_config(config, **how))


def cut_class(kind: Any, hooks: Iterable[str]) -> Any:
    """Make a subclass of a base model's class whose models lack the layers after the hooks'."""
    place = layers_of(hooks)
    if place is None:
        return kind
    path, last = place

    def shorter(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        layers = self.get_submodule(path)
        if isinstance(layers, nn.ModuleList):
            del layers[last + 1 :]

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__init__": shorter})


def shorter_config(kind: Any, config: Any, hooks: Iterable[str], **how: Any) -> Any:
    """Return a config with fewer layers that makes the same modules as a cut model; else the config itself.

    With it, layers after the hooks' are not even allocated. Whether the modules are the same is seen on the
    meta device: their classes, their numbers, the shapes of their parameters and buffers.
    """
    place = layers_of(hooks)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    if place is None:
        return config
    short = copy.deepcopy(config)
    part = short.get_text_config()
    for key, value in list(vars(part).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(part, key, value[: place[1] + 1])
    part.num_hidden_layers = place[1] + 1
    try:
        with torch.device("meta"):
            found = kind._from_config(short, **how)
            wanted = cut_class(kind, hooks)._from_config(config, **how)
    # A config that its own class refuses, by whatever error.
    except Exception:
        return config
    return config if differences(found, wanted) else short


def differences(found: nn.Module, wanted: nn.Module) -> list[str]:
    """List the modules, numbers and shapes in which two models differ; their values are not compared."""
    one, other = _described(found), _described(wanted)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _described(model: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, module in model.named_modules():
        facts[name] = type(module).__qualname__
        for key, value in vars(module).items():
            if isinstance(value, (int, float, str)):
                facts[f"{name}.{key}"] = value
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        facts |= {f"{name}.{key}": (each.shape, each.dtype) for key, each in own}
    return facts
