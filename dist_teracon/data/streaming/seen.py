"""Which sequences came before: from a quick hash of the text to the stable one, some 24 bytes a user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class _Level:
    """Texts in the order of their quick hashes, and where the first of each leading bits stands.

    As the hashes are spread evenly, a text stands within a few places from there. A binary search would wait for memory twenty times,
    one time after another.
    """

    quick: Hashes
    stable: Hashes
    lengths: NDArray[np.int32]
    firsts: NDArray[np.int32]
    shift: np.uint64

    @classmethod
    def of(cls, quick: Hashes, stable: Hashes, lengths: NDArray[np.int32]) -> _Level:
        quick, first = np.unique(quick, return_index=True)
        bits = len(quick).bit_length()
        shift = np.uint64(64 - bits)
        firsts = np.searchsorted(quick, np.arange(1 << bits, dtype=np.uint64) << shift).astype(np.int32)
        return cls(quick, stable[first], lengths[first], np.minimum(firsts, len(quick) - 1), shift)

    def places(self, quick: Hashes) -> NDArray[np.int64]:
        """Return where each hash stands if it is there."""
        at = self.firsts[quick >> self.shift].astype(np.int64)
        beyond = np.flatnonzero(self.quick[at] < quick)
        while len(beyond):
            at[beyond] += 1
            beyond = beyond[at[beyond] < len(self.quick)]
            beyond = beyond[self.quick[at[beyond]] < quick[beyond]]
        return np.minimum(at, len(self.quick) - 1, out=at)


class SeenSequences:
    """Sequences by the quick hash of their text: their stable hash and how many items they have."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []  # large before small
        self._pending: list[tuple[Hashes, Hashes, NDArray[np.int32]]] = []

    def add(self, quick: Hashes, stable: Hashes, lengths: NDArray[np.int32]) -> None:
        """Add sequences; those that are there already do no harm."""
        if len(quick):
            self._pending.append((quick, stable, lengths))

    def find(self, quick: Hashes) -> tuple[NDArray[np.bool_], Hashes, NDArray[np.int32]]:
        """Return which quick hashes are there, their stable hashes and numbers of items (0 for the others)."""
        found, lengths = np.zeros(len(quick), dtype=bool), np.zeros(len(quick), dtype=np.int32)
        hashes = np.zeros(len(quick), dtype=np.uint64)
        for level in self._sorted():
            at = level.places(quick)
            here = level.quick[at] == quick
            if here.all():
                return here, level.stable[at], level.lengths[at]
            found |= here
            lengths[here], hashes[here] = level.lengths[at[here]], level.stable[at[here]]
        return found, hashes, lengths

    def _sorted(self) -> list[_Level]:
        while self._pending:
            parts, self._pending = self._pending, []
            # as in a log-structured table: a level joins the one above it once it is no longer much smaller
            while self._levels and len(self._levels[-1].quick) < 8 * sum(len(part[0]) for part in parts):
                level = self._levels.pop()
                parts.append((level.quick, level.stable, level.lengths))
            self._levels.append(_Level.of(*(np.concatenate(columns) for columns in zip(*parts, strict=True))))
        return self._levels
