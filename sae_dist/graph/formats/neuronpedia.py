"""A graph as the JSON that Neuronpedia, circuit-tracer and Anthropic's pages of attribution graphs read.

Every node has an id of its own: kind, layer, position and latent are all in it. What those pages read out of
words is kept readable: the probability in a logit's words, and one number for layer and latent (Cantor's).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.atlas.formats.circuit_tracer import number_of
from sae_dist.atlas.formats.names import plain
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.run_folder import EXPORT
from sae_dist.core.text import visible
from sae_dist.graph.known import Known, label_of
from sae_dist.graph.words import (
    ERROR,
    LATENT,
    LOGIT,
    TOKEN,
    cumulative,
    numbers_of_layers,
    target_texts,
    without_transcoder,
)

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph, Node

TYPES = {
    LATENT: "cross layer transcoder",
    ERROR: "mlp reconstruction error",
    TOKEN: "embedding",
    LOGIT: "logit",
}
"""What readers of the format call each kind; a transcoder of one layer has no word of its own there."""
NO_FEATURE = -1
"""An error's feature, where circuit-tracer takes no null."""
SCHEMA_VERSION = 1
"""Features are numbered by Cantor's pairing."""
BEGINNING = 40
"""Characters of a prompt that a name has."""
SETTINGS = {"batch_size": "batch", "max_feature_nodes": "max_nodes"}
"""Their names of settings, and those of `Graph.settings`."""
PRUNING = ("node_threshold", "edge_threshold")


def write_neuronpedia(
    path: Path, graph: "Graph", known: Mapping[tuple[int, int], Known] | None = None, **names: Any
) -> Path:
    """Write a graph's JSON, complete or absent; see `neuronpedia`. Return its path.

    Raises:
        ConfigError: an edge or an activation is not finite.
    """
    content = neuronpedia(graph, known, **names)
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        raise ConfigError(f"{path} is not written: the graph has numbers that are not finite") from None
    write_text(path, text + "\n")
    return path


def neuronpedia(
    graph: "Graph",
    known: Mapping[tuple[int, int], Known] | None = None,
    *,
    slug: str | None = None,
    scan: str | None = None,
    description: Sequence[str] = (),
    source_set: str | None = None,
    features_url: str | None = None,
) -> dict[str, Any]:
    """Return a graph in the format of Neuronpedia's schema.

    Args:
        known: what atlases say of latents; it becomes the words of nodes.
        slug: the graph's name there; None: the beginning of the prompt, and digits of it, set and settings.
        scan: the model's name there; None: the last part of the model's name.
        description: lines about the graph, such as a verdict's.
        source_set: Neuronpedia's own name of the dictionaries, if it has pages of them.
        features_url: the address of files of features, such as an atlas hands on for circuit-tracer.
    """
    numbers = numbers_of_layers(graph)
    scores = cumulative(graph)
    words = _Words(graph, known or {}, numbers)
    nodes = [words.row(node, score) for node, score in zip(graph.nodes, scores, strict=True)]
    ids = [node.id for node in graph.nodes]
    edges = zip(graph.rows.tolist(), graph.columns.tolist(), graph.weights.tolist(), strict=True)
    links = [
        {"source": ids[source], "target": ids[target], "weight": weight} for target, source, weight in edges
    ]
    settings = dict(graph.settings)
    details = {"neuronpedia_source_set": source_set, "feature_json_base_url": features_url}
    about: dict[str, Any] = {
        "slug": plain(slug) if slug else _slug(graph),
        "scan": plain(scan or Path(graph.model).name),
        "prompt_tokens": [_text(each) for each in graph.tokens],
        "prompt": _text(graph.prompt),
        "transcoder_list": [_run_name(Path(each.folder)) for each in graph.layers if each.folder],
        "schema_version": SCHEMA_VERSION,
        "info": {
            "description": "\n".join([*description, *filter(None, [without_transcoder(graph)])]),
            "generator": {"name": "sae_dist", "version": version("sae-dist")},
        },
        "generation_settings": {"max_n_logits": len(graph.logits)}
        | {theirs: settings[ours] for theirs, ours in SETTINGS.items() if settings.get(ours) is not None},
        "pruning_settings": {name: settings[name] for name in PRUNING if settings.get(name) is not None},
    }
    if given := {key: value for key, value in details.items() if value}:
        about["feature_details"] = given
    if settings.get("node_threshold") is not None:
        about["node_threshold"] = settings["node_threshold"]
    chosen = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": about, "qParams": chosen, "nodes": nodes, "links": links}


class _Words:
    """The rows of nodes, with all their words."""

    def __init__(self, graph: "Graph", known: Mapping[tuple[int, int], Known], numbers: tuple[int, ...]):
        self.graph, self.known, self.numbers = graph, known, numbers
        self.targets = target_texts(graph)
        self.last = max(numbers, default=-1) + 1

    def row(self, node: "Node", score: float | None) -> dict[str, Any]:
        """Return the row of a node, its share of influence up to it given."""
        return {
            "node_id": node.id,
            # Some readers take this one for the node's id: it must be no less unique.
            "jsNodeId": node.id,
            "feature": self._feature(node),
            "feature_type": TYPES[node.kind],
            "layer": self._layer(node),
            "ctx_idx": node.position,
            "run_idx": 0,
            "reverse_ctx_idx": len(self.graph.tokens) - 1 - node.position,
            "clerp": self._words(node),
            "token_prob": float(node.probability or 0.0),
            "is_target_logit": node.kind == LOGIT,
            "influence": score,
            "activation": node.activation,
        }

    def _feature(self, node: "Node") -> int:
        if node.kind == LATENT:
            assert node.latent is not None
            return number_of(self.numbers[node.layer], node.latent)
        if node.kind == LOGIT:
            assert node.token is not None
            return node.token
        return node.position if node.kind == TOKEN else NO_FEATURE

    def _layer(self, node: "Node") -> str:
        if node.kind == TOKEN:
            return "E"
        return str(self.last if node.kind == LOGIT else self.numbers[node.layer])

    def _words(self, node: "Node") -> str:
        if node.kind == LATENT:
            words = label_of(self.known.get((node.layer, node.latent or 0)))
            return _text(words) or f"L{self.numbers[node.layer]} #{node.latent}"
        token = _text(self.graph.tokens[node.position])
        if node.kind == ERROR:
            return f'Err: mlp "{token}"'
        if node.kind == TOKEN:
            return f'Emb: "{token}"'
        # The probability is read out of what follows the first "(p=".
        shown = _text(self.targets.get(node.token or 0, str(node.token))).replace("(p=", "(p =")
        return f'Output "{shown}" (p={float(node.probability or 0.0):.3f})'


def _run_name(folder: Path) -> str:
    return folder.parent.name if folder.name == EXPORT else folder.name


def _text(words: str) -> str:
    """Return words without signs that a page would obey."""
    return visible(words)


def _slug(graph: "Graph") -> str:
    said = json.dumps(
        [list(map(int, graph.ids)), graph.set_name, sorted(graph.settings.items(), key=str)], default=str
    )
    return f"{plain(graph.prompt[:BEGINNING])}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
