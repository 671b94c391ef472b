"""Writing a data set folder: split, Parquet files shard by shard, checksums, `dataset.json` last."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.atomic import copy_folder, write_json
from dist_teracon.data import ragged
from dist_teracon.data.input_features import NO_FEATURES, NO_INPUTS, InputTables
from dist_teracon.data.prepare.first_task import last_three, left_out, next_labels
from dist_teracon.data.prepare.folder_writer import FolderWriter, by_name, names_column
from dist_teracon.data.prepare.matched import Funnel
from dist_teracon.data.prepare.splits import Cut, row_keys, user_keys
from dist_teracon.data.raw.context import Workers
from dist_teracon.data.schema import (
    EARLIER_FILE,
    FIRST_ITEM,
    FORMAT_VERSION,
    FORMAT_WITH_MORE,
    TYPES_FILE,
    DatasetInfo,
    FileEntry,
    HistoryColumns,
    Split,
    SplitRule,
    Task,
    earlier_file,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.data.shard_source import ShardLabels, ShardSource, TaskColumns
from dist_teracon.errors import DataError

_SMALL_SHARDS = 8
_USERS_A_SHARD = 50_000


def default_shards(users: int) -> int:
    """Return the number of shards for so many users: a power of two, 8 or more, with at most 50,000 users a shard."""
    return max(_SMALL_SHARDS, 1 << (users // _USERS_A_SHARD).bit_length())


@dataclass
class ShardStats:
    """What was written of some shards, to be added up over all.

    Attributes:
        files: By path, with rows, bytes and checksum.
        users, events: How many.
        item_counts: int64 [items], occurrences by index.
        label_counts: The same of each later task's labels.
        tallies: int64 [3] a task: examples by split.
        users_of_task: Users with labels, by task.
        cut: Events of users before their last `length_limit`, which are not written.
        times: Whether histories have times.
        type_counts: int64 [types + 1], occurrences of each type, the unknown one first; empty where they have none.
        input_counts: By feature of users int64 [values], users of each value.
        no_next: How often the first task has no example, by reason.
    """

    files: dict[str, FileEntry]
    users: int
    events: int
    item_counts: NDArray[np.int64]
    label_counts: list[NDArray[np.int64]]
    tallies: list[NDArray[np.int64]]
    users_of_task: list[int]
    cut: int = 0
    times: bool = False
    type_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    input_counts: list[NDArray[np.int64]] = field(default_factory=list)
    no_next: Counter[str] = field(default_factory=Counter)

    @property
    def history(self) -> HistoryColumns:
        """What histories hold beside items."""
        return HistoryColumns(self.times, len(self.type_counts))

    @classmethod
    def zero(cls, source: ShardSource) -> ShardStats:
        """Return the sum over no shards."""
        tasks = 1 + len(source.tasks)
        label_counts = [np.zeros(len(task.classes), dtype=np.int64) for task in source.tasks]
        items = np.zeros(len(source.items) + FIRST_ITEM, dtype=np.int64)
        tallies = [np.zeros(3, dtype=np.int64) for _ in range(tasks)]
        types = np.zeros(len(names) + 1 if (names := getattr(source, "types", ())) else 0, dtype=np.int64)
        inputs = [np.zeros(len(column.names) + 1, dtype=np.int64) for column in _inputs(source).user]
        return cls({}, 0, 0, items, label_counts, tallies, [0] * tasks, type_counts=types, input_counts=inputs)

    def add(self, other: ShardStats) -> None:
        """Add other shards."""
        self.files |= other.files
        self.cut += other.cut
        self.users, self.events = self.users + other.users, self.events + other.events
        self.item_counts += other.item_counts
        self.times |= other.times
        self.no_next += other.no_next
        self.type_counts += other.type_counts
        counts = ([*stats.label_counts, *stats.tallies, *stats.input_counts] for stats in (self, other))
        for own, more in zip(*counts, strict=True):
            np.add(own, more, out=own)
        self.users_of_task = [own + more for own, more in zip(self.users_of_task, other.users_of_task, strict=True)]


def write_dataset_files(
    folder: Path,
    source: ShardSource,
    rule: SplitRule,
    shards: int | None,
    *,
    advance: Callable[[int, int], None] = lambda _done, _all: None,
) -> DatasetInfo:
    """Write all files of a data set into a folder, `dataset.json` last; equal sources give equal bytes.

    Args:
        folder: A folder of its own.
        source: What is written.
        rule: The split.
        shards: Their number; by the number of users where None.
        advance: Called with how many shards of how many are written.

    Raises:
        DataError: a task has no example in one of the parts.
    """
    hashes = source.user_hashes()
    count = shards or default_shards(len(hashes))
    keys = {} if rule.by != "rows" else joined_keys(row_split_keys(source, rule, group, count) for group in source.shard_groups(count))
    splitter = Splitter.of(rule, hashes, keys)
    written = ShardStats.zero(source)
    done = 0
    for group in source.shard_groups(count):
        for part in write_group(folder, source, splitter, group, count):
            written.add(part)
            advance(done := done + 1, count)
    return write_metadata(folder, source, rule, count, written)


def write_on_workers(
    workers: Workers, folder: Path, target: str, source: ShardSource, rule: SplitRule, shards: int | None, *,
    kept_rows: Mapping[str, int], advance: Callable[[int, int], None],
) -> DatasetInfo:  # fmt: skip
    """Write a data set as `write_dataset_files` does: the shards by workers, vocabularies and `dataset.json` here.

    Args:
        workers: Write a group of shards at a time.
        folder: Where vocabularies and `dataset.json` go.
        target: Folder or URI that all workers see, where the shards go.
        source: What is written.
        rule: The split.
        shards: Their number; by the number of users where None.
        kept_rows: Rows read by task, to be compared with what is written.
        advance: Called with how many groups of how many are written.

    Raises:
        DataError: a task has no example in one of the parts, or counts differ from what was read.
    """
    hashes = source.user_hashes()
    count = shards or default_shards(len(hashes))
    groups = source.shard_groups(count)
    keys = {} if rule.by != "rows" else joined_keys(workers.map(lambda group: row_split_keys(source, rule, group, count), groups))
    splitter = Splitter.of(rule, hashes, keys)

    def write(group: Any) -> ShardStats:
        written = ShardStats.zero(source)
        with tempfile.TemporaryDirectory() as name:
            for part in write_group(Path(name), source, splitter, group, count):
                written.add(part)
            copy_folder(Path(name), target)
        return written

    written = ShardStats.zero(source)
    for part in workers.map(write, groups, done=lambda finished: advance(finished, len(groups))):
        written.add(part)
    _check_counts(source, written, users=len(hashes), kept_rows=kept_rows)
    return write_metadata(folder, source, rule, count, written)


def _check_counts(source: ShardSource, written: ShardStats, *, users: int, kept_rows: Mapping[str, int]) -> None:
    """Raise DataError where workers wrote other numbers of users or rows than were read."""
    found, expected = {"users": written.users}, {"users": users}
    for task, rows in zip(source.tasks, written.users_of_task[1:], strict=True):
        found[f"rows of '{task.name}'"], expected[f"rows of '{task.name}'"] = rows, kept_rows[task.name]
    differ = [f"{found[what]} {what} written, {expected[what]} read" for what in found if found[what] != expected[what]]
    if differ:
        raise DataError(f"the cluster's parts do not add up: {'; '.join(differ)}; nothing was published, prepare the data set again")


def write_group(folder: Path, source: ShardSource, splitter: Splitter, group: Any, count: int) -> Iterator[ShardStats]:
    """Write the shards of a group into a folder, one after another; yields what each held."""
    tasks = _all_tasks(source)
    for shard, rows in source.iter_shards(group, count):
        writer, part = FolderWriter(folder), ShardStats.zero(source)
        values, offsets = ragged.last(rows.values, rows.offsets, limit=source.length_limit)
        indices = values + np.int32(FIRST_ITEM)
        # where the source splits, as by time, vocabularies count what is trained on alone
        trains = np.ones(len(rows.user_hash), dtype=bool) if rows.splits is None else rows.splits == Split.TRAIN
        counted = slice(None) if rows.splits is None else np.repeat(trains, np.diff(offsets))
        part.item_counts += np.bincount(indices[counted], minlength=len(part.item_counts))
        columns = rows.columns.last(rows.offsets, limit=source.length_limit)
        part.times = columns.times is not None
        if columns.types is not None:
            part.type_counts += np.bincount(columns.types[counted], minlength=len(part.type_counts))
        part.users, part.events, part.cut = len(rows.user_hash), len(indices), len(rows.values) - len(indices)
        split_of = splitter.of_users(rows.user_hash)
        features = by_name(_inputs(source).user, rows.features)
        for name, counts in zip(features, part.input_counts, strict=True):
            np.add(counts, np.bincount(features[name][trains], minlength=len(counts)), out=counts)
        writer.users(shard, rows.user_ids, rows.user_hash, indices, offsets, columns=columns, features=features)
        if rows.earlier is not None:
            taken, ends = rows.earlier
            index = np.where(taken >= 0, taken + FIRST_ITEM, len(source.items) + FIRST_ITEM - 1 - taken)
            writer.earlier(shard, index.astype(np.int32), ends)
        last_items = last_three(rows, source.length_limit) if splitter.rule.by == "last" else None
        first = next_labels(rows, source.length_limit) if last_items is None else last_items[0]
        part.no_next = left_out(rows, source.length_limit, by_last=last_items is not None)
        for place, labels in enumerate((first, *rows.labels)):
            if rows.splits is not None:
                split = np.repeat(rows.splits[labels.rows], np.diff(labels.offsets))
            else:
                split = last_items[1] if last_items is not None and not place else split_of(tasks[place].name, labels)
            part.tallies[place] += np.bincount(np.minimum(split, Split.TEST), minlength=3)
            part.users_of_task[place] += len(labels.rows)
            if place:
                values = labels.values if rows.splits is None else labels.values[split == Split.TRAIN]
                part.label_counts[place - 1] += np.bincount(values, minlength=len(part.label_counts[place - 1]))
            writer.labels(tasks[place].name, shard, labels, split)
        part.files = writer.files
        yield part


def write_metadata(folder: Path, source: ShardSource, rule: SplitRule, count: int, written: ShardStats) -> DatasetInfo:
    """Write vocabularies and `dataset.json` of a data set whose shards are written.

    Raises:
        DataError: a task has no example in one of the parts.
    """
    tasks = _all_tasks(source)
    described = tuple(_task(source.name, *of_task, rule) for of_task in zip(tasks, written.users_of_task, written.tallies, strict=True))
    writer = FolderWriter(folder)
    writer.vocabulary("items", "item", names_column([None] * FIRST_ITEM, source.items), written.item_counts)
    for task, counts in zip(source.tasks, written.label_counts, strict=True):
        writer.vocabulary(task.name, "label", names_column([], task.classes), counts)
    order = [vocabulary_file("items"), *(vocabulary_file(task.name) for task in source.tasks)]
    if len(written.type_counts):
        writer.types(list(getattr(source, "types", ())), written.type_counts)
        order.append(TYPES_FILE)
    writer.earlier_items(getattr(source, "earlier_items", ()), first=len(source.items) + FIRST_ITEM)
    order += [EARLIER_FILE] if EARLIER_FILE in writer.files else []
    inputs = _inputs(source)
    order += writer.inputs(inputs, written.input_counts)
    files = written.files | writer.files
    order += [users_file(shard) for shard in range(count)]
    order += [path for shard in range(count) if (path := earlier_file(shard)) in files]
    order += [task_file(task.name, shard) for task in tasks for shard in range(count)]
    plain = written.history == HistoryColumns() and inputs.features == NO_FEATURES
    info = DatasetInfo(
        name=source.name,
        users=written.users,
        items=len(source.items) + FIRST_ITEM,
        events=written.events,
        length_limit=source.length_limit,
        shards=count,
        split=rule,
        tasks=described,
        files={path: files[path] for path in order},
        source=source.source,
        notes={**source.notes, "matched": _matched(source, written, rule)},
        format_version=FORMAT_VERSION if plain and rule.by in ("users", "rows") else FORMAT_WITH_MORE,
        history=written.history,
        inputs=inputs.features,
        test_periods=getattr(source, "test_periods", ()),
    )
    write_json(folder / "dataset.json", info.to_json())
    return info


def _inputs(source: ShardSource) -> InputTables:
    found: InputTables = getattr(source, "inputs", NO_INPUTS)
    return found


def _matched(source: ShardSource, written: ShardStats, rule: SplitRule) -> dict[str, Any]:
    """Return what was left out: as the source counted it, else what its shards show; of the first task where there is anything."""
    history = Funnel("events", written.events + written.cut)
    history.drop(f"before a user's last {source.length_limit}", written.cut)
    tasks = {}
    for task, users in zip(source.tasks, written.users_of_task[1:], strict=True):
        funnel = Funnel("users", written.users)
        funnel.drop("no label", written.users - users)
        tasks[task.name] = funnel.to_json()
    found = {"history": history.to_json(), "tasks": tasks, **source.notes.get("matched", {})}
    if written.no_next:
        examples = int(written.tallies[0].sum())
        first = Funnel("examples" if rule.by == "last" else "rows" if rule.by == "time" else "users", examples + written.no_next.total())
        for reason, count in written.no_next.items():
            first.drop(reason, count)
        found["tasks"] = {source.next_task: first.to_json(), **found["tasks"]}
    return found


def _all_tasks(source: ShardSource) -> list[TaskColumns]:
    return [TaskColumns(source.next_task, "next", source.items), *source.tasks]


Keys = dict[str, NDArray[np.uint64]]


def row_split_keys(source: ShardSource, rule: SplitRule, group: Any, count: int) -> Keys:
    """Return the keys by which a group's examples are cut under `rows`, by task."""
    keys: dict[str, list[NDArray[np.uint64]]] = {task.name: [] for task in _all_tasks(source)}
    for _, rows in source.iter_shards(group, count):
        for name, labels in zip(keys, (next_labels(rows, source.length_limit), *rows.labels), strict=True):
            keys[name].append(_example_keys(name, rows.user_hash, labels, rule))
    return {name: np.concatenate(parts) for name, parts in keys.items()}


