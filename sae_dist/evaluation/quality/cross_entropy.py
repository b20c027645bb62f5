"""The cost of the reconstruction to the LLM: in cross-entropy, or in the final embedding of an encoder.

Letters: as core.types; R kept activations. Rows are [R, D]; for a transcoder [R, D + E], input and target.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_dist.core.types import TokenChunk
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.llm.next_token import losses, sparing_outliers, targets
from sae_dist.metrics.evaluated import CROSS_ENTROPY, keys

Replace = Callable[[Tensor], Tensor]
ABLATIONS = ("mean_ablated", "zero_ablated")


class Spliceable(Protocol):
    """The methods of `llm.frozen.FrozenLlm` that this file uses."""

    def logits(self, chunk: TokenChunk, replace: Replace | None) -> Tensor: ...

    def final_hidden(self, chunk: TokenChunk, replace: Replace | None) -> Tensor: ...


def cross_entropy(
    llm: Spliceable, chunks: Iterator[TokenChunk], replacements: dict[str, Replace], tokens: int
) -> dict[str, dict[str, Any]]:
    """Measure nats per next token, clean and with each replacement at the kept positions.

    ce_recovered = (ce_mean_ablated - ce_sae) / (ce_mean_ablated - ce_clean); ce_recovered_zero against
    zero ablation. kl, kl_mean_ablated: mean KL of the next-token distribution from the clean one. Targets as
    in `llm.next_token`.

    Args:
        replacements: rows -> [R, E]: `mean_ablated`, `zero_ablated`, and dictionaries by any other name.
        tokens: activations to read, at least.

    Returns:
        The numbers of each dictionary, by its name.
    """
    arms: dict[str, Replace | None] = {"clean": None, **replacements}
    dictionaries = [name for name in replacements if name not in ABLATIONS]
    sums = {name: 0.0 for name in arms}
    divergences = {name: 0.0 for name in arms}
    num_targets = num_kept = 0
    for chunk in chunks:
        clean = llm.logits(chunk, None)
        for name, replace in arms.items():
            logits = clean if replace is None else llm.logits(chunk, replace)
            compared = None if name in ("clean", "zero_ablated") else clean
            entropy, divergence = losses(logits, chunk, compared)
            sums[name] += entropy
            divergences[name] += divergence
        num_targets += int(targets(chunk).sum())
        num_kept += int(chunk.keep_NS.sum())
        if num_kept >= tokens:
            break
    if num_targets == 0:
        return {name: no_cross_entropy("there are no held-out tokens") for name in dictionaries}
    nats = {name: total / num_targets for name, total in sums.items()}
    common = {f"ce_{name}": nats[name] for name in ("clean", *ABLATIONS)} | {"ce_tokens": num_targets}
    common["kl_mean_ablated"] = divergences["mean_ablated"] / num_targets
    return {
        name: common
        | {"ce_sae": nats[name], "kl": divergences[name] / num_targets}
        | _recovered(nats, nats[name])
        for name in dictionaries
    }


def _recovered(nats: dict[str, float], spliced: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, ablated in (("ce_recovered", "mean_ablated"), ("ce_recovered_zero", "zero_ablated")):
        gap = nats[ablated] - nats["clean"]
        result[key] = (nats[ablated] - spliced) / gap if gap > 0 else None
        if gap <= 0:
            result["ce_reason"] = f"ce_{ablated} is not above ce_clean: the hook does not matter to the loss"
    return result


def embedding_cosine(
    llm: Spliceable, chunks: Iterator[TokenChunk], dictionaries: dict[str, Replace], tokens: int
) -> dict[str, dict[str, Any]]:
    """Measure the mean cosine of a segment's mean-pooled final embedding, clean and with each dictionary."""
    sums = dict.fromkeys(dictionaries, 0.0)
    num_segments = num_kept = 0
    for chunk in chunks:
        clean = _pooled(llm.final_hidden(chunk, None), chunk)
        for name, replace in dictionaries.items():
            spliced = _pooled(llm.final_hidden(chunk, replace), chunk)
            sums[name] += float(cosine_similarity(clean, spliced, dim=1).sum(dtype=torch.float64))
        num_segments += len(clean)
        num_kept += int(chunk.keep_NS.sum())
        if num_kept >= tokens:
            break
    common = no_cross_entropy("the LLM is an encoder: it predicts no next token")
    return {
        name: common | {"embedding_cosine": total / num_segments if num_segments else None}
        for name, total in sums.items()
    }


def no_cross_entropy(reason: str) -> dict[str, Any]:
    """Return null for every number of cross-entropy, with the reason."""
    return {key: None for key in keys(CROSS_ENTROPY)} | {"ce_reason": reason}


def replacements(
    saes: dict[str, ExportedSae], mean_E: Tensor, encode: Encode, max_norm_multiple: float | None
) -> dict[str, Replace]:
    """Make functions that replace rows by each dictionary's reconstruction, the mean or zeros.

    For a transcoder, it is the target that is replaced. Rows whose input is longer than `max_norm_multiple`
    times the median stay unchanged in all of them: the dictionaries were never trained on such rows.
    """
    width = next(iter(saes.values())).width

    def reconstruct(x_RD: Tensor, sae: ExportedSae) -> Tensor:
        return sae.decode(sae.encode(x_RD, encode), x_RD)

    def act_on(rows: Tensor, replace: Replace) -> Tensor:
        raw = rows.to(mean_E)
        x_RD, y_RE = raw[:, :width], raw[:, -len(mean_E) :]
        return sparing_outliers(x_RD, y_RE, replace(x_RD), max_norm_multiple).to(rows)

    acts: dict[str, Replace] = {name: partial(reconstruct, sae=sae) for name, sae in saes.items()}
    acts["mean_ablated"] = lambda x_RD: mean_E.expand(len(x_RD), -1)
    acts["zero_ablated"] = lambda x_RD: torch.zeros_like(mean_E).expand(len(x_RD), -1)
    return {name: partial(act_on, replace=act) for name, act in acts.items()}


def _pooled(hidden_NSD: Tensor, chunk: TokenChunk) -> Tensor:
    """Return the mean of the final hidden states of each segment, with its special tokens, [segments, D]."""
    segment_NS = chunk.segment_NS.to(hidden_NSD.device)
    N = len(segment_NS)
    number_NS = segment_NS + torch.arange(N, device=segment_NS.device)[:, None] * (segment_NS.max() + 1)
    _, which = number_NS[segment_NS > 0].unique(return_inverse=True)
    rows = hidden_NSD[segment_NS > 0].float()
    counts = torch.bincount(which)
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, which, rows)
    return sums / counts[:, None]
