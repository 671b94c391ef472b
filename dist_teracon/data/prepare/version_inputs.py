"""Side features of a version: old values keep their numbers, new ones come behind; bins are those of the old version.

Legend: U users, V items, F features.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.input_features import MISSING, FeatureColumn, InputFeatures, InputTables
from dist_teracon.data.prepare.folder_writer import FolderWriter
from dist_teracon.data.raw.values import with_truth_forms
from dist_teracon.data.schema import FIRST_ITEM, DatasetInfo
from dist_teracon.errors import DataError


def check_inputs(parent: str, old: DatasetInfo, new: DatasetInfo) -> None:
    """Raise DataError where two data sets do not have the same features with the same bins."""
    before, now = (
        [(kind, feature.name, feature.edges) for kind in ("user", "item") for feature in getattr(info.inputs, kind)] for info in (old, new)
    )
    if before != now:
        names = [", ".join(f"{kind} {name}" for kind, name, _ in each) or "none" for each in (now, before)]
        why = "their bins differ" if names[0] == names[1] else f"it has {names[0]}, and {parent} has {names[1]}"
        raise DataError(f"{new.name}: side features are not those of {parent} ({why}); prepare it by the same inputs, with --append")


class VersionInputs:
    """The features of `old` and of what is added to it.

    Args:
        old: The version before.
        new: What is added.

    Attributes:
        names: By feature, the names of its values, `None` first.
        counts: By feature of users, users of each value.
    """

    def __init__(self, old: Dataset, new: Dataset) -> None:
        self.old, self.new = old, new
        self.names: dict[str, list[str | None]] = {}
        self._number: dict[str, NDArray[np.int32]] = {}
        for name in old.info.inputs.names:
            known = self.names[name] = old.input_values(name)
            place = with_truth_forms({value: number for number, value in enumerate(known) if value is not None})
            theirs = new.input_values(name)
            for value in theirs:
                if value is not None and value not in place:
                    place[value] = len(known)
                    known.append(value)
            self._number[name] = np.array([MISSING if value is None else place[value] for value in theirs], dtype=np.int32)
        self.counts = {feature.name: np.zeros(len(self.names[feature.name]), dtype=np.int64) for feature in old.info.inputs.user}

    def users(
        self, ours: NDArray[np.int32] | None, theirs: NDArray[np.int32] | None, rows: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int32]]:
        """Return the features of a shard's users by name.

        Args:
            ours, theirs: int32 [U, F] of the old version's users and of those added; None without features of users.
            rows: Which of the two, laid behind one another, the new version's are.
        """
        if ours is None or theirs is None:
            return {}
        found = {}
        for place, feature in enumerate(self.old.info.inputs.user):
            both = np.concatenate([ours[:, place], self._number[feature.name][theirs[:, place]]])
            values = found[feature.name] = both[rows]
            self.counts[feature.name] += np.bincount(values, minlength=len(self.names[feature.name]))
        return found

    def write(self, writer: FolderWriter, item_of: NDArray[np.int32], items: int, *, refresh: bool, tasks: Iterable[str]) -> InputFeatures:
        """Write names and items' values.

        Args:
            writer: Of the new version's folder.
            item_of: For each index of an added item the one of the new version.
            items: Items of the new version, reserved ones included.
            refresh: Known items have today's values, where there are any.
            tasks: Of what is added, those that the new version takes.
        """
        before, closed = self.old.info.inputs, dict(self.old.info.inputs.closed)
        closed |= {task: names for task, names in self.new.info.inputs.closed.items() if task in set(tasks)}
        user, item = (
            [FeatureColumn(feature.name, [str(name) for name in self.names[feature.name][1:]], feature.edges) for feature in part]
            for part in (before.user, before.item)
        )
        tables = InputTables(user, item, self._items(item_of, items, refresh=refresh)[FIRST_ITEM:], closed)
        writer.inputs(tables, list(self.counts.values()))
        return tables.features

    def _items(self, item_of: NDArray[np.int32], items: int, *, refresh: bool) -> NDArray[np.int32]:
        for dataset in (self.old, self.new):
            dataset.read_inputs(dataset.info.inputs.names)
        ours, theirs = self.old.item_features(), self.new.item_features()
        values = np.full((items, ours.shape[1]), MISSING, dtype=np.int32)
        values[: len(ours)] = ours
        taken = np.flatnonzero((item_of >= FIRST_ITEM) & ((item_of >= len(ours)) | refresh))
        for place, feature in enumerate(self.old.info.inputs.item):
            now = self._number[feature.name][theirs[taken, place]]
            there = now != MISSING
            values[item_of[taken[there]], place] = now[there]
        return values
