"""Which sequences came before: from a quick hash of the text to the stable one, 20 bytes a user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


class KnownTexts:
    """Texts by quick hash: their stable hash and how many items they have."""

    def __init__(self) -> None:
        self._levels: list[tuple[Hashes, Hashes, NDArray[np.int32]]] = []  # sorted by quick hash, large before small
        self._pending: list[tuple[Hashes, Hashes, NDArray[np.int32]]] = []

    def add(self, quick: Hashes, stable: Hashes, lengths: NDArray[np.int32]) -> None:
        """Take texts; those that are there already do no harm."""
        if len(quick):
            self._pending.append((quick, stable, lengths))

    def find(self, quick: Hashes) -> tuple[NDArray[np.bool_], Hashes, NDArray[np.int32]]:
        """Return which quick hashes are known, their stable hashes and numbers of items (0 for the others)."""
        found, lengths = np.zeros(len(quick), dtype=bool), np.zeros(len(quick), dtype=np.int32)
        hashes = np.zeros(len(quick), dtype=np.uint64)
        for keys, stable, counts in self._sorted():
            at = np.minimum(np.searchsorted(keys, quick), len(keys) - 1)
            here = keys[at] == quick
            if here.all():
                return here, stable[at], counts[at]
            found |= here
            lengths[here], hashes[here] = counts[at[here]], stable[at[here]]
        return found, hashes, lengths

    def _sorted(self) -> list[tuple[Hashes, Hashes, NDArray[np.int32]]]:
        while self._pending:
            parts, self._pending = self._pending, []
            # as in a log-structured table: a level joins the one above it once it is no longer much smaller
            while self._levels and len(self._levels[-1][0]) < 8 * sum(len(part[0]) for part in parts):
                parts.append(self._levels.pop())
            quick, stable, lengths = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            _, first = np.unique(quick, return_index=True)
            self._levels.append((quick[first], stable[first], lengths[first]))
        return self._levels
