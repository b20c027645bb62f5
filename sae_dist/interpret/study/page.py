"""The page of a study: what is claimed, figures, effects and texts side by side."""

from math import isfinite
from pathlib import Path
from typing import Any

from sae_dist.core import template
from sae_dist.interpret.statistics import LEVEL
from sae_dist.interpret.study.asked import DOSED
from sae_dist.interpret.study.chart import COLOURS, chart
from sae_dist.interpret.study.claims import Judgement, probability
from sae_dist.interpret.study.conditions import CONTROLS, STEERED
from sae_dist.interpret.study.effects import MEANS
from sae_dist.interpret.study.study import SAID, Study
from sae_dist.interpret.study.written import summary

TEXTS = 12
"""Of how many prompts the page shows what is generated; the JSON file has all."""
HEADS = {
    "target": "target",
    "kl": "KL",
    "kl_end": "KL at the end",
    "perplexity": "log-perplexity",
    "repetition": "repetition",
}


def rendered(study: Study) -> str:
    """Render the page; a missing value is an error."""
    arms = [_arm(study, number) for number in range(len(study.asked.arms))]
    claimed = [each.words for each in study.judgements if each.claimed]
    values = {
        "title": ", ".join(map(str, study.asked.arms)),
        "about": _about(study),
        "arms": [each for each in arms if each["judgements"]],
        "claimed": claimed,
        "refused": [each.words for each in study.judgements if not each.claimed],
        "warned": study.warned,
        "command": study.asked.command,
        "controls": [(COLOURS[name], name, means) for name, means in CONTROLS.items()],
        "measures": [(HEADS[name], means) for name, means in MEANS.items() if name in study.effects.of],
        "primary": SAID[study.primary],
        "has_target": study.primary == "target",
        "level": f"{100 * (1 - LEVEL):g} %",
        "num_hypotheses": len(study.hypotheses),
        "shown": min(TEXTS, len(study.prompts)),
        "num_prompts": len(study.prompts),
    }
    return template.rendered(Path(__file__).with_name("page.html"), values)


def _about(study: Study) -> list[tuple[str, str]]:
    asked, dictionary = study.asked, study.dictionary
    hook = dictionary.hook or ""
    if dictionary.target_hook:
        hook += f" to {dictionary.target_hook}"
    targets = sorted({study.lm.tokenizer.decode(list(each.target)) for each in study.prompts if each.target})
    found = [
        ("model", study.lm.name),
        ("hook", hook),
        ("dictionary", f"{dictionary.kind}, {dictionary.num_latents:,} latents"),
        ("folder", str(dictionary.place.folder)),
        ("prompts", f"{len(study.prompts)} from {asked.prompts or 'the beginnings of held-out texts'}"),
        ("generated", f"{asked.tokens} tokens each, greedy"),
        ("positions", asked.positions),
        ("controls", f"{asked.controls} draws of each random one"),
        ("seed", str(asked.seed)),
    ]
    if targets:
        named = ", ".join(map(repr, targets[:4])) + (
            f" and {len(targets) - 4} more" if len(targets) > 4 else ""
        )
        found.insert(5, ("target", named))
    return found


def _arm(study: Study, number: int) -> dict[str, Any]:
    own = [n for n, each in enumerate(study.hypotheses) if each.arm == number]
    judgements = [study.judgements[n] for n in own]
    places = {each.hypothesis: n for n, each in enumerate(study.conditions) if each.kind == STEERED}
    at = [places[n] for n in own]
    arm = study.asked.arms[number]
    return {
        "name": f"{arm.how} {arm.latent}",
        "dosed": arm.how in DOSED,
        "judgements": judgements,
        "chart": chart(judgements, f"Effect of {arm.how} {arm.latent} on {SAID[study.primary]} by dose")
        if judgements
        else "",
        "heads": [HEADS[name] for name in study.effects.of],
        "rows": _rows(study, judgements, at),
        "texts": _texts(study, own, at),
    }


def _rows(study: Study, judgements: list[Judgement], at: list[int]) -> list[dict[str, Any]]:
    columns = [summary(study, name, at) for name in study.effects.of]
    return [
        {
            "dose": _dose(each),
            "code": "" if each.hypothesis.value is None else f"{each.hypothesis.value:.3g}",
            "asked": each.hypothesis.asked,
            "cells": [_cell(column[n]) for column in columns],
            "norm": f"{study.effects.shares[at[n]]:.2f}",
            "changed": f"{study.effects.changed[at[n]]:,}",
            "p": probability(each.adjusted).removeprefix("= "),
            "claimed": each.claimed,
            "missed": ", ".join(each.not_passed) if each.adjusted <= LEVEL else "",
        }
        for n, each in enumerate(judgements)
    ]


def _cell(found: dict[str, float]) -> tuple[str, str]:
    """Return a mean and its interval as text."""
    if not isfinite(found["upper"]):
        return f"{found['mean']:+.3g}", "few prompts differ"
    return f"{found['mean']:+.3g}", f"{found['lower']:+.3g} to {found['upper']:+.3g}"


def _texts(study: Study, own: list[int], at: list[int]) -> list[dict[str, Any]]:
    decode = study.lm.tokenizer.decode
    found = []
    for row in range(min(TEXTS, len(study.prompts))):
        after = [("as it is", decode(study.effects.clean_texts[row]), False)]
        for n, place in zip(own, at, strict=True):
            text = decode(study.effects.texts[place][row])
            after.append((_dose(study.judgements[n]), text, text == after[0][1]))
        found.append({"prompt": study.prompts[row].text, "after": after})
    return found


def _dose(each: Judgement) -> str:
    times = each.hypothesis.times
    return each.hypothesis.how if times is None else f"{times:g}x"
