"""The running mean's kernels: a program walks the positions of one row, in the channels of one block."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward_walk(x, offsets, out, channels, BLOCK: tl.constexpr, SUM: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    begin = tl.load(offsets + tl.program_id(0))
    end = tl.load(offsets + tl.program_id(0) + 1)
    total = tl.zeros([BLOCK], dtype=SUM)
    position = begin
    while position < end:  # Triton's interpreter has no `range` up to a loaded number
        at = position * channels + columns
        total += tl.load(x + at, mask=inside, other=0.0).to(SUM)
        position += 1
        tl.store(out + at, (total / (position - begin).to(SUM)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_walk(gradient, offsets, out, channels, BLOCK: tl.constexpr, SUM: tl.constexpr):
    """∂/∂x_t of the row's means is Σ_{t' ≥ t} gradient_t' / (t' + 1), places counted from 0."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    begin = tl.load(offsets + tl.program_id(0))
    position = tl.load(offsets + tl.program_id(0) + 1)
    total = tl.zeros([BLOCK], dtype=SUM)
    while position > begin:
        count = (position - begin).to(SUM)
        position -= 1
        at = position * channels + columns
        total += tl.load(gradient + at, mask=inside, other=0.0).to(SUM) / count
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
