"""The JSON file of a study: every number, each prompt's effects under each condition too."""

import math
from typing import Any

import numpy as np

from sae_dist.interpret.statistics import LEVEL, estimates
from sae_dist.interpret.study.claims import part
from sae_dist.interpret.study.conditions import STEERED
from sae_dist.interpret.study.effects import MEANS
from sae_dist.interpret.study.study import Study


def as_json(study: Study) -> dict[str, Any]:
    """Return everything that was measured, with each prompt's effects, as JSON-able values."""
    asked, effects = study.asked, study.effects
    decode = study.lm.tokenizer.decode
    where = {each.hypothesis: n for n, each in enumerate(study.conditions) if each.kind == STEERED}
    return {
        "command": asked.command,
        "dictionary": repr(study.dictionary),
        "folder": str(study.dictionary.place.folder),
        "model": study.lm.name,
        "hook": study.dictionary.hook,
        "target_hook": study.dictionary.target_hook,
        "positions": asked.positions,
        "tokens": asked.tokens,
        "seed": asked.seed,
        "draws_of_a_control": asked.controls,
        "level": LEVEL,
        "measures": MEANS,
        "claims_are_of": study.primary,
        "warnings": study.warned,
        "hypotheses": [
            _hypothesis_json(study, number, where[number]) for number in range(len(study.hypotheses))
        ],
        "prompts": [
            {
                "prompt": each.text,
                "tokens": list(each.ids),
                "target": decode(list(each.target)) if each.target else None,
                "against": decode(list(each.against)) if each.against else None,
                "generated": decode(text),
            }
            for each, text in zip(study.prompts, effects.clean_texts, strict=True)
        ],
        "clean": {name: _rounded(value) for name, value in effects.clean.items()},
        "conditions": [
            {
                "hypothesis": each.hypothesis,
                "kind": each.kind,
                "draw": each.draw,
                "latent": each.latent,
                "code": each.intervention.value,
                "change_of_norm": _rounded(effects.shares[n : n + 1])[0],
                "changed": effects.changed[n],
                "effects": {name: _rounded(value[:, n]) for name, value in effects.of.items()},
            }
            for n, each in enumerate(study.conditions)
        ],
    }


def _hypothesis_json(study: Study, number: int, condition: int) -> dict[str, Any]:
    effects, each = study.effects, study.judgements[number]
    decode = study.lm.tokenizer.decode
    return {
        "how": each.hypothesis.how,
        "latent": each.hypothesis.latent,
        "dose": each.hypothesis.times,
        "code": each.hypothesis.value,
        "mean": each.mean,
        "interval": _rounded([each.lower, each.upper]),
        "interval_by_holm": _rounded([each.claimed_lower, each.claimed_upper]),
        "p": each.p,
        "p_by_holm": each.adjusted,
        "controls": {name: _rounded(reach) for name, reach in each.controls.items()},
        "controls_not_passed": list(each.not_passed),
        "claimed": each.claimed,
        "words": each.words,
        "changed": effects.changed[condition],
        "change_of_norm": float(effects.shares[condition]),
        "largest_change_of_norm": float(effects.largest[condition]),
        "generated": [decode(text) for text in effects.texts[condition]],
        "effects": {
            name: dict(zip(found, _rounded(list(found.values())), strict=True))
            for name in effects.of
            for found in summary(study, name, [condition])
        },
    }


def summary(study: Study, measure_: str, at: list[int]) -> list[dict[str, float]]:
    """Return mean and interval of a measure at some conditions, not adjusted for their number."""
    found = estimates(study.effects.of[measure_][:, at], study.asked.seed)
    own = part(found, range(len(at)))
    lower, upper = own.intervals()
    return [
        {"mean": float(own.mean_C[n]), "lower": float(lower[n]), "upper": float(upper[n])}
        for n in range(len(at))
    ]


def _rounded(values: Any) -> list[float | None]:
    return [None if not math.isfinite(each) else float(f"{each:.6g}") for each in np.asarray(values).tolist()]