def joined_keys(parts: Iterable[Keys]) -> Keys:
    """Join the keys of all groups."""
    every = list(parts)
    return {name: np.concatenate([part[name] for part in every]) for name in every[0]}


@dataclass(frozen=True)
class Splitter:
    """Splits by quotas over the whole data set; it keeps eight bytes a user, or an example under `rows`."""

    rule: SplitRule
    cuts: dict[str, Cut]

    @classmethod
    def of(cls, rule: SplitRule, hashes: NDArray[np.uint64], keys: Keys) -> Splitter:
        """Make one from all users' hashes, and under `rows` from all examples' keys by task."""
        if rule.by != "rows":
            return cls(rule, {"": Cut(user_keys(hashes, rule), rule)})
        return cls(rule, {name: Cut(values, rule) for name, values in keys.items()})

    def of_users(self, user_hash: NDArray[np.uint64]) -> Callable[[str, ShardLabels], NDArray[np.int8]]:
        """Return what splits these users' examples: from a task's name and its labels to int8 [E]."""
        if self.rule.by != "rows":
            own = self.cuts[""].of(user_keys(user_hash, self.rule))
            return lambda _, labels: np.repeat(own[labels.rows], np.diff(labels.offsets))
        return lambda task, labels: self.cuts[task].of(_example_keys(task, user_hash, labels, self.rule))


