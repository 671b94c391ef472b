"""Columns of names as codes into the distinct names, as a `pandas.Categorical`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Categorical:
    """A column of names: int32 codes (−1 where there is none) into `names`, which has each name once."""

    codes: NDArray[np.int32]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def from_arrow(cls, column: Any) -> Categorical:
        """Encode a string array; names stand in the order of their first appearance."""
        builder = CategoricalBuilder()
        return builder.build(builder.encode(column))

    def take(self, rows: NDArray[np.int64]) -> Categorical:
        """Return some rows, with the names that they have in the order of their first appearance."""
        codes = self.codes[rows]
        used, first = np.unique(codes[codes >= 0], return_index=True)
        used = used[np.argsort(first)]
        own = np.full(len(self.names) + 1, -1, dtype=np.int32)
        own[used] = np.arange(len(used), dtype=np.int32)
        return Categorical(own[codes], [self.names[code] for code in used.tolist()])

    @classmethod
    def concatenate(cls, parts: Sequence[Categorical]) -> Categorical:
        """Concatenate the columns of several files."""
        if len(parts) == 1:
            return parts[0]
        index: dict[str, int] = {}
        codes = []
        for part in parts:
            own = np.array([*(index.setdefault(name, len(index)) for name in part.names), -1], dtype=np.int32)
            codes.append(own[part.codes])
        return cls(np.concatenate(codes), list(index))


class CategoricalBuilder:
    """Joins blocks of one column, names standing in the order of their first appearance."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def encode(self, column: Any) -> NDArray[np.int32]:
        """Return the codes of a string array, −1 for nulls."""
        encoded = column.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return self.add(Categorical(codes, encoded.dictionary.to_pylist()))

    def add(self, column: Categorical) -> NDArray[np.int32]:
        """Return a block's codes among all names so far."""
        index = self._index
        own = np.array([*(index.setdefault(name, len(index)) for name in column.names), -1], dtype=np.int32)
        return own[column.codes]

    def build(self, codes: NDArray[np.int32]) -> Categorical:
        """Return the column of codes that were returned, of one block or of several one behind the other."""
        return Categorical(codes, list(self._index))
