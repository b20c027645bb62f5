"""The words at the head of a graph's page and in a notebook: what was asked, and what the graph has."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_dist.graph.words import ERROR, LATENT, token_text, without_transcoder

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

PROMPT = 160
HALF = 0.5
CHECKED = {
    "row_sums": "sources and constant add up to each target: relative error",
    "linear": "targets follow sources that are changed at random: relative error",
    "faithful": "with nothing changed it is the model itself: relative error",
    "dtype": "computed in",
    "targets": "targets that were checked",
    "norms": "norms held still",
    "patterns": "attention patterns held still",
}
"""What `Checks` has, in words."""
BOUNDED = ("row_sums", "linear", "faithful")


@dataclass(frozen=True)
class Unchecked:
    """A stand-in for the verdict where the model was not asked."""

    level: str
    lines: tuple[str, ...]
    tables: tuple[Any, ...] = ()


def unchecked() -> Unchecked:
    """Return the words for a graph without a verdict."""
    said = (
        "Not checked: no intervention on the real model has confirmed this graph.",
        "It shows how a simplified model computes, with attention and norms held still.",
    )
    return Unchecked("unchecked", said)


def number(value: Any, digits: int = 3) -> str:
    """Return a number in few digits; None and what is not finite as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) else f"{value:.{digits}g}".replace("-", "−")


def percent(value: Any) -> str:
    """Return a share in percent; None and what is not finite as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{1 if 0 < abs(value) < 0.1 else 0}f} %".replace("-", "−")


def headline(graph: "Graph") -> tuple[str, list[tuple[str, str]]]:
    """Return the end of the prompt, and the likeliest targets with their probabilities."""
    shown = graph.prompt if len(graph.prompt) <= PROMPT else "…" + graph.prompt[-PROMPT:]
    logits = zip(graph.targets, graph.logits, strict=True)
    found = sorted(((node.probability or 0.0, token_text(text)) for text, node in logits), reverse=True)
    return shown, [(text, percent(probability)) for probability, text in found[:3]]


def numbers_of(graph: "Graph") -> list[tuple[str, str, str]]:
    """Return the numbers of a graph: name, value, and what it means."""
    latents = [node for node in graph.nodes if node.kind == LATENT]
    errors = sum(node.kind == ERROR for node in graph.nodes)
    distinct = len({(node.layer, node.latent) for node in latents})
    firing, followed, _ = graph.latents
    warning = "more than half" if graph.error_share > HALF else "less is better"
    errors_are = ("of influence", warning, without_transcoder(graph))
    return [
        (
            "latents",
            f"{len(latents):,}",
            f"{distinct:,} distinct; {firing:,} fire, {followed:,} were followed",
        ),
        ("links", f"{len(graph.weights):,}", f"among {len(graph.nodes):,} nodes, {errors:,} of them errors"),
        ("ends in errors", percent(graph.error_share), "; ".join(filter(None, errors_are))),
        ("not followed", percent(graph.unfollowed), "of influence ends in latents that were not followed"),
        ("replacement", percent(graph.replacement_score), "of what ends in tokens and errors is tokens"),
        ("completeness", percent(graph.completeness), "of inputs is no error, by influence"),
    ]


def words_of_checks(graph: "Graph") -> list[tuple[str, str]]:
    """Return the checks that tracing itself made, with their values and what these may be."""
    most = f", at most {number(graph.checks.tolerance)}"
    return [
        (words, _value(getattr(graph.checks, name)) + most * (name in BOUNDED))
        for name, words in CHECKED.items()
    ]


def _value(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)
