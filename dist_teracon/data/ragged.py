"""Ragged columns: rows of unequal length laid end to end, `values[offsets[r]:offsets[r + 1]]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]


def positions(starts: Int, lengths: Int) -> Int:
    """Return the positions `starts[i] … starts[i] + lengths[i] − 1` of all i, one behind the other."""
    if len(starts) == 0:
        return np.zeros(0, dtype=np.int64)
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def offsets_of(lengths: Any) -> Int:
    """Return where rows of these lengths begin and end, int64 [R + 1]."""
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)))


def take(values: NDArray[Any], offsets: Int, rows: Int) -> tuple[NDArray[Any], Int]:
    """Return some rows of a ragged column as one of their own."""
    lengths = offsets[rows + 1] - offsets[rows]
    return values[positions(offsets[rows], lengths)], offsets_of(lengths)


def keep(values: NDArray[Any], offsets: Int, kept: NDArray[np.bool_]) -> tuple[NDArray[Any], Int]:
    """Return the column without some of its values; rows may become empty."""
    return values[kept], offsets_of(kept)[offsets]


def concatenate(parts: Sequence[tuple[NDArray[Any], Int]]) -> tuple[NDArray[Any], Int]:
    """Concatenate ragged columns; `parts` has one at least."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([values for values, _ in parts]), offsets_of(np.concatenate([np.diff(offsets) for _, offsets in parts]))


def side_by_side(one: tuple[NDArray[Any], Int], other: tuple[NDArray[Any], Int]) -> tuple[NDArray[Any], Int]:
    """Return a ragged column with each row's values of one column and behind them those of another one with as many rows."""
    joined, rows = concatenate([one, other]), len(one[1]) - 1
    values, offsets = take(*joined, np.arange(2 * rows).reshape(2, rows).T.ravel())
    return values, offsets[::2]


def last(values: NDArray[Any], offsets: Int, *, limit: int) -> tuple[NDArray[Any], Int]:
    """Return the last `limit` values of each row."""
    lengths = np.diff(offsets)
    if not (lengths > limit).any():
        return values, offsets
    left = np.repeat(offsets[1:], lengths) - np.arange(len(values))  # 1 for a row's last value
    return values[left <= limit], offsets_of(np.minimum(lengths, limit))


def distinct(values: NDArray[Any], offsets: Int) -> tuple[NDArray[Any], Int]:
    """Return the column, of numbers from 0 to 2³¹ − 1, without values that came before in their row."""
    lengths = np.diff(offsets)
    if len(values) == 0 or lengths.max() < 2:
        return values, offsets
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ordered = np.sort((rows << 32) + values)  # much faster than what follows, and mostly no value comes again
    if not (ordered[1:] == ordered[:-1]).any():
        return values, offsets
    order = np.lexsort((values, rows))  # stable, so the first of equal values comes first
    again = np.zeros(len(values), dtype=bool)
    again[order[1:]] = (rows[order[1:]] == rows[order[:-1]]) & (values[order[1:]] == values[order[:-1]])
    return keep(values, offsets, ~again)


def stable_order(keys: NDArray[Any]) -> Int:
    """Return what `argsort(kind="stable")` returns of fewer than 2³² keys, in less than half of its time."""
    order = np.argsort(keys)
    ordered = keys[order]
    key = np.zeros(len(keys), dtype=np.int64)
    np.cumsum(ordered[1:] != ordered[:-1], out=key[1:])
    key <<= 32
    key |= order
    key.sort()
    key &= (1 << 32) - 1
    return key
