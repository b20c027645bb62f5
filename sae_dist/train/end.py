"""Gaps of the evaluation after the last step, known before the first."""

from collections.abc import Sequence

import torch

from sae_dist.config.rules.checkpoint import weight_bytes
from sae_dist.config.run import Single
from sae_dist.core.types import LlmFacts
from sae_dist.llm.whole import why_no_room, why_not_held, why_not_spliced


def left_out(
    cfgs: Sequence[Single], widths: Sequence[int], facts: LlmFacts | None, device: torch.device
) -> list[str]:
    """Return a line for what the evaluation leaves out of these dictionaries; empty: nothing.

    Args:
        widths: of a latent's rows, as `config.rules.checkpoint` counts them, one of each dictionary.
        facts: of the LLM; None if there is none.
    """
    cfg, ahead = cfgs[0], "the evaluation at the end"
    if cfg.eval.tokens == 0:
        return [f"{ahead} is off (eval.tokens=0)"]
    largest = max(weight_bytes(each, width) for each, width in zip(cfgs, widths, strict=True))
    reason = why_no_room(largest, device)
    if reason is None and facts is not None:
        reason = why_not_held(facts, cfg.llm.dtype, device)
    if reason is not None:
        return [f"{ahead} is left out: {reason}"]
    if facts is None or cfg.eval.ce_tokens == 0:
        return []
    # Of a grid's places those differ in this alone: is a target reached before its hook?
    places = {own.target_first: own for own in facts.pairs}
    reasons = [why_not_spliced(cfg.llm, own, device) for own in places.values()]
    return [f"{ahead} leaves cross-entropy out: {reason}" for reason in reasons if reason is not None]
