"""The gradient for the data: one convolution transposed, and in its epilogue mask, ReLU and LayerNorm of the convolution below.

Legend: N packed positions, C channels, k taps, T tasks.

Let u be a convolution's output, n = LN's normalised u, a = γ·n + β, h = m ⊙ ReLU(a), and dh the gradient that reaches h. All of the
vectors' gradients follow from three sums over positions: P = Σ dh·[a > 0]·n and Q = Σ dh·[a > 0] a task, D = Σ du:
dm = γ·P + β·Q, dγ = Σ_t m_t·P_t, dβ = Σ_t m_t·Q_t, dbias = D. A tile holds one task, so they are plain column sums of the tile.
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
@triton.jit(do_not_specialize=["sources", "besides", "dilation", "tasks"], do_not_specialize_on_alignment=["rstd", "index"])
def backward_stage(
    du, weight, beside, norm_weight, norm_bias, masks, normed, rstd, dx, du_below, sums,
    index, after, order, reader, bounds,
    sources, besides, dilation, tasks, mask_stride,
    C: tl.constexpr, TAPS: tl.constexpr, GATHER: tl.constexpr, ORDERED: tl.constexpr, MASKED: tl.constexpr,
    BESIDE: tl.constexpr, READER: tl.constexpr, WRITE: tl.constexpr, NORM: tl.constexpr, TASKS_P: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`dx = beside + convᵀ(du)`, then du of the convolution that made x, a tile of positions a program, all of one task.

    Args:
        du: [N_out, C], gradient at this convolution's output. With TAPS = 0 there is no convolution and dx = beside.
        weight: [k, C_out, C_in].
        beside: [N_res, C], gradient that reaches x past the convolution (BESIDE), its row `reader[n]` (READER) or n.
        norm_weight, norm_bias, masks, normed, rstd: Of the convolution below, as in the forward pass (NORM).
        dx: [N_in, C] (WRITE).
        du_below: [N_in, C] (NORM).
        sums: fp32 [tiles, 3, C]: the tile's P, Q and D (NORM).
        index: int32 [N_in, k], rows of du that read a position by each tap (GATHER).
        after: int32 [N_in], positions behind each in its sequence (without GATHER).
        order, bounds: As in the forward pass, for the positions of x.
        reader: int32 [N_in], `besides` where there is none.
        sources: N_out.
        besides: N_res.
    """
    EVEN: tl.constexpr = C == COLUMNS
    EVEN_INNER: tl.constexpr = C % INNER == 0
    CHUNKS: tl.constexpr = (C + INNER - 1) // INNER
    PART: tl.constexpr = COLUMNS // PARTS
    task, first, end = locate(tl.program_id(0), bounds, tasks, TASKS_P, ROWS)
    if first >= end:
        return
    place = first + tl.arange(0, ROWS)
    live = place < end
    rows = tl.load(order + place, mask=live, other=0) if ORDERED else place
    channel = tl.arange(0, COLUMNS)

    tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    if BESIDE:
        read = tl.load(reader + rows, mask=live, other=besides) if READER else rows
        there = (read < besides) if READER else live
        tile += load_tile(beside, read, there, channel, C, EVEN)
    if TAPS > 0:
        reachable = place if GATHER else tl.load(after + rows, mask=live, other=0)
        for step in tl.range(0, TAPS * CHUNKS):
            tap = step // CHUNKS
            inner = (step % CHUNKS) * INNER + tl.arange(0, INNER)
            read, there = tap_rows(index, reachable, rows, live, tap, sources, dilation, TAPS, GATHER, True)
            a = load_tile(du, read, there, inner, C, EVEN_INNER)
            b = load_weight(weight, tap * C + inner, inner, channel, C, EVEN, EVEN_INNER)
            tile = tl.dot(a, b, tile, input_precision=PRECISION)

    parts = column_parts(tile, ROWS, COLUMNS, PARTS)
    if WRITE:
        for part in tl.static_range(PARTS):
            store_tile(dx, rows, live, part * PART + tl.arange(0, PART), parts[part], C, EVEN)
    if NORM:
        mean, slope = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
        for part in tl.static_range(PARTS):
            columns = part * PART + tl.arange(0, PART)
            n = load_tile(normed, rows, live, columns, C, EVEN).to(tl.float32)
            dn, _ = _relu_backward(parts[part], n, columns, norm_weight, norm_bias, masks + task * mask_stride, C, EVEN, MASKED)
            mean += tl.sum(dn, 1)
            slope += tl.sum(dn * n, 1)
        mean, slope = mean / C, slope / C
        scale = tl.load(rstd + rows, mask=live, other=0.0)
        for part in tl.static_range(PARTS):
            columns = part * PART + tl.arange(0, PART)
            n = load_tile(normed, rows, live, columns, C, EVEN).to(tl.float32)
            dn, passed = _relu_backward(parts[part], n, columns, norm_weight, norm_bias, masks + task * mask_stride, C, EVEN, MASKED)
            below = scale[:, None] * (dn - mean[:, None] - n * slope[:, None])
            store_tile(du_below, rows, live, columns, below, C, EVEN)
            at = sums + tl.program_id(0).to(tl.int64) * 3 * C + columns
            tl.store(at, tl.sum(passed * n, 0), mask=columns < C)
            tl.store(at + C, tl.sum(passed, 0), mask=columns < C)
            tl.store(at + 2 * C, tl.sum(below, 0), mask=columns < C)


@triton.jit
def _relu_backward(dh, n, columns, norm_weight, norm_bias, mask, C: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr):
    """Return the gradient at the normalised values, and dh where the ReLU let it pass."""
    gamma = load_row(norm_weight, columns, C, EVEN)[None, :]
    passed = tl.where(n * gamma + load_row(norm_bias, columns, C, EVEN)[None, :] > 0, dh, 0.0)
    if MASKED:
        return passed * (gamma * load_row(mask, columns, C, EVEN)[None, :]), passed
    return passed * gamma, passed


@triton.jit(do_not_specialize=["tasks", "tiles"])
def sum_tiles(
    sums, bounds, out, tasks, tiles,
    C: tl.constexpr, TASKS_P: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the tiles' sums of each stage and task, always in the same order.

    Args:
        sums: fp32 [K, tiles, 3, C].
        bounds: int32 [K, T + 1], where each task's places start in a stage.
        out: fp32 [K, T, 3, C].
        tasks: T.
        tiles: Tiles that `sums` has room for.
        ROWS: Places a tile.
        GROUP: Tiles added at once.
        BLOCK: Numbers of the 3·C a program.
    """
    stage, task = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    every = tl.arange(0, TASKS_P)
    at = bounds + stage * (tasks + 1) + every
    low = tl.load(at, mask=every < tasks, other=0)
    high = tl.load(at + 1, mask=every < tasks, other=0)
    count = (high - low + ROWS - 1) // ROWS
    tile = tl.sum(tl.where(every < task, count, 0), 0)
    end = tile + tl.sum(tl.where(every == task, count, 0), 0)
    total = tl.zeros((BLOCK,), tl.float32)
    while tile < end:
        mine = tile + tl.arange(0, GROUP)
        there = (mine < end)[:, None] & (number < 3 * C)[None, :]
        total += tl.sum(tl.load(sums + (stage * tiles + mine)[:, None] * (3 * C) + number[None, :], mask=there, other=0.0), 0)
        tile += GROUP
    tl.store(out + (stage * tasks + task) * 3 * C + number, total, mask=number < 3 * C)
