"""The Triton backend's functions as operations that torch.compile does not look into.

A compiled function that calls them is one graph; the fakes give the shapes of their results.
"""

import torch
from torch import Tensor

from sae_dist.kernels import triton_select, triton_sparse
from sae_dist.kernels.triton_sparse import summed

LIBRARY = "sae_dist_triton"


@torch.library.custom_op(f"{LIBRARY}::decode", mutates_args=())
def decode(latent_P: Tensor, value_P: Tensor, offsets_B: Tensor, W_FD: Tensor) -> Tensor:
    """Return the reconstruction of each row; see `reference.decode`."""
    return triton_sparse.decode(latent_P, value_P, offsets_B, W_FD)


@decode.register_fake
def _(latent_P: Tensor, value_P: Tensor, offsets_B: Tensor, W_FD: Tensor) -> Tensor:
    return W_FD.new_empty(offsets_B.shape[0], W_FD.shape[1], dtype=summed(W_FD.dtype))


@torch.library.custom_op(f"{LIBRARY}::latent_gradient", mutates_args=())
def latent_gradient(latent_P: Tensor, offsets_B: Tensor, grad_BD: Tensor, W_FD: Tensor) -> Tensor:
    """Return the gradient of the codes; see `reference.latent_gradient`."""
    return triton_sparse.latent_gradient(latent_P, offsets_B, grad_BD, W_FD)


@latent_gradient.register_fake
def _(latent_P: Tensor, offsets_B: Tensor, grad_BD: Tensor, W_FD: Tensor) -> Tensor:
    return W_FD.new_empty(latent_P.shape[0], dtype=summed(W_FD.dtype))


@torch.library.custom_op(f"{LIBRARY}::weight_gradient", mutates_args=())
def weight_gradient(latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, F: int) -> Tensor:
    """Return the gradient of the weights; see `reference.weight_gradient`."""
    return triton_sparse.weight_gradient(latent_P, coeff_P, offsets_B, rows_BD, F)


@weight_gradient.register_fake
def _(latent_P: Tensor, coeff_P: Tensor, offsets_B: Tensor, rows_BD: Tensor, F: int) -> Tensor:
    return rows_BD.new_empty(F, rows_BD.shape[1], dtype=summed(rows_BD.dtype))


@torch.library.custom_op(f"{LIBRARY}::bias_gradient", mutates_args=())
def bias_gradient(latent_P: Tensor, coeff_P: Tensor, F: int) -> Tensor:
    """Return the gradient of the bias; see `reference.bias_gradient`."""
    return triton_sparse.bias_gradient(latent_P, coeff_P, F)


@bias_gradient.register_fake
def _(latent_P: Tensor, coeff_P: Tensor, F: int) -> Tensor:
    return coeff_P.new_empty(F, dtype=summed(coeff_P.dtype))


@torch.library.custom_op(f"{LIBRARY}::encode_topk", mutates_args={"redone"})
def encode_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, redone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the best latents of each row; see `reference.encode_topk`."""
    return triton_select.encode_topk(x_BD, W_FD, b_F, k, redone)


@encode_topk.register_fake
def _(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, redone: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _candidates(x_BD, W_FD, k)


@torch.library.custom_op(f"{LIBRARY}::encode_topk_dead", mutates_args={"redone"})
def encode_two(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors of `encode_topk_dead` in one flat tuple, as operations must."""
    live, dead = triton_select.encode_topk_dead(x_BD, W_FD, b_F, k, dead_F, dead_k, redone)
    return *live, *dead


@encode_two.register_fake
def _(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_candidates(x_BD, W_FD, k), *_candidates(x_BD, W_FD, dead_k)


def encode_topk_dead(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dead_F: Tensor,
    dead_k: int,
    redone: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the best and the best dead latents; see `reference.encode_topk_dead`."""
    val, idx, dead_val, dead_idx = encode_two(x_BD, W_FD, b_F, k, dead_F, dead_k, redone)
    return (val, idx), (dead_val, dead_idx)


def _candidates(x_BD: Tensor, W_FD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return empty tensors of the shape and dtype of a selection."""
    rows = x_BD.shape[0]
    return x_BD.new_empty(rows, k, dtype=summed(W_FD.dtype)), x_BD.new_empty(rows, k, dtype=torch.int64)
