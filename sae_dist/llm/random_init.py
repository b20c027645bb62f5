"""A language model of the right shapes with random weights, untrained: a control.

"Sparse Autoencoders Can Interpret Randomly Initialized Transformers", Heap et al. 2025, arXiv 2501.17727.
"""

import zlib
from typing import Any

import torch

DEFAULT_STD = 0.02


def random_model(kind: Any, config: Any, **how: Any) -> Any:
    """Make a model of class `kind` whose matrices are N(0, initializer_range^2), each seeded by its own name.

    Vectors (norms, biases) start as the architecture starts them. Seeding by name gives a layer the same
    weights in a model that was cut after it; torch's random state is not touched.

    Args:
        how: dtype and attn_implementation, as in from_pretrained.
    """
    with torch.random.fork_rng(devices=[]):
        model = kind._from_config(config, **how)
    std = getattr(config.get_text_config(), "initializer_range", None) or DEFAULT_STD
    base = model.base_model
    inside = {id(each): name for name, each in base.named_parameters()}
    for name, each in model.named_parameters():
        if each.ndim < 2:
            continue
        draw = torch.Generator().manual_seed(zlib.crc32(inside.get(id(each), name).encode()))
        values = std * torch.randn(each.shape, generator=draw)
        each.data.copy_(values)
    return model
