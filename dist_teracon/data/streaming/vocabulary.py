"""Vocabularies by count: which numbers there are, how often, and their places in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DENSE = 1 << 24


class NumberCounts:
    """Counts of whole numbers of 0 or more: a plain array up to 2²⁴, sorted columns of those that occur beyond."""

    def __init__(self) -> None:
        self._dense = np.zeros(0, dtype=np.int64)
        self._numbers = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count values."""
        if len(values) == 0:
            return
        if int(values.max()) >= _DENSE:
            high = values >= _DENSE
            self._merge(*np.unique(values[high], return_counts=True))
            values = values[~high]
        counts = np.bincount(values, minlength=len(self._dense))
        counts[: len(self._dense)] += self._dense
        self._dense = counts

    def add_counted(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add what another one found."""
        high = numbers >= _DENSE
        self._merge(numbers[high], counts[high])
        low = numbers[~high]
        total = np.zeros(max(len(self._dense), int(low.max(initial=-1)) + 1), dtype=np.int64)
        total[: len(self._dense)] = self._dense
        total[low] += counts[~high]
        self._dense = total

    def _merge(self, numbers: NDArray[Any], counts: NDArray[np.int64]) -> None:
        both, index = np.unique(np.concatenate((self._numbers, numbers)), return_inverse=True)
        merged = np.zeros(len(both), dtype=np.int64)
        np.add.at(merged, index, np.concatenate((self._counts, counts)))
        self._numbers, self._counts = both.astype(np.int64), merged

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers that occur, ascending, and their counts."""
        low = np.flatnonzero(self._dense)
        return np.concatenate((low, self._numbers)), np.concatenate((self._dense[low], self._counts))


class NumberPlaces:
    """From numbers to their places in a vocabulary, −1 for those outside of it.

    Args:
        numbers: The vocabulary in its order.
    """

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self.numbers = numbers
        largest = int(numbers.max(initial=0))
        self._dense: NDArray[np.int32] | None = None
        if largest < _DENSE:
            self._dense = np.full(largest + 1, -1, dtype=np.int32)
            self._dense[numbers] = np.arange(len(numbers), dtype=np.int32)
        else:
            self._order = np.argsort(numbers)
            self._sorted = numbers[self._order]

    def of(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Return int32 places."""
        if self._dense is not None:
            within = values < len(self._dense)
            if within.all():
                return self._dense[values]
            return np.where(within, self._dense[np.where(within, values, 0)], np.int32(-1))
        if len(self._sorted) == 0:
            return np.full(len(values), -1, dtype=np.int32)
        at = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
        return np.where(self._sorted[at] == values, self._order[at], -1).astype(np.int32)


def by_count(numbers: NDArray[np.int64], counts: NDArray[np.int64], *, min_count: int = 1) -> NDArray[np.int64]:
    """Return the numbers of `min_count` or more, the commonest first, equally common ones ascending; `numbers` ascend."""
    common = counts >= min_count
    return numbers[common][np.argsort(-counts[common], kind="stable")]
