"""What the reconstruction costs the LLM: cross-entropy, or the final embedding of an encoder.

Letters: N sequences, S tokens per sequence, R kept activations, D width of the input, E width of the output
(D for an autoencoder), V vocabulary. Rows are [R, D], for a transcoder [R, D + E] with the target beside.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.functional import cross_entropy as cross_entropy_of

from sae_dist.core.types import TokenChunk
from sae_dist.export.exported import Encode, ExportedSae

Replace = Callable[[Tensor], Tensor]
KEYS = ("ce_clean", "ce_sae", "ce_mean_ablated", "ce_zero_ablated", "ce_recovered", "ce_recovered_zero")
LOGIT_ROWS = 4096


class Spliceable(Protocol):
    """What this file needs of `llm.frozen.FrozenLlm`."""

    def logits(self, chunk: TokenChunk, replace: Replace | None) -> Tensor: ...

    def final_hidden(self, chunk: TokenChunk, replace: Replace | None) -> Tensor: ...


def cross_entropy(
    llm: Spliceable, chunks: Iterator[TokenChunk], replacements: dict[str, Replace], tokens: int
) -> dict[str, Any]:
    """Nats per next token: clean, with each replacement at the kept positions, and what is recovered.

    ce_recovered = (ce_mean_ablated - ce_sae) / (ce_mean_ablated - ce_clean); ce_recovered_zero against
    zero ablation. A token is a target if it is kept and its predecessor is in the same segment.

    Args:
        replacements: `sae`, `mean_ablated`, `zero_ablated`: rows -> [R, E].
        tokens: activations to read, at least.
    """
    arms: dict[str, Replace | None] = {"clean": None, **replacements}
    sums = {name: 0.0 for name in arms}
    num_targets = num_kept = 0
    for chunk in chunks:
        target_NS = _targets(chunk)
        for name, replace in arms.items():
            sums[name] += _summed(llm.logits(chunk, replace), chunk, target_NS)
        num_targets += int(target_NS.sum())
        num_kept += int(chunk.keep_NS.sum())
        if num_kept >= tokens:
            break
    if num_targets == 0:
        return no_cross_entropy("there are no held-out tokens")
    result: dict[str, Any] = {f"ce_{name}": total / num_targets for name, total in sums.items()}
    for key, ablated in (("ce_recovered", "ce_mean_ablated"), ("ce_recovered_zero", "ce_zero_ablated")):
        gap = result[ablated] - result["ce_clean"]
        result[key] = (result[ablated] - result["ce_sae"]) / gap if gap > 0 else None
        if gap <= 0:
            result["ce_reason"] = f"{ablated} is not above ce_clean: the hook does not matter to the loss"
    return result | {"ce_tokens": num_targets}


def embedding_cosine(
    llm: Spliceable, chunks: Iterator[TokenChunk], replace: Replace, tokens: int
) -> dict[str, Any]:
    """Mean cosine of the mean-pooled final embedding of a segment, with and without `replace`."""
    total, num_segments, num_kept = 0.0, 0, 0
    for chunk in chunks:
        clean, spliced = (_pooled(llm.final_hidden(chunk, how), chunk) for how in (None, replace))
        total += float(cosine_similarity(clean, spliced, dim=1).sum(dtype=torch.float64))
        num_segments += len(clean)
        num_kept += int(chunk.keep_NS.sum())
        if num_kept >= tokens:
            break
    result = no_cross_entropy("the LLM is an encoder: it predicts no next token")
    return result | {"embedding_cosine": total / num_segments if num_segments else None}


def no_cross_entropy(reason: str) -> dict[str, Any]:
    """Every cross-entropy field null, and why."""
    return {key: None for key in KEYS} | {"ce_reason": reason}


def replacements(
    sae: ExportedSae, mean_E: Tensor, encode: Encode, max_norm_multiple: float | None
) -> dict[str, Replace]:
    """The reconstruction and the two ablations, of the activation or of a transcoder's target.

    Rows whose input is longer than `max_norm_multiple` times the median stay as they are in all three: the
    dictionary was never shown such rows.
    """

    def reconstruct(x_RD: Tensor) -> Tensor:
        return sae.decode(sae.encode(x_RD, encode), x_RD)

    def sparing_outliers(replace: Replace) -> Replace:
        def act(rows: Tensor) -> Tensor:
            raw = rows.to(mean_E)
            x_RD, y_RE = raw[:, : sae.width], raw[:, -len(mean_E) :]
            new_RE = replace(x_RD)
            if max_norm_multiple is not None:
                norm_R = x_RD.norm(dim=1, keepdim=True)
                new_RE = torch.where(norm_R > max_norm_multiple * norm_R.median(), y_RE, new_RE)
            return new_RE.to(rows)

        return act

    acts: dict[str, Replace] = {
        "sae": reconstruct,
        "mean_ablated": lambda x_RD: mean_E.expand(len(x_RD), -1),
        "zero_ablated": lambda x_RD: torch.zeros_like(mean_E).expand(len(x_RD), -1),
    }
    return {name: sparing_outliers(act) for name, act in acts.items()}


def _targets(chunk: TokenChunk) -> Tensor:
    """[N, S - 1]: whether token s + 1 is to be predicted from token s."""
    same_segment = chunk.segment_NS[:, 1:] == chunk.segment_NS[:, :-1]
    return same_segment & chunk.keep_NS[:, 1:]


def _summed(logits_NSV: Tensor, chunk: TokenChunk, target_NS: Tensor) -> float:
    target_NS = target_NS.to(logits_NSV.device)
    ids = chunk.ids_NS[:, 1:].to(logits_NSV.device)[target_NS]
    sequence, place = target_NS.nonzero(as_tuple=True)
    total = 0.0
    for part in range(0, len(ids), LOGIT_ROWS):
        rows = slice(part, part + LOGIT_ROWS)
        logits = logits_NSV[sequence[rows], place[rows]]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total += float(cross_entropy_of(logits, ids[rows], reduction="none").sum(dtype=torch.float64))
    return total


def _pooled(hidden_NSD: Tensor, chunk: TokenChunk) -> Tensor:
    """Mean of the final hidden states of each segment, special tokens included, [segments, D]."""
    segment_NS = chunk.segment_NS.to(hidden_NSD.device)
    N = len(segment_NS)
    number_NS = segment_NS + torch.arange(N, device=segment_NS.device)[:, None] * (segment_NS.max() + 1)
    _, which = number_NS[segment_NS > 0].unique(return_inverse=True)
    rows = hidden_NSD[segment_NS > 0].float()
    counts = torch.bincount(which)
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, which, rows)
    return sums / counts[:, None]
