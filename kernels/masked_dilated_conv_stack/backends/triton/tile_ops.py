"""Pieces that the Triton kernels share: which positions a tile holds, what a tap reads, columns of an accumulator.

Legend: N packed positions, C channels, k taps, T tasks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(tile, bounds, tasks, TASKS_P: tl.constexpr, BLOCK: tl.constexpr):
    """Find the task and the span of places of a tile, no tile holding two tasks.

    Args:
        tile: Which tile.
        bounds: int32 [T + 1], where each task's places start.
        tasks: T.
        TASKS_P: A power of two, at least T.
        BLOCK: Places a tile.

    Returns:
        The task, the tile's first place, the end of the task's places. Past the last tile the span is empty.
    """
    task = tl.arange(0, TASKS_P)
    low = tl.load(bounds + task, mask=task < tasks, other=0)
    high = tl.load(bounds + task + 1, mask=task < tasks, other=0)
    count = (high - low + BLOCK - 1) // BLOCK
    ends = tl.cumsum(count, 0)
    found = tl.sum((ends <= tile).to(tl.int32), 0)
    mine = task == found
    first = tl.sum(tl.where(mine, low + (tile - (ends - count)) * BLOCK, 0), 0)
    end = tl.sum(tl.where(mine, high, 0), 0)
    return found, first, end


@triton.jit
def tap_rows(index, reachable, rows, live, tap, sources, dilation, TAPS: tl.constexpr, GATHER: tl.constexpr, BACKWARD: tl.constexpr):
    """Return the rows that a tap reads and whether they are there.

    Without GATHER positions lie as in their sequence, so a tap is one offset for all rows, and `reachable` (int32 [N]) is how
    many positions of the sequence lie before (BACKWARD: after) each. With it, `index` (int32 [N, k]) names the rows.
    """
    if GATHER:
        source = tl.load(index + rows.to(tl.int64) * TAPS + tap, mask=live, other=sources)
        return source, source < sources
    reach = (TAPS - 1 - tap) * dilation
    if BACKWARD:
        return rows + reach, live & (reachable >= reach)
    return rows - reach, live & (reachable >= reach)


@triton.jit
def load_tile(values, rows, there, columns, C: tl.constexpr, EVEN: tl.constexpr):
    """Load [rows, columns] of a row-major matrix with C columns, zero where a row is not there."""
    at = values + rows.to(tl.int64)[:, None] * C + columns[None, :]
    if EVEN:
        return tl.load(at, mask=there[:, None], other=0.0)
    return tl.load(at, mask=there[:, None] & (columns < C)[None, :], other=0.0)


@triton.jit
def load_weight(weight, rows, inner, columns, C: tl.constexpr, EVEN: tl.constexpr, EVEN_INNER: tl.constexpr):
    """Load [inner, columns] of a tap's matrix whose rows lie at `rows`, zero past C either way."""
    at = weight + rows[:, None] * C + columns[None, :]
    if EVEN and EVEN_INNER:
        return tl.load(at)
    return tl.load(at, mask=(inner < C)[:, None] & (columns < C)[None, :], other=0.0)


@triton.jit
def store_tile(values, rows, there, columns, tile, C: tl.constexpr, EVEN: tl.constexpr):
    """Store [rows, columns] of a row-major matrix with C columns where a row is there."""
    at = values + rows.to(tl.int64)[:, None] * C + columns[None, :]
    kept = there[:, None] if EVEN else there[:, None] & (columns < C)[None, :]
    tl.store(at, tile.to(values.dtype.element_ty), mask=kept)


@triton.jit
def load_row(values, columns, C: tl.constexpr, EVEN: tl.constexpr):
    """Load columns of a vector of C numbers as fp32, zero past its end."""
    if EVEN:
        return tl.load(values + columns).to(tl.float32)
    return tl.load(values + columns, mask=columns < C, other=0.0).to(tl.float32)


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Split [ROWS, COLUMNS] into its left and its right half."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def quarters(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Split [ROWS, COLUMNS] into four."""
    left, right = halves(tile, ROWS, COLUMNS)
    return halves(left, ROWS, COLUMNS // 2) + halves(right, ROWS, COLUMNS // 2)


@triton.jit
def column_parts(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """Split [ROWS, COLUMNS] into 1, 2, 4 or 8 tiles of consecutive columns.

    An epilogue that works through them one after another keeps its vectors a channel in few registers.
    """
    tl.static_assert((PARTS & (PARTS - 1)) == 0 and PARTS <= 8)
    if PARTS == 1:
        return (tile,)
    elif PARTS == 2:  # noqa: RET505  Triton reads on behind a return that it took
        return halves(tile, ROWS, COLUMNS)
    elif PARTS == 4:
        return quarters(tile, ROWS, COLUMNS)
    else:
        left, right = halves(tile, ROWS, COLUMNS)
        return quarters(left, ROWS, COLUMNS // 2) + quarters(right, ROWS, COLUMNS // 2)
