"""A product whose epilogue filters: candidates of a row are appended while scores are in registers.

The other way of the sweep in `triton_select`: no score is written to memory. Programs that meet the same row
append to one list by a counter in memory, so the order of candidates is not fixed; a selection does not
depend on it, since candidates are sorted, and a row with too many of them is redone in full.

Letters: as core.types; R rows, C latents of a chunk, S slots for candidates.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_dist.kernels.triton_jit import sort_key
from sae_dist.kernels.triton_plan import fused_plan

APPEND = tl.constexpr("""{
    .reg .pred there, hit, fits, zero, odd;
    .reg .u32 slot, high, sign, low;
    .reg .u64 place;
    setp.ge.s32 there, $5, 0;
    setp.eq.and.f32 there, $2, $2, there;
    setp.geu.and.f32 hit, $1, $2, there;
    mov.u32 slot, 0x7fffffff;
    @hit atom.global.relaxed.gpu.add.u32 slot, [$4], 1;
    setp.lt.u32 fits, slot, $6;
    mad.wide.u32 place, slot, 8, $3;
    setp.eq.f32 zero, $1, 0f00000000;
    setp.nan.f32 odd, $1, $1;
    mov.b32 high, $1;
    @zero mov.u32 high, 0;
    @odd mov.u32 high, 0x7fc00000;
    shr.s32 sign, high, 31;
    and.b32 sign, sign, 0x7fffffff;
    xor.b32 high, high, sign;
    sub.u32 low, 0x7fffffff, $5;
    @fits st.global.v2.b32 [place], {low, high};
    mov.u32 $0, slot;
}""")
"""Append the key (`triton_jit.sort_key`) of one score, one element of a tile after the other: so no tile of
places or addresses is held in registers, as Triton's own operations would."""


