"""Dropout whose noise belongs to a row: the same at any world size, micro-batching and order of rows, and after a resume.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# odd multipliers of well-mixing 32-bit hashes (the finaliser of MurmurHash3, and two of Knuth's kind)
_MIX_1, _MIX_2 = 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)
_BY_PLACE, _BY_CHANNEL = 0x9E3779B1 - (1 << 32), 0x27D4EB2F
_BITS = 24


def row_dropout(x: Tensor, rate: float, *, key_B: Tensor, row: Tensor, place: Tensor, layer: int) -> Tensor:
    """Zero each entry with probability `rate` and scale the others up, by a hash of (row's key, place, channel, layer).

    Args:
        x: [M, C].
        rate: In [0, 1).
        key_B: int64 [B], a row's key at this step; rows of key 0 stay as they are.
        row: int64 [M], which row an entry is of.
        place: int64 [M], which position of its row.
        layer: Tells several dropouts of one network apart.
    """
    key_M = key_B.index_select(0, row)
    seed = (key_M ^ (key_M >> 32)).to(torch.int32) ^ (place.to(torch.int32) * _BY_PLACE + (layer * 0x3C6EF372) % (1 << 31))
    channel = torch.arange(x.shape[1], dtype=torch.int32, device=x.device) * _BY_CHANNEL
    bits = _mixed(_mixed(seed)[:, None] + channel).bitwise_and_((1 << _BITS) - 1)
    kept, noisy = bits >= round(rate * (1 << _BITS)), (key_M != 0)[:, None]
    # one factor an entry, so that forward and backward are one multiplication each
    factor = kept.logical_or_(~noisy).to(x.dtype) * torch.where(noisy, 1 / (1 - rate), 1.0).to(x.dtype)
    return x * factor


def _mixed(bits: Tensor) -> Tensor:
    """Mix int32 bits, in place; products wrap around, and the shifts' copies of the sign do not harm a bijection."""
    bits.bitwise_xor_(bits >> 16).mul_(_MIX_1)
    bits.bitwise_xor_(bits >> 13).mul_(_MIX_2)
    return bits.bitwise_xor_(bits >> 16)


@dataclass(frozen=True)
class RowNoise:
    """Dropout of packed rows: `row` and `place` int64 [N] of each position, `lengths` int64 [B]; `key` and `rate` as of `row_dropout`."""

    key: Tensor
    rate: float
    row: Tensor
    place: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, row_offsets: Tensor, key: Tensor, rate: float, *, total: int) -> RowNoise:
        """Make it for rows that begin at offsets int64 [B + 1] and have so many positions in all."""
        lengths = row_offsets.diff()
        row = torch.repeat_interleave(torch.arange(lengths.shape[0], device=row_offsets.device), lengths, output_size=total)
        place = torch.arange(total, device=row_offsets.device) - row_offsets[:-1].index_select(0, row)
        return cls(key, rate, row, place, lengths)

    def on_positions(self, x_NC: Tensor, layer: int) -> Tensor:
        """Drop of every position."""
        return row_dropout(x_NC, self.rate, key_B=self.key, row=self.row, place=self.place, layer=layer)

    def on_last(self, x_BC: Tensor, layer: int, *, rows: Tensor | None = None) -> Tensor:
        """Drop of each row's last position, as `on_positions` does there; of some rows, int64, or of all."""
        chosen = torch.arange(self.lengths.shape[0], device=self.lengths.device) if rows is None else rows
        place = self.lengths.index_select(0, chosen) - 1
        return row_dropout(x_BC, self.rate, key_B=self.key, row=chosen, place=place, layer=layer)
