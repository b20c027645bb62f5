"""The price of a dictionary with weights in bfloat16: in cross-entropy on the run's held-out text.

Letters: as core.types.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.next_token import losses, sparing_outliers, targets
from sae_dist.tokens.source import held_out_tokens

CLEAN, FULL, ROUNDED = "model alone", "float32", "weights rounded to bfloat16"


@dataclass(frozen=True)
class Price:
    """Cross-entropy with the dictionary's reconstruction in place of activations, in nats per token.

    Attributes:
        entropy: by the dictionary's weights; and of the model alone.
        more: what rounding adds, the mean over chunks, paired; error: its standard error.
        changed: share of the codes of float32 that rounded weights do not have.
        tokens: predicted tokens.
    """

    entropy: dict[str, float]
    more: float
    error: float
    changed: float
    tokens: int


def price(d: Dictionary, lm: LanguageModel, tokens: int) -> Price | str:
    """Measure the price on at least so many held-out tokens; where that is impossible, say why."""
    run, facts = d.place.run, lm.facts
    if run is None or facts is None or not run.has_llm:
        return "the dictionary has no run, and so no held-out text"
    if not lm.causal or facts.target_first:
        return "the model predicts no next token, or reaches the target before the hook"
    rounded = d.to(dtype=torch.bfloat16).to(dtype=torch.float32)
    llm = FrozenLlm(lm.model, facts, with_head=True)
    source = held_out_tokens(run.tokens, facts, seed=run.seed, rows=run.shuffle.chunk_rows)
    changed = _Changed(d, rounded)
    multiple = run.tokens.max_norm_multiple
    acts: dict[str, Callable[[Tensor], Tensor] | None] = {
        CLEAN: None,
        FULL: lambda rows: _replaced(d, rows, multiple),
        ROUNDED: lambda rows: _replaced(rounded, changed.note(rows), multiple),
    }
    sums: dict[str, list[float]] = {name: [] for name in acts}
    counts: list[int] = []
    kept = 0
    with torch.no_grad():
        for chunk in source.open(0, None):
            for name, act in acts.items():
                sums[name].append(losses(llm.logits(chunk, act), chunk)[0])
            counts.append(int(targets(chunk).sum()))
            kept += int(chunk.keep_NS.sum())
            if kept >= tokens:
                break
    total = sum(counts)
    if len(counts) < 2 or not total:
        return "there is too little held-out text"
    each = [
        (one - other) / count for one, other, count in zip(sums[ROUNDED], sums[FULL], counts, strict=True)
    ]
    return Price(
        {name: sum(found) / total for name, found in sums.items()},
        mean(each),
        stdev(each) / len(each) ** 0.5,
        changed.share(),
        total,
    )


def _replaced(d: Dictionary, rows: Tensor, multiple: float | None) -> Tensor:
    """Return the reconstruction in place of the last columns of rows, as the evaluation splices it in."""
    raw = rows.to(d.dtype)
    x_RD, y_RE = raw[:, : d.width], raw[:, -d.W_dec.shape[1] :]
    return sparing_outliers(x_RD, y_RE, d.reconstruct(x_RD), multiple)


class _Changed:
    """A count of the codes that are lost when weights are rounded."""

    def __init__(self, d: Dictionary, rounded: Dictionary):
        self._d, self._rounded = d, rounded
        self._all = self._lost = 0

    def note(self, rows: Tensor) -> Tensor:
        """Count on rows, and return them."""
        x_RD = rows[:, : self._d.width].to(self._d.dtype)
        each = [d.encode(x_RD) for d in (self._d, self._rounded)]
        one, other = (found.rows * found.num_latents + found.latents for found in each)
        self._all += len(one)
        self._lost += int(torch.isin(one, other, invert=True).sum())
        return rows

    def share(self) -> float:
        """Return the share of codes that are lost."""
        return self._lost / max(self._all, 1)
