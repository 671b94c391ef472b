"""Columns of names as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Names:
    """A column of names: int32 codes (−1 where there is none) into `names`, which has each name once."""

    codes: NDArray[np.int32]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def from_arrow(cls, column: Any) -> Names:
        """Encode a string array; names stand in the order of their first appearance."""
        builder = NamesBuilder()
        return builder.names(builder.codes(column))

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """Join the columns of several files."""
        if len(parts) == 1:
            return parts[0]
        index: dict[str, int] = {}
        codes = []
        for part in parts:
            own = np.array([*(index.setdefault(name, len(index)) for name in part.names), -1], dtype=np.int32)
            codes.append(own[part.codes])
        return cls(np.concatenate(codes), list(index))


class NamesBuilder:
    """Encodes blocks of one column, names standing in the order of their first appearance."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def codes(self, column: Any) -> NDArray[np.int32]:
        """Return the codes of a string array, −1 for nulls."""
        encoded = column.dictionary_encode()
        index = self._index
        own = np.array([*(index.setdefault(name, len(index)) for name in encoded.dictionary.to_pylist()), -1], dtype=np.int32)
        return own[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def names(self, codes: NDArray[np.int32]) -> Names:
        """Return a whole column."""
        return Names(codes, list(self._index))
