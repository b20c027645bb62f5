"""The programs of the Triton backend; hosts are in `triton_select`, `triton_sparse` and `triton_update`.

Sums are in float32 (WIDE, for float64 input: in float64) and always in the same order: no program uses
atomics, so two runs are bitwise equal. Sizes that change from step to step are not specialised: a program is
compiled once for a width and a dtype. Offsets are int64, since pairs * D and F * D pass 2^31.

Letters: as core.types; N rows that pairs point to, S segments of pairs, W windows of pairs; in the filter R
rows, C latents, S slots for candidates.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-(2**63))
LOW = tl.constexpr(2**31 - 1)


@triton.jit
def add_pairs(
    total, index_P, coeff_P, rows_ND, start, head, tail, count, col, D: tl.constexpr, UNROLL: tl.constexpr
):
    """Add coeff[p] * rows[index[p]] of `count` pairs to `total`: `head` from `start`, others from `tail`."""
    for first in range(0, count, UNROLL):
        for step in tl.static_range(UNROLL):
            place = first + step
            pair = tl.where(place < head, start + place, tail + place - head)
            index = tl.load(index_P + pair, mask=place < count, other=0).to(tl.int64)
            coeff = tl.load(coeff_P + pair, mask=place < count, other=0).to(total.dtype)
            width = tl.where(place < count, D, 0)
            row = tl.load(rows_ND + index * D + col, mask=col < width, other=0)
            total += coeff * row.to(total.dtype)
    return total


@triton.jit
def add_segment(
    total, index_P, coeff_P, rows_ND, partial_WD, start, stop, col,
    D: tl.constexpr, WINDOW: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Do `add_pairs` over [start, stop), but take the sums of windows wholly inside from `partial_WD`."""
    first_whole = tl.cdiv(start, WINDOW)
    last_whole = stop // WINDOW
    split = last_whole > first_whole
    head = tl.where(split, first_whole * WINDOW - start, stop - start)
    tail = tl.where(split, last_whole * WINDOW, stop)
    count = head + stop - tail
    total = add_pairs(total, index_P, coeff_P, rows_ND, start, head, tail, count, col, D, UNROLL)
    for window in range(first_whole, last_whole):
        total += tl.load(partial_WD + window * D + col, mask=col < D, other=0)
    return total


