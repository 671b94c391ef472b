"""The one form that every source brings its data into before it is split, sharded and written.

Ragged columns lie flat: `values` with `offsets`, row r being `values[offsets[r]:offsets[r + 1]]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SequenceTable:
    """Users with their behaviour sequences.

    Attributes:
        user_ids: Unique names, one a user.
        user_hash: uint64 [U], stable hash of the user's identity (`stable_hash`); equal within a group that is split as one.
        values: int32 [N], positions in `Tables.items`, oldest first within a user; −1 is an item outside of it (written as unseen).
        offsets: int64 [U + 1].
    """

    user_ids: Sequence[str]
    user_hash: NDArray[np.uint64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class LabelTable:
    """A task's labels.

    Attributes:
        name: The task's name.
        kind: `item` or `profile`.
        classes: Names of the classes; a label is a position in it.
        users: int64 [R], rows of the sequence table, ascending, each once.
        values: int32 [E], labels.
        offsets: int64 [R + 1].
    """

    name: str
    kind: Literal["item", "profile"]
    classes: Sequence[str]
    users: NDArray[np.int64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """A whole data set before splitting and sharding.

    Attributes:
        name: Name for people.
        items: The catalogue; sequence values are positions in it (from 0; the reserved rows are added when written).
        sequences: Users and sequences.
        next_task: Name of the self-supervised first task.
        next_users: Rows of users that take part in the first task; None for all with at least two items.
        labels: The later tasks in order.
        length_limit: Longest sequence kept; longer ones keep their last items.
        source, notes: As in `DatasetInfo`.
    """

    name: str
    items: Sequence[str]
    sequences: SequenceTable
    labels: Sequence[LabelTable]
    length_limit: int
    next_task: str = "next"
    next_users: NDArray[np.int64] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of `text` that is the same in every process and release (BLAKE2b, 8 bytes, little-endian)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(values: NDArray[np.uint64], *, key: int) -> NDArray[np.uint64]:
    """Return keyed 64-bit hashes of 64-bit hashes: the finaliser of SplitMix64 over `values` xor a mixed `key`, vectorised."""
    with np.errstate(over="ignore"):
        mixed = (values ^ np.uint64((key * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
