"""The tile table: how the Triton kernels cut their work, by device, width of a number and channels. Nothing is tuned at run time.

Every entry is compiled to machine code and checked for spills and shared memory by the tests; docs/kernels.md lists the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def padded_channels(channels: int) -> int:
    """Return the power of two, 16 at least, that holds the channels."""
    return max(16, 1 << (channels - 1).bit_length())


def choose_tile(kernel: Kernel, device: Device, *, bits: int, channels: int) -> Tile:
    """Look a tile up.

    Args:
        kernel: Which kernel.
        device: What it runs on.
        bits: Of a number, 16 or 32.
        channels: C, 16 to 512 on a GPU.

    Raises:
        ValueError: more channels than the table has.
    """
    if channels > MAX_CHANNELS:
        raise ValueError(f"channels: the Triton kernels hold a position's channels in one program, {MAX_CHANNELS} at most, not {channels}")
    columns = padded_channels(channels)
    if device == "interpreter":
        return Tile(rows=16, columns=columns if kernel != "weights" else 16, inner=16, parts=2, warps=4, stages=2)
    if kernel == "weights":
        side = min(columns, 128)
        if bits == 16:
            return Tile(rows=side, columns=columns if columns <= 256 else 256, inner=64, parts=1, warps=8 if columns >= 128 else 4, stages=3)
        return Tile(rows=min(side, 64), columns=min(side, 64), inner=16, parts=1, warps=4, stages=2)
    if bits == 16:
        rows = {"forward": 128, "backward": 64}[kernel] if columns <= 256 else 64
        return Tile(
            rows=rows, columns=columns, inner=min(64, columns), parts=max(1, min(8, columns // 64)), warps=8 if columns > 64 else 4, stages=3
        )
    return Tile(rows=32, columns=columns, inner=16, parts=max(1, min(8, columns // 64)), warps=8 if columns >= 128 else 4, stages=2)


def weight_splits(device: Device, tile: Tile, *, channels: int, stages: int, kernel_size: int, positions: int) -> int:
    """Return into how many parts the weights' kernel cuts the positions: about eight programs a processor, 512 positions at least."""
    across = -(-channels // tile.rows) * -(-channels // tile.columns) * stages * kernel_size
    return max(1, min(-(-8 * PROCESSORS[device] // across), -(-positions // 512)))


def device_class(major: int, minor: int) -> Device:
    """Return the row of the table for an NVIDIA GPU: the newest that is no newer, by what shared memory it has."""
    if major >= 9:
        return "sm_90" if major in (9, 10) else "sm_86"  # consumer GPUs of capability 12 have less shared memory
    return "sm_80" if (major, minor) == (8, 0) else "sm_86"
