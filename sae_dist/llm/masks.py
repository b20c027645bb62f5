"""Attention masks of packed sequences, explicit and 4-D: transformers uses such masks unchanged."""

from typing import Any

import torch
from torch import Tensor


def packed_masks(
    segment_NS: Tensor, position_NS: Tensor, config: Any, *, causal: bool, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Build additive masks [N, 1, S, S] in which a token sees its own segment only.

    Padding sees the padding, so that no softmax is over nothing.

    Args:
        config: the text model's; with a sliding window, tokens see no further than it allows.

    Returns:
        One mask; for models whose layers differ in kind, one for each kind.
    """
    seen_NSS = segment_NS[:, :, None] == segment_NS[:, None, :]
    if causal:
        seen_NSS.tril_()
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    if not window:
        return _additive(seen_NSS, dtype)
    distance_NSS = (position_NS[:, :, None] - position_NS[:, None, :]).abs()
    near_NSS = seen_NSS & (distance_NSS < window if causal else distance_NSS <= window)
    if not kinds:
        return _additive(near_NSS, dtype)
    return {
        "full_attention": _additive(seen_NSS, dtype),
        "sliding_attention": _additive(near_NSS, dtype),
    }


def _additive(seen_NSS: Tensor, dtype: torch.dtype) -> Tensor:
    zero, low = torch.tensor([0.0, torch.finfo(dtype).min], dtype=dtype, device=seen_NSS.device)
    return torch.where(seen_NSS, zero, low)[:, None]