def _example_keys(task: str, user_hash: NDArray[np.uint64], labels: ShardLabels, rule: SplitRule) -> NDArray[np.uint64]:
    lengths = np.diff(labels.offsets)
    position = np.arange(len(labels.values)) - np.repeat(labels.offsets[:-1], lengths)
    return row_keys(task, user_hash[np.repeat(labels.rows, lengths)], position, rule)


def _task(dataset: str, columns: TaskColumns, users: int, tally: NDArray[np.int64], rule: SplitRule) -> Task:
    if columns.kind == "next" and users == 0:
        raise DataError(f"data set '{dataset}': task '{columns.name}': no user has two items or more whose last one is in the catalogue")
    train, validation, test = tally.tolist()
    for part, size in (("training", train), ("validation", validation), ("test", test)):
        if size == 0:
            by_dates = rule.by == "time" and columns.kind != "profile"
            sizes = f"{train} training, {validation} validation, {test} test examples of {users} {'rows' if by_dates else 'users'}"
            mend = "give it more users or that part a larger share"
            if by_dates:
                mend = "move split.validation_from or split.test_from, or leave the task out"
            raise DataError(
                f"data set '{dataset}', split with seed {rule.seed}: task '{columns.name}': has no {part} example ({sizes}); {mend}"
            )
    return Task(columns.name, columns.kind, len(columns.classes), users, (train, validation, test))
