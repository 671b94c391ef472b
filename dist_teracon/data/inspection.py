"""`dist-teracon inspect`: a few users of a data set as a person would read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import FIRST_ITEM, DatasetInfo, Split, Task, users_file
from dist_teracon.data.summary import LEGEND, shares, users_text
from dist_teracon.errors import DataError, nearest
from dist_teracon.hashing import stable_hash
from dist_teracon.text import NO_BREAK, folded, table_lines

# Of a longer history the newest items are shown; of many labels the first.
_ITEMS, _LABELS, _COMMON = 30, 20, 5
_SPLITS = {Split.TRAIN: "training", Split.VALIDATION: "validation", Split.TEST: "test"}


def inspect_lines(dataset: Dataset, *, users: int = 3, user: str | None = None, task: str | None = None) -> list[str]:
    """Return counts of a data set, and some of its users, as lines for a terminal of 80 columns.

    Args:
        dataset: The data set.
        users: How many users are shown; spread over the shards, the same ones each time.
        user: The id of a user, who alone is shown.
        task: Show users who have labels of this task, and its most frequent labels.

    Raises:
        DataError: no such task or user, or no user has labels of the task.
    """
    info = dataset.info
    chosen = None if task is None else info.task(task)
    reader = _Reader(dataset)
    lines = [*_head(info), "", *_common(dataset, None)]
    if chosen is not None:
        lines += _common(dataset, chosen)
    places = [reader.find(user)] if user is not None else list(reader.some(users, chosen))
    if not places:
        raise DataError(f"{dataset.uri}: no user has labels of task '{task}'")
    for shard, row in places:
        lines += ["", *reader.user_lines(shard, row)]
    return [line.replace(NO_BREAK, " ") for line in lines]


def _head(info: DatasetInfo) -> list[str]:
    split, whose = info.split, "row" if "split_by_time" in info.notes else "user"
    rows = [
        (task.name, task.kind, f"{task.labels:,}", f"{task.users:,}", *(f"{count:,}" for count in task.examples)) for task in info.tasks
    ]
    return [
        *folded(f"{readable(info.name)}: {users_text(info.users, info.notes)}, {info.items - FIRST_ITEM:,} items, {info.events:,} events"),
        f"  {info.events / max(1, info.users):.1f} events a {whose} on average, at most {info.length_limit:,}; {info.shards:,} shards",
        f"  split by time{shares(info)}, seed {split.seed}"
        if split.by == "time"
        else f"  split by {split.by}, seed {split.seed}: {split.train:g} training, {split.validation:g} validation, {split.test:g} test",
        "",
        *table_lines(("task", "kind", "labels", f"{whose}s", "training", "validation", "test"), rows, names=("task", "kind")),
        LEGEND,
    ]


def _common(dataset: Dataset, task: Task | None) -> list[str]:
    """Return the most frequent items, or labels of a task, in a line."""
    next_item = task is not None and task.predicts_next
    table = dataset.vocabulary("items" if task is None or next_item else task.name)
    names, counts = table.column(0), table["count"].to_numpy()
    if task is None or next_item:
        counts = np.where(np.arange(len(counts)) < FIRST_ITEM, -1, counts)
    order = np.argsort(-counts, kind="stable")[:_COMMON]
    shown = [f"{readable(names[int(index)].as_py())}{NO_BREAK}({int(counts[index]):,})" for index in order if counts[index] > 0]
    what = "items" if task is None else f"labels of {readable(task.name)}"
    return folded(f"most frequent {what}: {_joined(shown)}", indent="  ")


def readable(text: Any) -> str:
    """Return a name of the raw data without what would move a terminal's cursor, and not longer than a few lines."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in str(text)) or "(empty)"
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _joined(names: Sequence[str]) -> str:
    return f"{NO_BREAK}· ".join(name.replace(" ", NO_BREAK) for name in names)


