"""Cautions beside results: what makes a number unlikely to mean what it seems to."""

from typing import Any

from sae_dist.config.run import Single
from sae_dist.export.exported import ExportedSae

FAR = 2.0
"""L0 is far from k if one is more than this times the other."""


def cautions(cfg: Single, sae: ExportedSae, result: dict[str, Any], begins: bool | None) -> list[str]:
    """Return a line for each number of an evaluation that cannot be trusted as it stands.

    Args:
        cfg: of the run, with the keys of `eval` that were asked for.
        begins: whether the language model's input begins with a special token; None: there is no model.
    """
    return [each for each in (_fvu(cfg, result), *_others(cfg, sae, result), _bos(sae, begins)) if each]


def _fvu(cfg: Single, result: dict[str, Any]) -> str | None:
    fvu = result.get("fvu")
    if fvu is None or fvu <= 1:
        return None
    place = f"llm.name={cfg.llm.name} hook={cfg.hook}" if cfg.runs_llm or cfg.reads_cache else "these rows"
    return f"FVU {fvu:.4g} is above 1, worse than the mean alone: was the dictionary trained on {place}?"


def _others(cfg: Single, sae: ExportedSae, result: dict[str, Any]) -> list[str]:
    found = []
    k, l0 = sae.k or sae.metadata.get("training_k"), result.get("l0")
    if k and l0 is not None and not k / FAR <= l0 <= k * FAR:
        found.append(f"L0 {l0:.1f} is far from k={k}: many latents are dead, or these are other activations")
    measured = result.get("eval_tokens")
    if measured is not None and measured < cfg.eval.tokens:
        found.append(f"measured on {measured:,} activations of {cfg.eval.tokens:,} asked: there is no more")
    recovered = result.get("ce_recovered")
    if recovered is not None and recovered > 1:
        found.append(
            f"CE recovered is above 100 %: the model predicts better with the reconstruction than without; "
            f"{result.get('ce_tokens') or cfg.eval.ce_tokens:,} tokens may be too few"
        )
    return found


def _bos(sae: ExportedSae, begins: bool | None) -> str | None:
    trained = sae.metadata.get("prepend_bos")
    if begins is None or trained is None or trained == begins:
        return None
    was, now = ("with", "without") if trained else ("without", "with")
    return (
        f"the dictionary was trained {was} a token at the beginning of sequences (prepend_bos="
        f"{str(trained).lower()}) and measured {now} one"
    )