@triton.jit
def append(score_RC, floor_R, key_R, count_R, latent_C, CAPACITY: tl.constexpr, HOST: tl.constexpr):
    """Append the scores of a tile that are not below their row's floor to the row's keys.

    Args:
        floor_R: NaN for rows that are not there.
        key_R, count_R: addresses of each row's first key and of its counter.
        latent_C: negative for latents that do not count.
        HOST: whether this is interpreted on a host, which has no machine code.
    """
    if HOST:
        hit_RC = (latent_C >= 0)[None, :] & (floor_R == floor_R)[:, None] & ~(score_RC < floor_R[:, None])
        slot_RC = tl.atomic_add(tl.broadcast_to(count_R[:, None], hit_RC.shape), 1, mask=hit_RC)
        key_RC = sort_key(score_RC, tl.broadcast_to(latent_C[None, :], hit_RC.shape))
        tl.store(key_R[:, None] + slot_RC, key_RC, mask=hit_RC & (slot_RC < CAPACITY))
    else:
        given = [score_RC, floor_R[:, None], key_R.to(tl.int64)[:, None], count_R.to(tl.int64)[:, None],
                 latent_C[None, :], CAPACITY]  # fmt: skip
        tl.inline_asm_elementwise(APPEND, "=r,f,f,l,l,r,r", given, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit(do_not_specialize=["rows", "first", "width"])
def product_filter(
    x_RD, W_CD, b_C, floor_R, key_RS, count_R, dead_C, dead_floor_R, dead_key_RS, dead_count_R,
    rows, first, width,
    D: tl.constexpr, CAPACITY: tl.constexpr, DEAD_CAPACITY: tl.constexpr, ROWS: tl.constexpr,
    LATENTS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr, HOST: tl.constexpr,
):  # fmt: skip
    """Append to each row's candidates the latents of a chunk with x W^T + b at or above the row's floor.

    Inputs are in bfloat16, sums in float32. A program makes one tile of ROWS x LATENTS scores after the
    other; neighbours work on GROUP tiles of rows and the same latents, so that these stay in the second-level
    cache. With TMA, tiles are loaded by the GPU's own copy engine; then D is a multiple of 8. With
    DEAD_CAPACITY > 0 the dead latents are filtered a second time, by a floor of their own.
    """
    row_tiles = tl.cdiv(rows, ROWS)
    latent_tiles = tl.cdiv(width, LATENTS)
    if TMA:
        x_tiles = tl.make_tensor_descriptor(x_RD, [rows, D], [D, 1], [ROWS, DEPTH])
        W_tiles = tl.make_tensor_descriptor(W_CD, [width, D], [D, 1], [LATENTS, DEPTH])
    for tile in tl.range(tl.program_id(0), row_tiles * latent_tiles, tl.num_programs(0)):
        group = tile // (GROUP * latent_tiles)
        members = tl.minimum(row_tiles - group * GROUP, GROUP)
        within = tile % (GROUP * latent_tiles)
        top = (group * GROUP + within % members) * ROWS
        left = within // members * LATENTS
        row_R = top + tl.arange(0, ROWS)
        col_C = left + tl.arange(0, LATENTS)
        score_RC = tl.zeros([ROWS, LATENTS], tl.float32)
        for at in tl.range(0, D, DEPTH):
            if TMA:
                x = x_tiles.load([top, at])
                W = W_tiles.load([left, at])
            else:
                col_D = at + tl.arange(0, DEPTH)
                x_there = (row_R < rows)[:, None] & (col_D < D)[None, :]
                x = tl.load(x_RD + row_R.to(tl.int64)[:, None] * D + col_D[None, :], mask=x_there, other=0)
                W_there = (col_C < width)[:, None] & (col_D < D)[None, :]
                W = tl.load(W_CD + col_C.to(tl.int64)[:, None] * D + col_D[None, :], mask=W_there, other=0)
            if HOST:  # the interpreter multiplies the bits of bfloat16
                score_RC = tl.dot(x.to(tl.float32), tl.trans(W.to(tl.float32)), score_RC)
            else:
                score_RC = tl.dot(x, tl.trans(W), score_RC)
        row_there = row_R < rows
        col_there = col_C < width
        none = float("nan")
        row_R = row_R.to(tl.int64)
        score_RC += tl.load(b_C + col_C, mask=col_there, other=0)[None, :]
        floor = tl.load(floor_R + row_R, mask=row_there, other=none)
        latent_C = tl.where(col_there, first + col_C, -1)
        append(score_RC, floor, key_RS + row_R * CAPACITY, count_R + row_R, latent_C, CAPACITY, HOST)
        if DEAD_CAPACITY > 0:
            dead = tl.load(dead_C + col_C, mask=col_there, other=0) != 0
            floor = tl.load(dead_floor_R + row_R, mask=row_there, other=none)
            key = dead_key_RS + row_R * DEAD_CAPACITY
            latent_C = tl.where(dead, latent_C, -1)
            append(score_RC, floor, key, dead_count_R + row_R, latent_C, DEAD_CAPACITY, HOST)


def launch(
    x16_RD: Tensor,
    W16_CD: Tensor,
    b_C: Tensor,
    live: tuple[Tensor, Tensor, Tensor],
    dead_C: Tensor | None,
    dead: tuple[Tensor, Tensor, Tensor],
    first: int,
) -> None:
    """Filter a chunk of latents for all rows: one program on each of the GPU's multiprocessors.

    Args:
        live, dead: floors, keys and counts of the candidates of all latents, and of the dead ones.
        dead_C: which latents are dead (int8); None: `dead` is not filtered.
        first: the number of the chunk's first latent.
    """
    device, host = x16_RD.device, x16_RD.is_cpu
    capacity, D = live[1].shape[1], x16_RD.shape[1]
    engine = not host and torch.cuda.get_device_capability(device) >= (9, 0)
    plan = fused_plan(D, capacity, 0 if dead_C is None else dead[1].shape[1], tma=engine, host=host)
    if plan.constants["TMA"]:
        triton.set_allocator(lambda size, _align, _stream: torch.empty(size, dtype=torch.int8, device=device))
    programs = 2 if host else torch.cuda.get_device_properties(device).multi_processor_count
    product_filter[(programs,)](
        x16_RD, W16_CD, b_C, *live, b_C if dead_C is None else dead_C, *dead, len(x16_RD), first, len(W16_CD),
        **plan.options,
    )  # fmt: skip
