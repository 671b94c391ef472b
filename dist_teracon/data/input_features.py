"""Side features of users and items as inputs: which there are, and which of them a task must not read.

A feature's value is a number: 0 where it is missing, from 1 on a category or a bin of a number. A feature that is closed to a task is taken
out of that task's rows where they are made, so that no model sees it.

Legend: U users, V items, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = 0
# Stands for the value of a feature in the rows of a task that must not read it: no embedding is read for it.
CLOSED = -1


@dataclass(frozen=True)
class InputFeature:
    """A feature.

    Attributes:
        name: The attribute's.
        values: Its values, the missing one included.
        edges: Between bins, an edge belonging to the bin above; nothing for categories.
    """

    name: str
    values: int
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class InputFeatures:
    """The features of a data set.

    Attributes:
        user, item: Of users, and of items.
        closed: By task, the features of users that its rows do not hold; tasks that read all are left out.
    """

    user: tuple[InputFeature, ...] = ()
    item: tuple[InputFeature, ...] = ()
    closed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all features, those of users first; no two have one."""
        return tuple(feature.name for feature in (*self.user, *self.item))

    def of(self, names: Sequence[str]) -> InputFeatures:
        """Return the features of these names."""
        user, item = (tuple(feature for feature in part if feature.name in names) for part in (self.user, self.item))
        return InputFeatures(user, item, self.closed)

    def closed_to(self, tasks: Iterable[str]) -> frozenset[str]:
        """Return the features of users that are closed to any of some tasks."""
        return frozenset(name for task in tasks for name in self.closed.get(task, ()))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputFeatures:
        """Return what `to_json` gave."""
        user, item = (
            tuple(InputFeature(part["name"], int(part["values"]), tuple(part["edges"])) for part in value.get(kind, ()))
            for kind in ("user", "item")
        )
        return cls(user, item, {task: tuple(names) for task, names in value.get("closed", {}).items()})


NO_FEATURES = InputFeatures()


@dataclass(frozen=True)
class FeatureColumn:
    """A feature with the names of its values.

    Attributes:
        name: The attribute's.
        names: Of its values in the order of their numbers, from 1 on.
        edges: As in `InputFeature`.
    """

    name: str
    names: Sequence[str]
    edges: tuple[float, ...] = ()

    @property
    def feature(self) -> InputFeature:
        """As a data set describes it."""
        return InputFeature(self.name, len(self.names) + 1, self.edges)


@dataclass(frozen=True)
class InputTables:
    """What a source has of features beside its users' rows.

    Attributes:
        user, item: The features.
        item_values: int32 [V, F], those of the items in the order of the catalogue.
        closed: As in `InputFeatures`.
    """

    user: Sequence[FeatureColumn] = ()
    item: Sequence[FeatureColumn] = ()
    item_values: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int32))
    closed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def features(self) -> InputFeatures:
        """As a data set describes them."""
        return InputFeatures(tuple(c.feature for c in self.user), tuple(c.feature for c in self.item), dict(self.closed))


NO_INPUTS = InputTables()


def bin_of(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int32]:
    """Return the bin of each number, from 1 on; `MISSING` for what is not finite."""
    number = 1 + np.searchsorted(np.asarray(edges, dtype=np.float64), values, side="right")
    return np.where(np.isfinite(values), number, MISSING).astype(np.int32)


def close(values_UF: NDArray[np.int32], names: Sequence[str], closed: Iterable[str]) -> NDArray[np.int32]:
    """Return features of users with some of them closed.

    Args:
        values_UF: Their values.
        names: F names, of the columns.
        closed: Names; others than those of the columns do nothing.
    """
    shut = set(closed)
    columns = [place for place, name in enumerate(names) if name in shut]
    if columns:
        values_UF = values_UF.copy()
        values_UF[:, columns] = CLOSED
    return values_UF
