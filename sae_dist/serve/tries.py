"""Trials with the model: the latents that fire on a sentence, and the text that a steered model writes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line
from sae_dist.serve.room import Bench, Stopped
from sae_dist.serve.view import Piece, level
from sae_dist.serve.words import number, piece

if TYPE_CHECKING:
    from sae_dist.interpret.explaining.explanation import Explanation

MOST_TEXT, MOST_NEW, MOST_TOKENS = 2000, 64, 512
"""Characters of a text, tokens that are generated, and tokens of a text."""
TOP = 24
DOSES = {"clamp": "set its code to", "add": "add to its code", "ablate": "set its code to 0"}


@dataclass(frozen=True)
class Explained:
    """The latents that fired on a sentence, as a page shows them.

    Attributes:
        headline: about model, text and what is missing.
        summary: how many fired, and how many are unusual.
        rows: of pieces, shaded: what it shows, with the pieces.
        latents: number, and the cells of HEADINGS but the first.
    """

    headline: list[str]
    summary: str
    headings: tuple[str, ...]
    rows: list[tuple[str, list[Piece]]]
    latents: list[dict[str, Any]]


@dataclass(frozen=True)
class Written:
    """The texts that a model writes after a prompt, as it is and steered.

    Attributes:
        changed: the change as a share of activations' usual norm, in words.
        remarks: what the user should know.
    """

    prompt: str
    plain: str
    steered: str
    how: str
    changed: str
    remarks: list[str]


def explained(text: str, latent: int | None, labels: Callable[[list[int]], dict[int, str]]) -> Any:
    """Return the wish to know which latents fire on a text.

    Args:
        latent: shown by itself, too.
        labels: gives words for latents.
    """

    def wish(bench: Bench) -> Explained:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_length(bench, text)
            return _explained(bench.dictionary.explain(bench.lm, text, top=TOP), latent, labels)

    return wish


def _explained(
    e: "Explanation", latent: int | None, labels: Callable[[list[int]], dict[int, str]]
) -> Explained:
    from sae_dist.interpret.explaining.view import HEADINGS, headline, latent_views, summary, token_views

    views = token_views(e)
    rows = [
        ("What fired, by code times surprise", [each.score for each in views], 0.0, "k"),
        ("What is not explained (FVU)", [each.fvu for each in views], 1.0, "f"),
    ]
    if latent is not None:
        code = [0.0] * len(views)
        for place, each, value in zip(*(e.pairs[key] for key in ("position", "latent", "code")), strict=True):
            if each == latent:
                code[place] = value
        said = f"Latent {latent}" + ("" if any(code) else ", which does not fire here")
        rows.insert(0, (said, code, 0.0, "k"))
    pieces = []
    for title, values, most, look in rows:
        plain = [0.0 if view.flag == "special" else value for view, value in zip(views, values, strict=True)]
        top = most or max(plain, default=0.0)
        pieces.append(
            (
                title,
                [
                    Piece(piece(view.shown), f"{look}{level(value, top)} {view.flag}".strip(), view.words)
                    for view, value in zip(views, plain, strict=True)
                ],
            )
        )
    seen = e.latents_seen["latent"][:TOP]
    words = labels(seen)
    latents = [
        {
            "latent": number_,
            "label": words.get(number_, ""),
            "cells": view.cells[1:],
            "unusual": view.unusual,
            "before": view.before,
            "strongest": view.strongest,
            "after": view.after,
        }
        for number_, view in zip(seen, latent_views(e), strict=False)
    ]
    return Explained(headline(e), summary(e), HEADINGS[1:], pieces, latents)


def written(prompt: str, latent: int, how: str, dose: float, tokens: int) -> Any:
    """Return the wish to see what the model writes after a prompt, as it is and steered.

    Args:
        how: a word of DOSES.
        dose: in units of codes.
        tokens: how many are generated.
    """

    def wish(bench: Bench) -> Written:
        from sae_dist.interpret.interventions import ablate, add, clamp

        lm = bench.lm
        if not lm.causal:
            raise ConfigError(f"{lm.name} is an encoder: it generates no text")
        if lm.tokenizer is None:
            raise ConfigError(f"{lm.name} has no tokenizer, so it reads no prompt")
        _check_length(bench, prompt)
        change = {"clamp": lambda: clamp(dose), "add": lambda: add(dose), "ablate": ablate}[how]()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plain = _generated(bench, prompt, tokens)
            with bench.dictionary.steer(lm, {latent: change}) as session:
                steered = _generated(bench, prompt, tokens)
        remarks = [
            first_line(Warning(str(each.message)))
            for each in caught
            if issubclass(each.category, UserWarning)
        ]
        if session.largest == 0 or plain == steered:
            remarks.append("The model writes the same text.")
        said = DOSES[how] + ("" if how == "ablate" else f" {number(dose)}")
        changed = f"{100 * session.largest:.2g} % of the usual norm of activations, at most"
        return Written(prompt, plain, steered, said, changed, list(dict.fromkeys(remarks)))

    return wish


def _check_length(bench: Bench, text: str) -> None:
    if bench.lm.tokenizer is not None and (count := len(bench.lm.ids(text))) > MOST_TOKENS:
        raise ConfigError(f"the text has {count:,} tokens; give at most {MOST_TOKENS:,} here")


def _generated(bench: Bench, prompt: str, tokens: int) -> str:
    """Return the most likely tokens after a prompt, one after the other.

    Raises:
        Stopped: the program ends.
    """
    import torch

    lm = bench.lm
    inputs = lm.batch([prompt])

    def ends(_ids: Any, _scores: Any, **_rest: Any) -> Any:
        return torch.full((1,), bench.stopped.is_set(), device=lm.device)

    with torch.no_grad():
        found = lm.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=lm.pad_id,
            stopping_criteria=[ends],
        )
    if bench.stopped.is_set():
        raise Stopped
    text = lm.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)
    return str(text)
