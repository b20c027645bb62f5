"""The kernels in Triton, for NVIDIA GPUs from compute capability 8.0 on; same functions as `reference`.

With TRITON_INTERPRET=1 the same programs run on the CPU, slowly, which is how they are tested without a GPU.
"""

from sae_dist.kernels.keys import topk_rows
from sae_dist.kernels.triton_ops import (
    bias_gradient,
    decode,
    encode_topk,
    encode_topk_dead,
    latent_gradient,
    weight_gradient,
)

__all__ = [
    "bias_gradient",
    "decode",
    "encode_topk",
    "encode_topk_dead",
    "latent_gradient",
    "topk_rows",
    "weight_gradient",
]
