"""The gradient for the weights of all convolutions in one launch: positions split among programs, partial sums in fp32, no atomics.

Legend: N packed positions, C channels, k taps, K convolutions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.tile_ops import load_tile, tap_rows


@triton.jit
def weight_gradient(
    source, du, out, index, before, table, stages,
    C: tl.constexpr, TAPS: tl.constexpr, GATHER: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """`out[split, stage, tap] = Σ_n source[read(n, tap)]ᵀ du[n]` over the split's positions.

    Args:
        source: [ΣN_in, C], every stage's input, one after another.
        du: [ΣN_out, C], every stage's gradient at its convolution's output.
        out: fp32 [splits, K, k, C_in, C_out].
        index: int32 [ΣN_out, k], rows that the taps read, counted in their stage (GATHER).
        before: int32 [N], positions ahead of each in its sequence (without GATHER).
        table: int64 [K, 5]: the stage's first row of `source`, its first row of `du` and `index`, N_in, N_out, dilation.
        stages: K.
        STEPS: 0, or for the interpreter, which cannot loop up to a run-time value, the most blocks of INNER positions in a split.
        ROWS, COLUMNS: Of C_in and C_out, a program's tile.
    """
    EVEN_ROWS: tl.constexpr = C % ROWS == 0
    EVEN_COLUMNS: tl.constexpr = C % COLUMNS == 0
    ACROSS: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    # the taps of a stage and their tiles run side by side: they read the same rows, which the cache then holds
    stage, split = tl.program_id(1), tl.program_id(2)
    tap = tl.program_id(0) % TAPS
    part = tl.program_id(0) // TAPS
    row = (part // ACROSS) * ROWS + tl.arange(0, ROWS)
    column = (part % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)
    first_in = tl.load(table + stage * 5)
    first_out = tl.load(table + stage * 5 + 1)
    sources = tl.load(table + stage * 5 + 2).to(tl.int32)
    outputs = tl.load(table + stage * 5 + 3).to(tl.int32)
    dilation = tl.load(table + stage * 5 + 4).to(tl.int32)
    splits = tl.num_programs(2)
    share = (outputs + splits * INNER - 1) // (splits * INNER)
    low = split * share * INNER
    high = tl.minimum(low + share * INNER, outputs)
    tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(0, STEPS if STEPS > 0 else share):
        n = low + step * INNER + tl.arange(0, INNER)
        live = n < high
        reachable = n if GATHER else tl.load(before + n, mask=live, other=0)
        read, there = tap_rows(index + first_out * TAPS, reachable, n, live, tap, sources, dilation, TAPS, GATHER, False)
        a = load_tile(source + first_in * C, read, there, row, C, EVEN_ROWS)
        b = load_tile(du + first_out * C, n, live, column, C, EVEN_COLUMNS)
        tile = tl.dot(tl.trans(a), b, tile, input_precision=PRECISION)
    at = ((split.to(tl.int64) * stages + stage) * TAPS + tap) * C * C + row.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(out + at, tile, mask=(row < C)[:, None] & (column < C)[None, :])