class _Reader:
    """Users of a data set by their place: a shard and a row in it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.info = dataset, dataset.info
        self._ids = cache(lambda shard: dataset.table(users_file(shard), ["user_id"])["user_id"].combine_chunks())
        self._names = cache(lambda name: dataset.vocabulary(name).column(0))
        self._values = cache(dataset.input_values)

    def find(self, user: str) -> tuple[int, int]:
        """Return where a user is.

        Raises:
            DataError: nowhere.
        """
        likely = stable_hash(user) % self.info.shards  # where users have ids of their own
        for shard in (likely, *(shard for shard in range(self.info.shards) if shard != likely)):
            row = pa.compute.index(self._ids(shard), user).as_py()
            if row >= 0:
                return shard, row
        first = [name for shard in range(self.info.shards) for name in self._ids(shard)[:20].to_pylist()]
        raise DataError(
            f"{self.dataset.uri}: no user '{readable(user)}'{nearest(user, first)} (there are, for example: "
            f"{', '.join(readable(name) for name in first[:3])}); users with too short a history are left out of a data set"
        )

    def some(self, count: int, task: Task | None) -> Iterator[tuple[int, int]]:
        """Yield places of users, a shard after the other."""
        rows = {}
        for shard in range(self.info.shards):
            of_shard = np.arange(len(self._ids(shard))) if task is None else self.dataset.labels(task.name, shard).users
            if len(of_shard):
                rows[shard] = of_shard[:count]
            if sum(map(len, rows.values())) >= count and len(rows) >= count:
                break
        turns = ((shard, int(of_shard[turn])) for turn in range(count) for shard, of_shard in rows.items() if turn < len(of_shard))
        yield from (place for place, _ in zip(turns, range(count), strict=False))

    def user_lines(self, shard: int, row: int) -> list[str]:
        """Return a user: the history, and the labels of each task with their splits."""
        data = self.dataset.shard(shard)
        values = data.values[data.offsets[row] : data.offsets[row + 1]]
        older = max(0, len(values) - _ITEMS)
        shown = [self._item(value) for value in values[older:].tolist()]
        left_out = f" ({older:,} older ones are not shown)" if older else ""
        return [
            *folded(f"user {readable(self._ids(shard)[row].as_py())}"),
            f"  history, {len(values):,} items, oldest first{left_out}:",
            *folded(f"    {_joined(shown) or '(none)'}", indent="    "),
            *self._feature_lines(shard, row),
            *(line for task in self.info.tasks for line in self._task_lines(task, shard, row)),
        ]

    def _feature_lines(self, shard: int, row: int) -> list[str]:
        """Return a user's side features, in a line."""
        features = self.dataset.shard(shard).features
        if features is None:
            return []
        names = [feature.name for feature in self.info.inputs.user]
        shown = [self._values(name)[value] for name, value in zip(names, features[row].tolist(), strict=True)]
        parts = [f"{readable(name)}: {'(missing)' if value is None else readable(value)}" for name, value in zip(names, shown, strict=True)]
        return folded(f"  {_joined(parts)}", indent="    ")

    def _item(self, index: int) -> str:
        return readable(self._names("items")[index].as_py()) if index >= FIRST_ITEM else "(unseen item)"

    def _task_lines(self, task: Task, shard: int, row: int) -> list[str]:
        labels = self.dataset.labels(task.name, shard)
        place = int(np.searchsorted(labels.users, row))
        if place == len(labels.users) or labels.users[place] != row:
            return folded(f"  {readable(task.name)}: no label", indent="    ")
        here = slice(labels.offsets[place], labels.offsets[place + 1])
        values, splits = labels.values[here], labels.split[here]
        parts = []
        for split, name in _SPLITS.items():
            own = values[splits == split].tolist()
            names = [self._label(task, value) for value in own[:_LABELS]]
            more = f" and {len(own) - _LABELS:,} more" if len(own) > _LABELS else ""
            parts += [f"{name}: {_joined(names)}{more}"] if own else []
        return folded(f"  {readable(task.name)}, {'; '.join(parts)}", indent="    ")

    def _label(self, task: Task, value: int) -> str:
        if task.predicts_next:
            return self._item(value + FIRST_ITEM) + (" (the last item)" if self.info.split.by != "last" else "")
        return readable(self._names(task.name)[value].as_py())
