"""A new version of a data set: users, tasks and items are added, and what was there stays as it was.

Both the old version and what is added are prepared data sets, so any source can be appended. In the new version

- old users keep their row, sequence and split; new users come after them in each shard. A new user of an old user's group (an equal
  hash) has that group's split, the others the one that they were prepared with;
- old items keep their index; items of new users that were not known come after them;
- old tasks keep their labels, examples and files, byte for byte: new users take part in new tasks alone;
- tasks whose names were not there are added, with the labels of old and new users.

It is worked off shard by shard. `parent` in `dataset.json` is the old version's fingerprint, `source.ancestors` all before it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.writer import FolderWriter
from dist_teracon.data.schema import (
    FIRST_ITEM,
    LABELS_OF_THEIR_OWN,
    UNSEEN_ITEM,
    DatasetInfo,
    Split,
    Task,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.data.shard_source import ShardLabels
from dist_teracon.errors import DataError

_UNKNOWN = -1


def ancestors(info: DatasetInfo) -> list[str]:
    """Return the fingerprints of all versions before this one, the first one first."""
    return list(info.source.get("ancestors", ()))


def append(parent: str, added: str, out: str) -> DatasetInfo:
    """Write the version of `parent` that also holds what `added` has, or find that it is there already.

    Args:
        parent: Folder or URI of the old version.
        added: Folder or URI of a prepared data set with the same number of shards.
        out: Folder or URI of the new version.

    Raises:
        DataError: the two do not fit, nothing new is in `added`, or `out` holds something else.
    """
    old, new = Dataset(parent), Dataset(added)
    if "padding" in old.info.notes or "padding" in new.info.notes:
        raise DataError(f"{parent}: sequences padded by history.padding cannot grow; prepare both without it")
    if old.info.shards != new.info.shards:
        raise DataError(
            f"{added}: has {new.info.shards} shards and {parent} has {old.info.shards}; prepare it with --shards {old.info.shards}"
        )
    tasks = [task for task in new.info.tasks if not task.predicts_next and task.name not in {known.name for known in old.info.tasks}]
    if not tasks:
        known = ", ".join(task.name for task in old.info.tasks)
        raise DataError(f"{new.info.name}: has no task that {parent} does not have ({known}); name the new task otherwise in the recipe")
    made = hashlib.sha256(f"append:{old.info.fingerprint}:{new.info.fingerprint}".encode()).hexdigest()
    if io.exists(io.join(out, "dataset.json")):
        there = Dataset(out).info
        if there.source.get("fingerprint") != made:
            raise DataError(f"{out}: holds a data set made from something else; name a new folder or remove it")
        return there
    if io.is_local(out):
        with io.atomic_folder(io.local_path(out)) as folder:
            return _Append(old, new, tasks, folder).write(made)
    with tempfile.TemporaryDirectory() as name:
        info = _Append(old, new, tasks, Path(name)).write(made)
        io.copy_folder(Path(name), out, last="dataset.json")
    return info


def _joined_recipe(old: DatasetInfo, new: DatasetInfo, added: Sequence[Task]) -> dict[str, Any]:
    """Return the recipe of a version as part of its source: the old one with the added tasks' rules; nothing where there is none."""
    recipe, theirs = old.source.get("recipe"), new.source.get("recipe")
    if not isinstance(recipe, dict) or old.source.get("format") in LABELS_OF_THEIR_OWN:
        return {}
    rules = theirs.get("tasks", {}) if isinstance(theirs, dict) else {}
    return {"recipe": {**recipe, "tasks": {**recipe.get("tasks", {}), **{t.name: rules[t.name] for t in added if t.name in rules}}}}


@dataclass(frozen=True)
class _Users:
    """A shard of the new version.

    Attributes:
        row: int64, for each user of `added` its row in the new version.
        old: Users of the old version.
        split: int8, for each row of the new version its split under the split by user, `_UNKNOWN` where no label has one.
    """

    row: NDArray[np.int64]
    old: int
    split: NDArray[np.int8]


