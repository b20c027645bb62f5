"""Sparse autoencoders on the activations of language models: a trained dictionary in Python.

    import sae_dist as sd
    d = sd.load("outputs/my_run")
    lm = sd.model(d)
    d.explain(lm, "The prompt")

docs/python.md explains each name. Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_dist.core.errors import ConfigError, SaeDistError
    from sae_dist.graph.graph import Graph
    from sae_dist.graph.trace import trace
    from sae_dist.interpret.attach import Attached
    from sae_dist.interpret.attribute.attribution import Attribution
    from sae_dist.interpret.attribute.metrics import logit, logit_diff
    from sae_dist.interpret.codes import Codes
    from sae_dist.interpret.dictionary import Dictionary
    from sae_dist.interpret.explaining.explanation import Explanation
    from sae_dist.interpret.interventions import Intervention, ablate, add, clamp, mean, project_out
    from sae_dist.interpret.load import load
    from sae_dist.interpret.model import LanguageModel, model
    from sae_dist.interpret.sets import DictionarySet, load_set
    from sae_dist.interpret.steer import Steered
    from sae_dist.interpret.watch import Watched

_PLACES = {
    "load": "load",
    **dict.fromkeys(("load_set", "DictionarySet"), "sets"),
    "Dictionary": "dictionary",
    "Codes": "codes",
    "model": "model",
    "LanguageModel": "model",
    "Attached": "attach",
    "Steered": "steer",
    "Watched": "watch",
    "Explanation": "explaining.explanation",
    "Attribution": "attribute.attribution",
    **dict.fromkeys(("logit", "logit_diff"), "attribute.metrics"),
    **dict.fromkeys(("Intervention", "clamp", "add", "ablate", "mean", "project_out"), "interventions"),
}
"""Public names, and the files of interpret/ that they are in."""
_GRAPH = {"Graph": "graph", "trace": "trace"}
"""The same of graph/."""

__all__ = [
    "Attached",
    "Attribution",
    "Codes",
    "ConfigError",
    "Dictionary",
    "DictionarySet",
    "Explanation",
    "Graph",
    "Intervention",
    "LanguageModel",
    "SaeDistError",
    "Steered",
    "Watched",
    "ablate",
    "add",
    "clamp",
    "load",
    "load_set",
    "logit",
    "logit_diff",
    "mean",
    "model",
    "project_out",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in ("ConfigError", "SaeDistError"):
        return getattr(importlib.import_module("sae_dist.core.errors"), name)
    if name not in _PLACES and name not in _GRAPH:
        raise AttributeError(f"module 'sae_dist' has no attribute {name!r}")
    place = f"graph.{_GRAPH[name]}" if name in _GRAPH else f"interpret.{_PLACES[name]}"
    found = getattr(importlib.import_module(f"sae_dist.{place}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
