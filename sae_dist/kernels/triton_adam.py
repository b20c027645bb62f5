"""The program that computes a latent's gradient and updates its row; `triton_update` is its host.

Letters: as core.types; N rows that pairs point to, in `numbers_N` numbers; W windows of pairs.
"""

import triton
import triton.language as tl

from sae_dist.kernels.triton_jit import add_segment, sum_pairs


@triton.jit
def adam(grad, moment1_at, moment2_at, on, kept, numbers_N, since, MOMENTUM: tl.constexpr):
    """Return Adam's move of a row, per unit of learning rate; moments first decay for the steps missed.

    Moments are written as soon as they are known, since a row of each hardly fits into registers.
    """
    beta1, beta2 = tl.load(numbers_N + 2), tl.load(numbers_N + 3)
    decay2 = tl.exp2(since * tl.log2(beta2)).to(grad.dtype)
    moment2 = tl.load(moment2_at, mask=on, other=0) * decay2 + (1 - beta2).to(grad.dtype) * grad * grad
    tl.store(moment2_at, moment2, mask=kept)
    eps = tl.load(numbers_N + 6).to(grad.dtype)
    below = (tl.sqrt(moment2 / tl.load(numbers_N + 5).to(grad.dtype)) + eps) * tl.load(numbers_N + 4).to(
        grad.dtype
    )
    if MOMENTUM:
        decay1 = tl.exp2(since * tl.log2(beta1)).to(grad.dtype)
        moment1 = tl.load(moment1_at, mask=on, other=0) * decay1 + (1 - beta1).to(grad.dtype) * grad
        tl.store(moment1_at, moment1, mask=kept)
        return moment1 / below
    else:
        return grad / below


@triton.jit
def update_rows(
    latent_U, start_U, middle_U, index_P, coeff_P, rows_ND, partial_WD,
    weight_FD, moment1_FD, moment2_FD, bias_F, bias1_F, bias2_F, touched_F, squares_U,
    scale_1, bad_1, numbers_N,
    D: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, UNROLL: tl.constexpr, PAIRS: tl.constexpr,
    DECODER: tl.constexpr, UNIT: tl.constexpr, MOMENTUM: tl.constexpr, MOVE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of touched latent u, its squared norm and, with MOVE, Adam's update of its row.

    DECODER: use the second part of the latent's pairs and, as W_dec is updated last, record the touch. Else
    use the first part, and update the bias too. UNIT: no gradient along the row, which keeps unit norm.
    `numbers_N`: lr, lr of the bias, beta1, beta2, their bias corrections, eps, number of the update.
    """
    u = tl.program_id(0).to(tl.int64)
    start = tl.load(start_U + u)
    middle = tl.load(middle_U + u)
    stop = tl.load(start_U + u + 1)
    if start == stop:
        return
    first = middle if DECODER else start
    last = stop if DECODER else middle
    col = tl.arange(0, BLOCK)
    grad = tl.zeros([BLOCK], tl.float64 if WIDE else tl.float32)
    grad = add_segment(grad, index_P, coeff_P, rows_ND, partial_WD, first, last, col, D, WINDOW, UNROLL)
    latent = tl.load(latent_U + u)
    place = latent * D + col
    row = tl.load(weight_FD + place, mask=col < D, other=0).to(grad.dtype)
    if UNIT:
        grad -= row * tl.sum(grad * row, 0)
    squares = tl.sum(grad * grad, 0)
    if not DECODER:
        bias_grad = sum_pairs(coeff_P, first, last, PAIRS, WIDE)
        squares += bias_grad * bias_grad
    tl.store(squares_U + u, squares)
    if MOVE:
        kept = tl.load(bad_1) == 0
        scale = tl.load(scale_1).to(grad.dtype)
        update = tl.load(numbers_N + 7)
        since = update - tl.load(touched_F + latent).to(tl.float64)
        on = col < D
        store = col < tl.where(kept, D, 0)
        moved = adam(
            grad * scale, moment1_FD + place, moment2_FD + place, on, store, numbers_N, since, MOMENTUM
        )
        # Read again: to hold it meanwhile would cost a row of registers.
        row = tl.load(weight_FD + place, mask=on, other=0).to(grad.dtype)
        row -= tl.load(numbers_N).to(grad.dtype) * moved
        if UNIT:
            row = row / tl.sqrt(tl.sum(tl.where(on, row * row, 0), 0))
        tl.store(weight_FD + place, row, mask=store)
        if DECODER:
            tl.store(touched_F + latent, update.to(tl.int64), mask=kept)
        else:
            moved = adam(
                bias_grad * scale, bias1_F + latent, bias2_F + latent, True, kept, numbers_N, since, MOMENTUM
            )
            bias = tl.load(bias_F + latent).to(grad.dtype) - tl.load(numbers_N + 1).to(grad.dtype) * moved
            tl.store(bias_F + latent, bias, mask=kept)
