"""A new version of a data set: users, tasks and items are added, and what was there stays as it was.

Both the old version and what is added are prepared data sets, so any source can be appended. In the new version

- old users keep their row, sequence and split; new users come after them in each shard. A new user of an old user's group (an equal
  hash) has that group's split, the others the one that they were prepared with;
- old items keep their index; items of new users that were not known come after them;
- old tasks keep their labels, examples and files, byte for byte: new users take part in new tasks alone;
- tasks whose names were not there are added, with the labels of old and new users;
- what histories keep beside items is the same in both, and so are side features; types and values keep their numbers, as items do.

A refreshed version takes old users' sequences, too, from what is added, where they are there, and makes the first task's examples anew
of all users' sequences; its classes are then all items. Splits, indices and the labels of all other old tasks stay.

What is left out is counted (`notes.appended`). It is worked off shard by shard. `parent` in `dataset.json` is the old version's
fingerprint, `source.ancestors` all before it, `source.comparable` those of them whose scores compare with this one's: old tasks have
the same examples and histories since then.
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
from dist_teracon.atomic import atomic_folder, copy_folder, write_json
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import UNKNOWN_TYPE, EventColumns
from dist_teracon.data.prepare.append_counts import LeftOut, labels_not_in, moments_before, newer_events
from dist_teracon.data.prepare.folder_writer import FolderWriter
from dist_teracon.data.prepare.matched import COMPARED, join_of
from dist_teracon.data.prepare.version_inputs import VersionInputs, check_inputs
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, DatasetInfo, Split, Task, task_file, users_file, vocabulary_file
from dist_teracon.data.shard_source import ShardLabels
from dist_teracon.errors import DataError

_UNKNOWN = -1


def ancestors(info: DatasetInfo) -> list[str]:
    """Return the fingerprints of all versions before this one, the first one first."""
    return list(info.source.get("ancestors", ()))


def append(parent: str, added: str, out: str, *, refresh: bool = False, recipe: dict[str, Any] | None = None) -> DatasetInfo:
    """Write the version of `parent` that also holds what `added` has, or find that it is there already.

    Args:
        parent: Folder or URI of the old version.
        added: Folder or URI of a prepared data set with the same number of shards.
        out: Folder or URI of the new version.
        refresh: Take old users' histories and the first task's examples from `added`, too.
        recipe: The recipe to record, of the old tasks and of the new ones.

    Raises:
        DataError: the two do not fit, nothing new is in `added`, or `out` holds something else.
    """
    old, new = Dataset(parent), Dataset(added)
    if "padding" in old.info.notes or "padding" in new.info.notes:
        raise DataError(f"{parent}: sequences padded by history.padding cannot grow; prepare both without it")
    if old.info.shards != new.info.shards:
        raise DataError(
            f"{new.info.name}: has {new.info.shards} shards and {parent} has {old.info.shards}; prepare it with --shards {old.info.shards}"
        )
    refuse_fixed_splits(parent, old.info.split.by, new.info.split.by)
    _check_columns(parent, old.info, new.info)
    check_inputs(parent, old.info, new.info)
    tasks = [task for task in new.info.tasks if not task.predicts_next and task.name not in {known.name for known in old.info.tasks}]
    if not tasks and not refresh:
        raise no_new_task(new.info.name, parent, old.info)
    _check_one_writing(parent, old, new)
    made = hashlib.sha256(f"{'refresh' if refresh else 'append'}:{old.info.fingerprint}:{new.info.fingerprint}".encode()).hexdigest()
    if io.exists(io.join(out, "dataset.json")):
        there = Dataset(out).info
        if there.source.get("fingerprint") != made:
            raise DataError(f"{out}: holds a data set made from something else; name a new folder or remove it")
        return there
    if io.is_local(out):
        with atomic_folder(io.output_folder(out), last="dataset.json") as folder:
            return _Append(old, new, tasks, folder, refresh=refresh).write(made, recipe)
    with tempfile.TemporaryDirectory() as name:
        info = _Append(old, new, tasks, Path(name), refresh=refresh).write(made, recipe)
        copy_folder(Path(name), out, last="dataset.json")
    return info


def refuse_fixed_splits(parent: str, *splits: str) -> None:
    """Raise DataError where one of the data sets is split by `last` or `time`."""
    if (by := next((by for by in splits if by in ("last", "time")), None)) is not None:
        raise DataError(f"{parent}: data sets split by '{by}' cannot grow, as other events would be left out; prepare both by users")


def _check_columns(parent: str, old: DatasetInfo, new: DatasetInfo) -> None:
    """Raise DataError where one version would have times or types of events that the other has not."""
    before, now = (" and ".join(("items", *info.history.names)) for info in (old, new))
    if before != now:
        raise DataError(
            f"{new.name}: its histories hold {now} and those of {parent} {before}; prepare it with the same history.keep, from a source "
            "with the same columns"
        )


# Of the ids of one version alone, the share, and the number, from which ones that differ in their writing are no accident.
_ANOTHER_WRITING, _NO_ACCIDENT = 0.1, 3


def _check_one_writing(parent: str, old: Dataset, new: Dataset) -> None:
    """Raise DataError where many ids of one version are those of the other, written in another way: each would be two users, or items.

    One odd id in a table of numbers is enough for that: a column of 1.0, 2.0 is read as 1, 2, and with a name among them as it stands.
    """
    users: tuple[list[str], list[str]] = ([], [])
    for shard in range(old.info.shards):  # a user has the same shard in both
        names = [dataset.table(users_file(shard), ["user_id"])["user_id"].to_pylist() for dataset in (old, new)]
        for alone, mine, theirs in zip(users, names, reversed(names), strict=True):
            alone.extend(set(mine).difference(theirs))
        if max(map(len, users)) > COMPARED:  # too many to hold at once, and to compare
            users = ([], [])
            break
    items = [[name for name in dataset.vocabulary("items")["item"].to_pylist() if name is not None] for dataset in (old, new)]
    for noun, (ours, theirs) in (("users", users), ("items", items)):
        join = join_of(ours, theirs)
        apart = min(join.left, join.right) - join.both
        if join.nearly >= max(_NO_ACCIDENT, _ANOTHER_WRITING * apart):
            raise DataError(
                f"{new.info.name}: {join.nearly} of its {noun} would be {noun} of {parent} but for "
                f"{' and '.join(join.but_for) or 'several differences together'}, and were others: only in {parent}: "
                f"{', '.join(map(repr, join.only_left))}; only in {new.info.name}: {', '.join(map(repr, join.only_right))}; write ids "
                "in one way in both"
            )


def no_new_task(name: str, parent: str, old: DatasetInfo) -> DataError:
    """Return the error for what adds no task to a data set."""
    known = ", ".join(task.name for task in old.tasks)
    return DataError(
        f"{name}: has no task that {parent} does not have ({known}); name the new task otherwise in the recipe, "
        "or take old users' new events with --refresh"
    )


@dataclass(frozen=True)
class _Users:
    """A shard of the new version.

    Attributes:
        row: int64, for each user of `added` its row in the new version.
        old: Users of the old version.
        split: int8, for each row of the new version its split under the split by user, `_UNKNOWN` where no label has one.
        last: int32, for each row of the new version its last item; the unseen one's index where it has fewer than two.
    """

    row: NDArray[np.int64]
    old: int
    split: NDArray[np.int8]
    last: NDArray[np.int32]


class _Append:
    def __init__(self, old: Dataset, new: Dataset, tasks: Sequence[Task], folder: Path, *, refresh: bool) -> None:
        self.old, self.new, self.tasks, self.folder, self.refresh = old, new, tasks, folder, refresh
        self.writer = FolderWriter(folder)
        self.fresh_items: list[str] = []
        self.added_users = self.events = self.renewed = self.shorter = 0
        self.left_out = LeftOut()
        (self.first,) = (task for task in old.info.tasks if task.predicts_next)
        self.same_item = np.zeros(0, dtype=np.int32)  # from an index of `added` to the old version's, −1 for an item that it does not have
        self.types: list[str | None] = old.types()  # by number, new ones behind
        self.same_type = self._type_numbers()
        self.type_counts = np.zeros(len(self.types), dtype=np.int64)
        self.inputs = VersionInputs(old, new)
        self._our_earlier = self._their_earlier = np.zeros(0, dtype=np.int32)  # numbers in the new version by index of `earlier`
        self._rows: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def write(self, fingerprint: str, recipe: dict[str, Any] | None) -> DatasetInfo:
        old = self.old.info
        for task in old.tasks:
            if not task.predicts_next:
                self._copy(vocabulary_file(task.name), self.old)
            for shard in range(old.shards) if not (task.predicts_next and self.refresh) else ():
                self._copy(task_file(task.name, shard), self.old)
        item_of = self._item_indices()
        self._earlier_numbers(item_of)
        users = [self._users(shard, item_of) for shard in range(old.shards)]
        if self.types:
            self.writer.types([str(name) for name in self.types[1:]], self.type_counts)
        items = old.items + len(self.fresh_items)
        inputs = self.inputs.write(self.writer, item_of, items, refresh=self.refresh, tasks=[task.name for task in self.tasks])
        kept = tuple(self._first_task(users) if task.predicts_next and self.refresh else task for task in old.tasks)
        added = tuple(self._task(task, users) for task in self.tasks)
        self._count_labels(users)
        appended = {
            "users": self.added_users,
            "items": len(self.fresh_items),
            "tasks": [task.name for task in added],
            "source": self.new.info.source.get("fingerprint"),
            "refreshed": self.refresh,
            **({"renewed_histories": self.renewed, "shorter_histories": self.shorter} if self.refresh else {}),
            "left_out": self.left_out.counts,
            "matched": self.new.info.notes.get("matched", {}),
        }
        lineage = {
            "ancestors": [*ancestors(old), old.fingerprint],
            "comparable": [] if self.refresh else [*old.source.get("comparable", ()), old.fingerprint],
            **({"labels_of_their_own": True} if old.labels_of_their_own else {}),
            **({} if self.refresh else moments_before(self.old)),
        }
        info = replace(
            old,
            users=old.users + self.added_users,
            items=items,
            events=self.events,
            length_limit=max(old.length_limit, self.new.info.length_limit),
            tasks=(*kept, *added),
            files=self.writer.files,
            source={"format": "append", "fingerprint": fingerprint, **lineage, **({} if recipe is None else {"recipe": recipe})},
            notes={**old.notes, "appended": [*old.notes.get("appended", ()), appended]},
            parent=old.fingerprint,
            history=replace(old.history, types=len(self.types)),
            inputs=inputs,
        )
        write_json(self.folder / "dataset.json", info.to_json())
        return info

    def _item_indices(self) -> NDArray[np.int32]:
        """Write the items' vocabulary; returns for each index of `added` the one of the new version."""
        table, theirs = self.old.vocabulary("items"), self.new.vocabulary("items")
        counts = np.zeros(self.new.info.items, dtype=np.int64)
        ours = table["count"].to_numpy().astype(np.int64)
        for shard in range(self.new.info.shards):
            fresh, renewed = self._matching(shard)
            data, rows = self.new.shard(shard), np.concatenate([fresh, renewed[renewed >= 0]])
            counts += np.bincount(ragged.take(data.values, data.offsets, rows)[0], minlength=self.new.info.items)
            before = self.old.shard(shard)
            replaced = ragged.take(before.values, before.offsets, np.flatnonzero(renewed >= 0))[0]
            ours = ours - np.bincount(replaced, minlength=len(ours))
        known = {name: index for index, name in enumerate(table["item"].to_pylist()) if name is not None}
        total = np.concatenate([ours, np.zeros(len(theirs), dtype=np.int64)])
        item_of = np.full(len(theirs), UNSEEN_ITEM, dtype=np.int32)
        self.same_item = np.array(
            [UNSEEN_ITEM if name is None else known.get(name, -1) for name in theirs["item"].to_pylist()], dtype=np.int32
        )
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

    def _type_numbers(self) -> NDArray[np.int32]:
        """Return for each type of `added` its number in the new version, which has the new ones behind the old."""
        known = {name: number for number, name in enumerate(self.types) if name is not None}
        for name in self.new.types():
            if name is not None and name not in known:
                known[name] = len(self.types)
                self.types.append(name)
        return np.array([UNKNOWN_TYPE if name is None else known[name] for name in self.new.types()], dtype=np.int32)

    def _matching(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of `added` whose users are new, and for each old user the row of `added` that renews it, −1 for none."""
        if shard not in self._rows:
            ours, theirs = self._ids(self.old, shard), self._ids(self.new, shard)
            known = {name: row for row, name in enumerate(ours)}
            renewed = np.full(len(ours), -1, dtype=np.int64)
            fresh = []
            for row, name in enumerate(theirs):
                if name not in known:
                    fresh.append(row)
                elif self.refresh:
                    renewed[known[name]] = row
            self._rows[shard] = np.array(fresh, dtype=np.int64), renewed
        return self._rows[shard]

    @staticmethod
    def _ids(dataset: Dataset, shard: int) -> list[str]:
        names: list[str] = dataset.table(users_file(shard), ["user_id"])["user_id"].to_pylist()
        return names

    def _users(self, shard: int, item_of: NDArray[np.int32]) -> _Users:
        ours, theirs = self.old.shard(shard), self.new.shard(shard)
        our_ids, their_ids = self._ids(self.old, shard), self._ids(self.new, shard)
        fresh, renewed = self._matching(shard)
        row_of_id = {name: row for row, name in enumerate([*our_ids, *(their_ids[row] for row in fresh)])}
        row = np.array([row_of_id[name] for name in their_ids], dtype=np.int64)
        here = item_of[theirs.values]
        both = ragged.concatenate([(ours.values, ours.offsets), (here, theirs.offsets)])
        old = np.where(renewed >= 0, len(our_ids) + renewed, np.arange(len(our_ids)))
        rows = np.concatenate([old, len(our_ids) + fresh])
        values, offsets = ragged.take(*both, rows)
        their_columns = replace(theirs.columns, types=None if theirs.columns.types is None else self.same_type[theirs.columns.types])
        columns = EventColumns.concatenate([ours.columns, their_columns]).take(both[1], rows)
        if columns.types is not None:
            self.type_counts += np.bincount(columns.types, minlength=len(self.types))
        hashes = np.concatenate([ours.user_hash, theirs.user_hash[fresh]])
        features = self.inputs.users(ours.features, theirs.features, rows)
        ids = pa.array(list(row_of_id), pa.string())
        self.writer.users(shard, ids, hashes, values, offsets, columns=columns, features=features)
        self._earlier(shard, rows)
        self.added_users += len(fresh)
        self.events += len(values)
        if self.refresh:
            self.renewed += int((renewed >= 0).sum())
            self.shorter += int((np.diff(offsets)[: len(our_ids)] < np.diff(ours.offsets)).sum())
            self.left_out.add("old users without events today, whose history stays", int((renewed < 0).sum()))
        else:
            known = np.flatnonzero(row < len(our_ids))
            now = (self.same_item[theirs.values], theirs.offsets)
            newer, late = newer_events(ours, row[known], now, known, theirs.columns.times)
            self.left_out.add("events of old users, newer than their history", newer)
            self.left_out.add("events of old users that are not in their history, though not newer", late)
        last = np.where(np.diff(offsets) >= 2, values[offsets[1:] - 1], UNSEEN_ITEM).astype(np.int32)
        return _Users(row, len(our_ids), self._split(shard, hashes, len(our_ids)), last)

    def _earlier_numbers(self, item_of: NDArray[np.int32]) -> None:
        """Number the items that users of either version took before their sequences begin: those of no sequence behind the others."""
        if not (self.old.info.keeps_earlier or self.new.info.keeps_earlier):
            return
        old, new = self.old.earlier_items(), self.new.earlier_items()
        taken = [found[0] for shard in range(self.new.info.shards) if (found := self.new.earlier(shard)) is not None]
        used = np.unique(np.concatenate(taken)) if taken else np.zeros(0, dtype=np.int32)
        ours, theirs = self.old.vocabulary("items")["item"].to_pylist(), self.new.vocabulary("items")["item"].to_pylist()
        known = {name: index for index, name in enumerate([*ours, *self.fresh_items]) if name is not None}
        first = len(ours) + len(self.fresh_items)
        lacking = [theirs[index] for index in used[used < len(theirs)].tolist() if item_of[index] < FIRST_ITEM]
        others = [name for name in dict.fromkeys([*old, *lacking, *new]) if name not in known]
        known |= {name: first + place for place, name in enumerate(others)}
        self._our_earlier = np.array([*range(len(ours)), *(known[name] for name in old)], dtype=np.int32)
        self._their_earlier = np.array([known.get(name, UNSEEN_ITEM) for name in [*theirs, *new]], dtype=np.int32)
        self.writer.earlier_items(others, first=first)

    def _earlier(self, shard: int, rows: NDArray[np.int64]) -> None:
        """Write what users took before their sequences begin, of those rows of the old version and of `added` behind it that are kept."""
        if not (self.old.info.keeps_earlier or self.new.info.keeps_earlier):
            return
        parts = []
        for dataset, number in ((self.old, self._our_earlier), (self.new, self._their_earlier)):
            values, offsets = dataset.earlier(shard) or (np.zeros(0, np.int32), np.zeros(len(dataset.shard(shard).user_hash) + 1, np.int64))
            parts.append((number[values], offsets))
        self.writer.earlier(shard, *ragged.take(*ragged.concatenate(parts), rows))
        if not self.old.info.keeps_earlier:
            old = self.old.shard(shard)
            stay = rows[rows < len(old.user_hash)]
            cut = np.count_nonzero(np.diff(old.offsets)[stay] == self.old.info.length_limit)
            self.left_out.add("old users with a full history, of whom it is not known what they took before", int(cut))

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
        return self._counted(task, count, sizes)

    def _first_task(self, users: Sequence[_Users]) -> Task:
        """Write the first task's examples anew: the last item of each user who has one in either version."""
        theirs = next(task.name for task in self.new.info.tasks if task.predicts_next)
        sizes, count = np.zeros(len(Split), dtype=np.int64), 0
        for shard, here in enumerate(users):
            before, now = self.old.labels(self.first.name, shard), self.new.labels(theirs, shard)
            split = np.full(len(here.split), _UNKNOWN, dtype=np.int8)
            split[here.row[now.users]] = now.split
            if self.old.info.split.by == "users":
                split = np.where(here.split == _UNKNOWN, split, here.split).astype(np.int8)
            split[before.users] = before.split
            takes_part = np.zeros(len(here.last), dtype=bool)
            takes_part[before.users] = takes_part[here.row[now.users]] = True
            rows = np.flatnonzero(takes_part & (here.last >= FIRST_ITEM))
            labels = ShardLabels(rows, here.last[rows] - np.int32(FIRST_ITEM), np.arange(len(rows) + 1, dtype=np.int64))
            self.writer.labels(self.first.name, shard, labels, split[rows])
            sizes += np.bincount(split[rows], minlength=len(Split))
            count += len(rows)
        return self._counted(replace(self.first, labels=self.old.info.items + len(self.fresh_items) - FIRST_ITEM), count, sizes)

    def _count_labels(self, users: Sequence[_Users]) -> None:
        """Count labels of old tasks that `added` has and the new version does not take."""
        theirs = {task.name: task for task in self.new.info.tasks}
        for task in self.old.info.tasks:
            if task.predicts_next:
                name = next(other.name for other in theirs.values() if other.predicts_next)
            elif task.name in theirs:
                name = task.name
            else:
                continue
            for shard, here in enumerate(users) if not (task.predicts_next and self.refresh) else ():
                labels = self.new.labels(name, shard)
                rows = np.repeat(here.row[labels.users], np.diff(labels.offsets))
                self.left_out.add(f"examples of new users in the old task '{task.name}'", int((rows >= here.old).sum()))
                if not task.predicts_next:
                    old = rows < here.old
                    unknown = labels_not_in(self.old, self.new, task.name, shard, rows[old], labels.values[old])
                    self.left_out.add(f"other labels of old users in the old task '{task.name}'", unknown)

    def _counted(self, task: Task, users: int, sizes: NDArray[np.int64]) -> Task:
        train, validation, test = sizes.tolist()
        if not min(train, validation, test):
            raise DataError(
                f"task '{task.name}': under the split of {self.old.uri} it has {train} training, {validation} validation, {test} test "
                "examples; each part needs one: prepare it with more users"
            )
        return replace(task, users=users, examples=(train, validation, test))

    def _copy(self, path: str, dataset: Dataset) -> None:
        self.writer.copy(path, dataset.content(path), dataset.info.files[path])
