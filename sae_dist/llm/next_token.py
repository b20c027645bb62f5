"""Measures of a model's next-token distributions over a chunk.

Letters: as core.types; E width of what is replaced.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from sae_dist.core.types import TokenChunk

LOGIT_ROWS = 4096


def targets(chunk: TokenChunk) -> Tensor:
    """Mark [N, S - 1] where token s + 1 is to be predicted from token s.

    It is if token s + 1 is kept and its predecessor is in the same segment.
    """
    same_segment = chunk.segment_NS[:, 1:] == chunk.segment_NS[:, :-1]
    return same_segment & chunk.keep_NS[:, 1:]


def losses(logits_NSV: Tensor, chunk: TokenChunk, clean_NSV: Tensor | None = None) -> tuple[float, float]:
    """Sum cross-entropy, and KL(p_clean, p) of the whole distributions, over the targets, in nats.

    Args:
        clean_NSV: the logits of p_clean; None: KL is reported as 0.
    """
    target_NS = targets(chunk).to(logits_NSV.device)
    ids = chunk.ids_NS[:, 1:].to(logits_NSV.device)[target_NS]
    sequence, place = target_NS.nonzero(as_tuple=True)
    entropy = divergence = 0.0
    for part in range(0, len(ids), LOGIT_ROWS):
        rows = slice(part, part + LOGIT_ROWS)
        logits = _full(logits_NSV[sequence[rows], place[rows]])
        entropy += float(cross_entropy(logits, ids[rows], reduction="none").sum(dtype=torch.float64))
        if clean_NSV is not None:
            clean = _full(clean_NSV[sequence[rows], place[rows]])
            log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
            each = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
            divergence += float(each.sum(dtype=torch.float64))
    return entropy, divergence


def sparing_outliers(x_RD: Tensor, y_RE: Tensor, new_RE: Tensor, multiple: float | None) -> Tensor:
    """Replace `y_RE` by `new_RE`, except in rows whose input is longer than `multiple` times the median.

    Dictionaries were never trained on such rows. None: all rows are replaced.
    """
    if multiple is None:
        return new_RE
    norm_R = x_RD.norm(dim=1, keepdim=True)
    return torch.where(norm_R > multiple * norm_R.median(), y_RE, new_RE)


def _full(logits: Tensor) -> Tensor:
    """Convert logits to float32, unless they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()
