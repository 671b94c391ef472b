"""The tile table: how the Triton kernels cut their work, by device, width of a number and channels. Nothing is tuned at run time.

Every entry is compiled to machine code and checked for spills and shared memory by the tests; docs/kernels.md lists the outcome.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

Kernel = Literal["forward", "backward", "weights"]
Device = Literal["sm_80", "sm_86", "sm_90", "gfx942", "interpreter"]

KERNELS: tuple[Kernel, ...] = ("forward", "backward", "weights")
SHARED_MEMORY = {"sm_80": 166_912, "sm_86": 101_376, "sm_90": 232_448, "gfx942": 65_536}  # bytes a program may use
PROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_90": 132, "gfx942": 304, "interpreter": 1}
MAX_CHANNELS = 512


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work.

    Attributes:
        rows: Positions a program (for `weights`: input channels).
        columns: Channels a program, a power of two (for `weights`: output channels).
        inner: Of the summed dimension at once.
        parts: Column parts of the epilogue.
        warps: A program's warps.
        stages: Depth of the software pipeline.
    """

    rows: int
    columns: int
    inner: int
    parts: int
    warps: int
    stages: int


# By kernel, and whether rows are read by index: the fastest measured on an H200 that passes the compile gate (docs/kernels.md).
_MEASURED_SM_90_16_BITS_256: dict[tuple[Kernel, bool], Tile] = {
    ("forward", False): Tile(rows=128, columns=256, inner=64, parts=2, warps=8, stages=4),
    ("forward", True): Tile(rows=128, columns=256, inner=64, parts=4, warps=8, stages=5),
    ("backward", False): Tile(rows=64, columns=256, inner=32, parts=4, warps=4, stages=3),
    ("backward", True): Tile(rows=64, columns=256, inner=32, parts=4, warps=4, stages=5),
}


def padded_channels(channels: int) -> int:
    """Return the power of two, 16 at least, that holds the channels."""
    return max(16, 1 << (channels - 1).bit_length())


@functools.cache
def choose_tile(kernel: Kernel, device: Device, *, bits: int, channels: int, gather: bool) -> Tile:
    """Look a tile up.

    Args:
        kernel: Which kernel.
        device: What it runs on.
        bits: Of a number, 16 or 32.
        channels: C, 16 to 512 on a GPU.
        gather: Rows are read by index. The pipeliner gives half of its depth to the indices, so it gets twice the depth.

    Raises:
        ValueError: more channels than the table has.
    """
    if channels > MAX_CHANNELS:
        raise ValueError(f"channels: expected at most {MAX_CHANNELS}, all of which one program of the Triton kernels holds, got {channels}")
    columns = padded_channels(channels)
    if device == "interpreter":
        return Tile(rows=16, columns=16 if kernel == "weights" else columns, inner=16, parts=2, warps=4, stages=2)
    if kernel == "weights":
        return _weights(device, bits, columns)
    if (device, bits, columns) == ("sm_90", 16, 256):
        return _MEASURED_SM_90_16_BITS_256[kernel, gather]
    tile = _positions_16(kernel, device, columns) if bits == 16 else _positions_32(columns)
    return replace(tile, stages=2 * tile.stages - 1) if gather and device != "gfx942" else tile


def _positions_16(kernel: Kernel, device: Device, columns: int) -> Tile:
    """Forward and backward on tensor cores: 128 positions where their fp32 sums and an epilogue fit the registers."""
    wide = columns > 256
    warps = 8 if columns >= 128 else 4
    parts = max(1, min(8, columns // 64))
    if device == "gfx942":
        return Tile(rows=32 if wide else 64, columns=columns, inner=min(32, columns), parts=parts, warps=warps, stages=2)
    if kernel == "backward" and device == "sm_90":
        return Tile(
            rows=64 if wide else 128, columns=columns, inner=min(64, columns), parts=max(1, min(8, columns // 32)), warps=warps, stages=3
        )
    rows = 64 if wide or kernel == "backward" else 128
    inner = 32 if wide and device == "sm_86" else min(64, columns)
    return Tile(rows=rows, columns=columns, inner=inner, parts=parts, warps=warps, stages=4 if device == "sm_80" and not wide else 3)


def _positions_32(columns: int) -> Tile:
    """Forward and backward without tensor cores."""
    parts = max(1, min(8, columns // 64))
    return Tile(rows=32, columns=columns, inner=16, parts=parts, warps=8 if columns >= 128 else 4, stages=2)


def _weights(device: Device, bits: int, columns: int) -> Tile:
    """Its positions are always masked by what was loaded, so its pipeline is as deep as a gather's."""
    if bits == 32:
        side = min(columns, 64)
        # by 16 positions at a time sm_80 spills 4 bytes where rows are read by index
        return Tile(rows=side, columns=side, inner=16 if device == "gfx942" else 32, parts=1, warps=4, stages=3)
    if device == "gfx942":
        side = min(columns, 128)
        return Tile(rows=side, columns=side, inner=32, parts=1, warps=8 if side == 128 else 4, stages=2)
    widest = 256 if device == "sm_90" else 128  # without wgmma both operands pass through registers too
    return Tile(rows=min(columns, 128), columns=min(columns, widest), inner=64, parts=1, warps=8 if columns >= 128 else 4, stages=5)


def weight_splits(device: Device, tile: Tile, *, channels: int, stages: int, kernel_size: int, positions: int) -> int:
    """Return into how many parts the weights' kernel cuts the positions: about eight programs a processor, 512 positions at least."""
    across = -(-channels // tile.rows) * -(-channels // tile.columns) * stages * kernel_size
    return max(1, min(-(-8 * PROCESSORS[device] // across), -(-positions // 512)))


def device_class(major: int, minor: int) -> Device:
    """Return the row of the table for an NVIDIA GPU: the newest that is no newer, by what shared memory it has."""
    if major >= 9:
        return "sm_90" if major in (9, 10) else "sm_86"  # consumer GPUs of capability 12 have less shared memory
    return "sm_80" if (major, minor) == (8, 0) else "sm_86"