@triton.jit(do_not_specialize=["num_pairs"])
def window_sums(
    key_P, index_P, coeff_P, rows_ND, partial_WD, num_pairs,
    D: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, UNROLL: tl.constexpr,
    PARITY: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sum each window of WINDOW sorted pairs that have one key; other windows are not written, nor read.

    So the many pairs of a frequent latent are shared among many programs.

    PARITY: only keys that are odd (1) or even (0); -1: all.
    """
    window = tl.program_id(0).to(tl.int64)
    first = window * WINDOW
    key = tl.load(key_P + first)
    wanted = key == tl.load(key_P + first + WINDOW - 1)
    if PARITY >= 0:
        wanted = wanted & ((key & 1) == PARITY)
    if wanted:
        col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float64 if WIDE else tl.float32)
        total = add_pairs(total, index_P, coeff_P, rows_ND, first, WINDOW, first, WINDOW, col, D, UNROLL)
        tl.store(partial_WD + window * D + col, total, mask=col < D)


@triton.jit(do_not_specialize=["num_pairs", "segments"])
def bag(
    index_P, coeff_P, start_S, rows_ND, partial_WD, out_SD, num_pairs, segments,
    D: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write out[s] = sum over pairs p of segment s of coeff[p] * rows[index[p]]. WINDOW = 0: no windows."""
    segment = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(start_S + segment)
    stop = tl.load(start_S + segment + 1, mask=segment + 1 < segments, other=num_pairs)
    total = tl.zeros([BLOCK], tl.float64 if WIDE else tl.float32)
    if WINDOW > 0:
        total = add_segment(total, index_P, coeff_P, rows_ND, partial_WD, start, stop, col, D, WINDOW, UNROLL)
    else:
        count = stop - start
        total = add_pairs(total, index_P, coeff_P, rows_ND, start, count, stop, count, col, D, UNROLL)
    tl.store(out_SD + segment * D + col, total, mask=col < D)


@triton.jit(do_not_specialize=["num_pairs", "rows"])
def dots(
    latent_P, start_B, grad_BD, W_FD, out_P, num_pairs, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write out[p] = <W[latent[p]], grad[row of p]>."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(start_B + row)
    stop = tl.load(start_B + row + 1, mask=row + 1 < rows, other=num_pairs)
    for first in range(start, stop, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        latent = tl.load(latent_P + pair, mask=pair < stop, other=0).to(tl.int64)
        total = tl.zeros([PAIRS, BLOCK], tl.float64 if WIDE else tl.float32)
        for left in range(0, D, BLOCK):
            col = left + tl.arange(0, BLOCK)
            grad = tl.load(grad_BD + row * D + col, mask=col < D, other=0).to(total.dtype)
            on = (pair < stop)[:, None] & (col < D)[None, :]
            weight = tl.load(W_FD + latent[:, None] * D + col[None, :], mask=on, other=0)
            total += weight.to(total.dtype) * grad[None, :]
        tl.store(out_P + pair, tl.sum(total, 1), mask=pair < stop)


@triton.jit(do_not_specialize=["num_pairs", "segments"])
def segment_sums(coeff_P, start_S, out_S, num_pairs, segments, PAIRS: tl.constexpr, WIDE: tl.constexpr):
    """Write out[s] = sum of coeff[p] over the pairs p of segment s."""
    segment = tl.program_id(0).to(tl.int64)
    start = tl.load(start_S + segment)
    stop = tl.load(start_S + segment + 1, mask=segment + 1 < segments, other=num_pairs)
    tl.store(out_S + segment, sum_pairs(coeff_P, start, stop, PAIRS, WIDE))


@triton.jit
def sum_pairs(coeff_P, start, stop, PAIRS: tl.constexpr, WIDE: tl.constexpr):
    """Return the sum of coeff[p] over [start, stop)."""
    total = tl.zeros([PAIRS], tl.float64 if WIDE else tl.float32)
    for first in range(start, stop, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        total += tl.load(coeff_P + pair, mask=pair < stop, other=0).to(total.dtype)
    return tl.sum(total, 0)


@triton.jit
def sort_key(score, latent):
    """Return an int64 that orders by score, then by lower latent; -0 equals 0, NaN is above everything."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score == score, bits, 0x7FC00000)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (LOW - latent.to(tl.int64))


@triton.jit
def keep_above(on, score, latent, floor, key_S, count, CAPACITY: tl.constexpr):
    """Append the keys of scores at or above the floor to the `count` before them; return the new count."""
    # A NaN is above every floor, as torch sorts it.
    taken = (on & ~(score < floor)).to(tl.int32)
    number = tl.sum(taken, 0)
    if number > 0:
        place = count + tl.cumsum(taken, 0) - 1
        tl.store(key_S + place, sort_key(score, latent), mask=(taken > 0) & (place < CAPACITY))
    return count + number


@triton.jit(do_not_specialize=["first", "width", "sixteens"])
def screen_filter(
    score_RC, b_C, floor_R, key_RS, count_R, dead_C, dead_floor_R, dead_key_RS, dead_count_R,
    first, width, sixteens,
    CAPACITY: tl.constexpr, DEAD_CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Append to each row's candidates the latents of a chunk with score + b at or above the row's floor.

    One warp owns a row and walks its latents upwards, so the order of the candidates is fixed. Few scores
    are candidates: where none of a block is, it costs a load and a comparison. With DEAD_CAPACITY > 0 the
    dead latents are filtered a second time, by a floor of their own.

    A row of scores, b_C and dead_C have 16 * `sixteens` numbers, of which `width` count: then the compiler
    knows that loads may take 16 bytes.
    """
    row = tl.program_id(0).to(tl.int64)
    stride = sixteens * 16
    floor = tl.load(floor_R + row)
    count = tl.load(count_R + row)
    if DEAD_CAPACITY > 0:
        dead_floor = tl.load(dead_floor_R + row)
        dead_count = tl.load(dead_count_R + row)
    for left in range(0, stride, BLOCK):
        col = left + tl.arange(0, BLOCK)
        there = col < stride
        score = tl.load(score_RC + row * stride + col, mask=there, other=0)
        score += tl.load(b_C + col, mask=there, other=0)
        on = col < width
        latent = first + col
        count = keep_above(on, score, latent, floor, key_RS + row * CAPACITY, count, CAPACITY)
        if DEAD_CAPACITY > 0:
            dead = tl.load(dead_C + col, mask=there, other=0) != 0
            dead_key_S = dead_key_RS + row * DEAD_CAPACITY
            dead_count = keep_above(
                on & dead, score, latent, dead_floor, dead_key_S, dead_count, DEAD_CAPACITY
            )
    tl.store(count_R + row, count)
    if DEAD_CAPACITY > 0:
        tl.store(dead_count_R + row, dead_count)
