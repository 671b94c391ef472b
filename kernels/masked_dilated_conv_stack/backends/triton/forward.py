"""One convolution of the stack in one launch: taps, LayerNorm, ReLU, mask and the block's residual.

Legend: N packed positions, C channels, k taps, T tasks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_ops import (
    column_parts,
    load_row,
    load_tile,
    load_weight,
    locate,
    store_tile,
    tap_rows,
)


# ragged batches change these from call to call: no new machine code for each
@triton.jit(do_not_specialize=["sources", "dilation", "tasks"], do_not_specialize_on_alignment=["rstd", "index"])
def forward_stage(
    source, weight, bias, norm_weight, norm_bias, masks, residual, out, normed, rstd,
    index, before, order, kept, bounds,
    sources, dilation, tasks, mask_stride, eps,
    C: tl.constexpr, TAPS: tl.constexpr, GATHER: tl.constexpr, ORDERED: tl.constexpr, MASKED: tl.constexpr,
    RESIDUAL: tl.constexpr, KEPT: tl.constexpr, SAVE: tl.constexpr, TASKS_P: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`out = residual + m ⊙ ReLU(LN(conv(source)))`, a tile of positions a program, all of one task.

    Args:
        source: [N_in, C].
        weight: [k, C_in, C_out].
        bias, norm_weight, norm_bias: [C].
        masks: [T, …, C], tasks `mask_stride` apart (MASKED).
        residual: [N_res, C], its row `kept[n]` (KEPT) or n is added to output n (RESIDUAL).
        out: [N_out, C].
        normed, rstd: [N_out, C] and fp32 [N_out], what the backward pass reads of LayerNorm (SAVE).
        index: int32 [N_out, k], rows that the taps read (GATHER).
        before: int32 [N_out], positions ahead of each in its sequence (without GATHER).
        order: int32 [N_out], outputs sorted by task (ORDERED).
        kept: int32 [N_out].
        bounds: int32 [T + 1], where each task's outputs start in that order.
        sources: N_in.
    """
    EVEN: tl.constexpr = C == COLUMNS
    EVEN_INNER: tl.constexpr = C % INNER == 0
    CHUNKS: tl.constexpr = (C + INNER - 1) // INNER
    task, first, end = locate(tl.program_id(0), bounds, tasks, TASKS_P, ROWS)
    if first >= end:
        return
    place = first + tl.arange(0, ROWS)
    live = place < end
    rows = tl.load(order + place, mask=live, other=0) if ORDERED else place
    reachable = place if GATHER else tl.load(before + rows, mask=live, other=0)
    channel = tl.arange(0, COLUMNS)

    tile = tl.zeros((ROWS, COLUMNS), tl.float32) + load_row(bias, channel, C, EVEN)[None, :]
    for step in tl.range(0, TAPS * CHUNKS):
        tap = step // CHUNKS
        inner = (step % CHUNKS) * INNER + tl.arange(0, INNER)
        read, there = tap_rows(index, reachable, rows, live, tap, sources, dilation, TAPS, GATHER, False)
        a = load_tile(source, read, there, inner, C, EVEN_INNER)
        b = load_weight(weight, tap * C + inner, inner, channel, C, EVEN, EVEN_INNER)
        tile = tl.dot(a, b, tile, input_precision=PRECISION)

    mean = tl.sum(tile, 1) / C
    centred = tile - mean[:, None]
    if not EVEN:
        centred = tl.where((channel < C)[None, :], centred, 0.0)
    scale = 1 / tl.sqrt_rn(tl.sum(centred * centred, 1) / C + eps)
    if SAVE:
        tl.store(rstd + rows, scale, mask=live)
    if RESIDUAL:
        beside = tl.load(kept + rows, mask=live, other=0) if KEPT else rows
    parts = column_parts(centred, ROWS, COLUMNS, PARTS)
    for part in tl.static_range(PARTS):
        columns = part * (COLUMNS // PARTS) + tl.arange(0, COLUMNS // PARTS)
        # rounded as it is saved, so that the backward pass sees the same side of the ReLU
        n = (parts[part] * scale[:, None]).to(out.dtype.element_ty)
        if SAVE:
            store_tile(normed, rows, live, columns, n, C, EVEN)
        h = n.to(tl.float32) * load_row(norm_weight, columns, C, EVEN)[None, :] + load_row(norm_bias, columns, C, EVEN)[None, :]
        h = tl.maximum(h, 0.0)
        if MASKED:
            h *= load_row(masks + task * mask_stride, columns, C, EVEN)[None, :]
        if RESIDUAL:
            h += load_tile(residual, beside, live, columns, C, EVEN)
        store_tile(out, rows, live, columns, h, C, EVEN)