class _Append:
    def __init__(self, old: Dataset, new: Dataset, tasks: Sequence[Task], folder: Path) -> None:
        self.old, self.new, self.tasks, self.folder = old, new, tasks, folder
        self.writer = FolderWriter(folder)
        self.fresh_items: list[str] = []
        self.added_users = self.added_events = 0

    def write(self, fingerprint: str) -> DatasetInfo:
        old = self.old.info
        for task in old.tasks:
            if not task.predicts_next:
                self._copy(vocabulary_file(task.name), self.old)
            for shard in range(old.shards):
                self._copy(task_file(task.name, shard), self.old)
        item_of = self._item_indices()
        users = [self._users(shard, item_of) for shard in range(old.shards)]
        added = tuple(self._task(task, users) for task in self.tasks)
        appended = {
            "users": self.added_users,
            "items": len(self.fresh_items),
            "tasks": [task.name for task in added],
            "source": self.new.info.source.get("fingerprint"),
        }
        info = replace(
            old,
            users=old.users + self.added_users,
            items=old.items + len(self.fresh_items),
            events=old.events + self.added_events,
            length_limit=max(old.length_limit, self.new.info.length_limit),
            tasks=(*old.tasks, *added),
            files=self.writer.files,
            source={
                "format": "append",
                "fingerprint": fingerprint,
                "ancestors": [*ancestors(old), old.fingerprint],
                **_joined_recipe(old, self.new.info, added),
            },
            notes={**old.notes, "appended": [*old.notes.get("appended", ()), appended]},
            parent=old.fingerprint,
        )
        io.write_json(self.folder / "dataset.json", info.to_json())
        return info

    def _item_indices(self) -> NDArray[np.int32]:
        """Write the items' vocabulary; returns for each index of `added` the one of the new version."""
        table, theirs = self.old.vocabulary("items"), self.new.vocabulary("items")
        counts = np.zeros(self.new.info.items, dtype=np.int64)
        for shard in range(self.new.info.shards):
            data, rows = self.new.shard(shard), self._fresh(shard)
            counts += np.bincount(ragged.take(data.values, data.offsets, rows)[0], minlength=self.new.info.items)
        known = {name: index for index, name in enumerate(table["item"].to_pylist()) if name is not None}
        total = np.concatenate([table["count"].to_numpy(), np.zeros(len(theirs), dtype=np.int64)])
        item_of = np.full(len(theirs), UNSEEN_ITEM, dtype=np.int32)
        for index, name in enumerate(theirs["item"].to_pylist()):
            if index < FIRST_ITEM or not counts[index]:
                continue
            if name not in known:
                known[name] = len(table) + len(self.fresh_items)
                self.fresh_items.append(name)
            item_of[index] = known[name]
        np.add.at(total, item_of, counts)
        names = [*table["item"].to_pylist(), *self.fresh_items]
        self.writer.vocabulary("items", "item", pa.array(names, pa.string()), total[: len(names)])
        return item_of

    def _fresh(self, shard: int) -> NDArray[np.int64]:
        """Rows of a shard of `added` whose users the old version does not have."""
        known = set(self._ids(self.old, shard))
        return np.array([row for row, name in enumerate(self._ids(self.new, shard)) if name not in known], dtype=np.int64)

    @staticmethod
    def _ids(dataset: Dataset, shard: int) -> list[str]:
        names: list[str] = dataset.table(users_file(shard), ["user_id"])["user_id"].to_pylist()
        return names

    def _users(self, shard: int, item_of: NDArray[np.int32]) -> _Users:
        ours, theirs = self.old.shard(shard), self.new.shard(shard)
        our_ids, their_ids = self._ids(self.old, shard), self._ids(self.new, shard)
        fresh = self._fresh(shard)
        row_of_id = {name: row for row, name in enumerate([*our_ids, *(their_ids[row] for row in fresh)])}
        values, offsets = ragged.take(theirs.values, theirs.offsets, fresh)
        sequences = ragged.concatenate([(ours.values, ours.offsets), (item_of[values], offsets)])
        hashes = np.concatenate([ours.user_hash, theirs.user_hash[fresh]])
        self.writer.users(shard, pa.array(list(row_of_id), pa.string()), hashes, *sequences)
        self.added_users += len(fresh)
        self.added_events += len(values)
        row = np.array([row_of_id[name] for name in their_ids], dtype=np.int64)
        return _Users(row, len(our_ids), self._split(shard, hashes, len(our_ids)))

    def _split(self, shard: int, hashes: NDArray[np.uint64], old: int) -> NDArray[np.int8]:
        """Each row's split as in the old version's labels, a group's being that of any of its users."""
        split = np.full(hashes.shape[0], _UNKNOWN, dtype=np.int8)
        for task in self.old.info.tasks:
            labels = self.old.labels(task.name, shard)
            split[labels.users] = labels.split[labels.offsets[:-1]]
        known = np.flatnonzero(split[:old] != _UNKNOWN)
        by_hash = dict(zip(hashes[known].tolist(), split[known].tolist(), strict=True))
        return np.array([by_hash.get(value, _UNKNOWN) for value in hashes.tolist()], dtype=np.int8)

    def _task(self, task: Task, users: Sequence[_Users]) -> Task:
        self._copy(vocabulary_file(task.name), self.new)
        sizes, count = np.zeros(len(Split), dtype=np.int64), 0
        for shard, here in enumerate(users):
            labels = self.new.labels(task.name, shard)
            rows = here.row[labels.users]
            order = np.argsort(rows, kind="stable")
            values, offsets = ragged.take(labels.values, labels.offsets, order)
            split, _ = ragged.take(labels.split, labels.offsets, order)
            if self.old.info.split.by == "users":
                inherited = np.repeat(here.split[rows[order]], np.diff(offsets))
                split = np.where(inherited == _UNKNOWN, split, inherited)
            self.writer.labels(task.name, shard, ShardLabels(rows[order], values, offsets), split)
            sizes += np.bincount(split, minlength=len(Split))
            count += len(rows)
        train, validation, test = sizes.tolist()
        if not min(train, validation, test):
            raise DataError(
                f"task '{task.name}': under the split of {self.old.uri} it has {train} training, {validation} validation, {test} test "
                "examples; each part needs one: prepare it with more users"
            )
        return replace(task, users=count, examples=(train, validation, test))

    def _copy(self, path: str, dataset: Dataset) -> None:
        self.writer.copy(path, dataset.content(path), dataset.info.files[path])
