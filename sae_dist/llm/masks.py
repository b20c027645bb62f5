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
        config: the text model's; with a sliding window or chunks of attention, tokens see no further.

    Returns:
        One mask; for models whose layers differ in kind, one for each kind.
    """
    seen_NSS = segment_NS[:, :, None] == segment_NS[:, None, :]
    if causal:
        seen_NSS.tril_()
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    part = getattr(config, "attention_chunk_size", None) if "chunked_attention" in kinds else None
    if not window and not part:
        return _additive(seen_NSS, dtype)
    masks = {"full_attention": _additive(seen_NSS, dtype)}
    if window:
        distance_NSS = (position_NS[:, :, None] - position_NS[:, None, :]).abs()
        near_NSS = seen_NSS & (distance_NSS < window if causal else distance_NSS <= window)
        masks["sliding_attention"] = _additive(near_NSS, dtype)
    if part:
        part_NS = position_NS // part
        together_NSS = seen_NSS & (part_NS[:, :, None] == part_NS[:, None, :])
        masks["chunked_attention"] = _additive(together_NSS, dtype)
    return masks if kinds else masks["sliding_attention"]


def _additive(seen_NSS: Tensor, dtype: torch.dtype) -> Tensor:
    zeros_NSS = torch.zeros_like(seen_NSS, dtype=dtype)
    return zeros_NSS.masked_fill_(~seen_NSS, torch.finfo(dtype).min)[:, None]
