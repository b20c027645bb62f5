"""The places of a model where transcoders stand, or could: each layer's MLP, in the model's order.

Letters: as core.types.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel, check_same
from sae_dist.llm.cut import layers_of

SHOWN = 3


@dataclass(frozen=True)
class Site:
    """A place whose output the graph replaces.

    Attributes:
        hook: where its transcoder reads; None: there is no transcoder.
        target: what is replaced, `path:out` or `path:in` in the base model.
        dictionary: None: its output counts as an error as a whole.
    """

    target: str
    hook: str | None = None
    dictionary: Dictionary | None = None


def sites_of(dictionaries: Sequence[Dictionary], lm: LanguageModel, force: bool = False) -> list[Site]:
    """Return the places of a set of transcoders, and those of the same kind in other layers.

    Raises:
        ConfigError: one is no transcoder, does not say its hooks, is another model's, or shares its target
            with another; or a layer has no such place.
    """
    if not dictionaries:
        raise ConfigError("dictionaries is empty; give one transcoder per layer, such as sd.load_set(...)")
    if not lm.causal or lm.model.get_output_embeddings() is None:
        raise ConfigError(f"{lm.name} predicts no next token; graphs are of causal language models")
    found: dict[str, Site] = {}
    for each in dictionaries:
        folder = each.place.folder
        if not each.is_transcoder:
            raise ConfigError(
                f"{folder} is an autoencoder, which reconstructs its own input; a graph needs transcoders, "
                "which reconstruct what a layer's MLP makes of it (train them with target_hook=...)"
            )
        if each.hook is None or each.target_hook is None:
            raise ConfigError(
                f"{folder} does not say its hook and target_hook; import it as a run, with both"
            )
        check_same(each, lm, force)
        hook, target = lm.resolve(each.hook), lm.resolve(each.target_hook, "target_hook")
        if target in found:
            other = found[target].dictionary
            assert other is not None
            raise ConfigError(
                f"{other.place.folder} and {folder} both reconstruct {target}; give one transcoder per target"
            )
        found[target] = Site(target, hook, each)
    return _in_order(found, lm.base)


def _in_order(found: dict[str, Site], base: nn.Module) -> list[Site]:
    """Return places in the order of layers, with those of layers that have no transcoder."""
    place = layers_of(found)
    if place is None:
        raise ConfigError(
            f"target_hook {', '.join([*found][:SHOWN])}: these are not in one list of layers; give "
            "hooks such as layers.0.mlp:out"
        )
    path = place[0]
    layers = base.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    number = len(path.split("."))
    by_layer: dict[int, list[Site]] = {}
    for target, site in found.items():
        by_layer.setdefault(int(target.split(":")[0].split(".")[number]), []).append(site)
    for layer in set(range(len(layers))) - set(by_layer):
        by_layer[layer] = [Site(_alike(next(iter(found)), number, layer, base))]
    return [site for layer in sorted(by_layer) for site in by_layer[layer]]


def _alike(target: str, number: int, layer: int, base: nn.Module) -> str:
    """Return the same place in another layer.

    Raises:
        ConfigError: that layer lacks it.
    """
    name, direction = target.split(":")
    parts = name.split(".")
    parts[number] = str(layer)
    name = ".".join(parts)
    if name not in dict(base.named_modules()):
        raise ConfigError(
            f"layer {layer} has no {name}, and no transcoder is given for it; give one, with its target_hook"
        )
    return f"{name}:{direction}"
