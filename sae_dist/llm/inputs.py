"""The arguments of a model's forward: documents packed into sequences, or one document in each sequence."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.llm.masks import packed_masks


def model_inputs(
    ids_NS: Tensor,
    segment_NS: Tensor,
    position_NS: Tensor,
    model: nn.Module,
    text: Any,
    *,
    first_position: int,
    causal: bool,
    packed: bool,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the arguments of a forward over token ids.

    Packed, a mask says which tokens see each other, and positions begin anew with each document. Else a
    sequence is a document followed by padding, and the mask says only which tokens are padding.

    Args:
        ids_NS, segment_NS, position_NS: see `core.types.TokenChunk`.
        model: whose forward is meant.
        text: the config of its part that reads text.
        first_position: the position id of a first token.
    """
    if packed:
        masks = packed_masks(segment_NS, position_NS, text, causal=causal, dtype=dtype)
        return {"input_ids": ids_NS, "attention_mask": masks, "position_ids": position_NS + first_position}
    real_NS = segment_NS > 0
    padding = getattr(text, "pad_token_id", None)
    given = {"input_ids": ids_NS if padding is None else torch.where(real_NS, ids_NS, padding)}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        given["attention_mask"] = real_NS.long()
    return given
