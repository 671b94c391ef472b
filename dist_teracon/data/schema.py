"""What a data set is: tasks, splits and the description that is stored with the shards as `dataset.json`.

On disk (a folder or URI):

    dataset.json                      this description; its checksum names the version of the data set
    vocab/items.parquet               item (string) · index (int32) · count (int64)     index 0 reserved, 1 = unseen item
    vocab/<task>.parquet              label (string) · index (int32) · count (int64)    index from 0
    vocab/_types.parquet              type (string) · index (int32) · count (int64)     index 0 = unknown; where types are kept
    users/shard-00042.parquet         user_id (string) · user_hash (uint64) · sequence (list<int32>, unpadded, oldest first)
                                      and where they are kept: times (list<int64>, s) · types (list<int32>)
                                      and where there are features of users: input.<feature> (int32, 0 = missing)
    earlier/shard-00042.parquet       row (int32, of the user in the shard) · items (list<int32>): what a user took before the
                                      sequence, and in it of items too rare for the catalogue, each once; where rankings leave it out
    vocab/_earlier.parquet            item (string) · index (int32): of those that no sequence holds, numbered behind the items
    inputs/items.parquet              index (int32) · input.<feature> (int32) …         where there are features of items
    vocab/_input.<feature>.parquet    value (string) · index (int32) · count (int64)    index 0 = missing
    tasks/<task>/shard-00042.parquet  row (int32, of the user in the shard) · labels (list<int32>) · split (list<int8>, one a label;
                                      from 3 on the test's second and further periods)

The name of a task's folder and vocabulary is `folder_of` its name: the same for plain names, a short one for those of other scripts.

`user_hash` is a stable 64-bit hash of the user's identity; shard, split and the pools of pseudo-labels follow from it, so that
users of one group (equal sequences, where a source has no user ids) stay together.
A task of kind `next` predicts the item that follows: its label is the class of the sequence's last item, `item index − 2`; under a split
by `last` its labels are those of the last three, one a split.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Literal, cast

from dist_teracon import io
from dist_teracon.data.input_features import NO_FEATURES, InputFeatures
from dist_teracon.errors import DataError, nearest
from dist_teracon.hashing import plain_name

# Of `dataset.json`; the second one has more than items in its histories, side features, or a split that an earlier program would misread.
FORMAT_VERSION = 1
FORMAT_WITH_MORE = 2
TYPES_FILE = "vocab/_types.parquet"  # no task's: the short names of tasks have a hash
EARLIER_FILE = "vocab/_earlier.parquet"
ITEM_INPUTS_FILE = "inputs/items.parquet"
INPUT_COLUMN = "input."  # what names of features' columns begin with
UNSEEN_ITEM = 1
FIRST_ITEM = 2

# Formats whose tasks number their labels on their own, so that a label and an item of one name are different things.
LABELS_OF_THEIR_OWN = ("sequence-csv", "ttl")

TaskKind = Literal["next", "item", "profile"]


class Split(IntEnum):
    """Which part of the data an example belongs to."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Task:
    """A task as the data set knows it.

    Attributes:
        name: Unique in the data set; its folder's follows from it (`folder_of`).
        kind: `next` (self-supervised next item), `item` (recommendation) or `profile` (classification).
        labels: Number of classes |Y|.
        users: Users with at least one label; under a split by time, where a user is several rows, rows of users.
        examples: Number of (user, label) examples by split: train, validation, test.
    """

    name: str
    kind: TaskKind
    labels: int
    users: int
    examples: tuple[int, int, int]

    @property
    def predicts_next(self) -> bool:
        """Whether the sequence itself is the label: each position predicts the item that follows."""
        return self.kind == "next"

    @property
    def ranks_labels(self) -> bool:
        """Whether labels are ranked (items) or one class is chosen (a profile)."""
        return self.kind != "profile"


@dataclass(frozen=True)
class SplitRule:
    """How examples were split.

    Attributes:
        by: `users`: one split by user, the same for all tasks, so that no task's test item leaks; `rows`: each task by example; `last`:
            the first task is trained on every user's items but the last two, of which the first is for validation and the second for
            the test; other tasks by users. `time`: by when what is predicted happened (docs/data.md, Splits by time).
        seed: Seed of the order in which users (or rows) are cut.
        train, validation, test: Shares, adding up to 1.
        folds, fold: Cross-fitting: `fold` shifts the test window by 1/folds; (1, 0) is a plain split.
    """

    by: Literal["users", "rows", "last", "time"] = "users"
    seed: int = 0
    train: float = 0.8
    validation: float = 0.05
    test: float = 0.15
    folds: int = 1
    fold: int = 0

    def behind(self, split: Split) -> int:
        """Return how many items stand behind the label of a first task's example of a split, which it must not read."""
        return {Split.TRAIN: 2, Split.VALIDATION: 1, Split.TEST: 0}[split] if self.by == "last" else 0


@dataclass(frozen=True)
class HistoryColumns:
    """What histories hold beside items.

    Attributes:
        times: Whether they hold times.
        types: Number of types, the unknown one included; 0 where they hold none.
    """

    times: bool = False
    types: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return (*(["times"] if self.times else []), *(["types"] if self.types else []))


@dataclass(frozen=True)
class FileEntry:
    """A file of the data set: rows, bytes and SHA-256."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """The contents of `dataset.json`.

    Attributes:
        name: Name for people.
        users, items, events: Counts; `items` is the size of the item table with its two reserved rows, `events` the sum of lengths.
        length_limit: Longest sequence kept.
        shards: Number of shards; fixed at preparation.
        split: How examples were split.
        tasks: The tasks in their order.
        files: Every file but `dataset.json`, by path within the data set.
        source: Where it came from: format, fingerprint, recipe; of an appended version also its ancestors.
        notes: Facts for the reader of a report, as rejected rows by kind or groups of equal sequences; `matched` counts what filters,
            joins and labels kept and left out. The fingerprint does not depend on them.
        parent: SHA-256 of the version that this one extends.
        history: What histories hold beside items.
        inputs: Side features of users and items.
        test_periods: Seconds at which the periods of the test begin, where there are several.
    """

    name: str
    users: int
    items: int
    events: int
    length_limit: int
    shards: int
    split: SplitRule
    tasks: tuple[Task, ...]
    files: dict[str, FileEntry]
    source: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    format_version: int = FORMAT_VERSION
    history: HistoryColumns = HistoryColumns()
    inputs: InputFeatures = NO_FEATURES
    test_periods: tuple[float, ...] = ()

    def task(self, name: str) -> Task:
        """Return the task of that name.

        Raises:
            DataError: no such task; names the nearest one.
        """
        name = unicodedata.normalize("NFC", name)
        for task in self.tasks:
            if task.name == name:
                return task
        known = [task.name for task in self.tasks]
        raise DataError(f"data set '{self.name}' has no task '{name}'{nearest(name, known)} (it has: {', '.join(known)})")

    @property
    def labels_of_their_own(self) -> bool:
        """Whether later tasks number their labels on their own, as formats do that come with tasks."""
        return self.source.get("format") in LABELS_OF_THEIR_OWN or bool(self.source.get("labels_of_their_own"))

    def labels_are_items(self, task: str) -> bool:
        """Return whether a task's labels are the items of the sequences, so far as that is known: the first task's, or by the recipe."""
        if self.task(task).predicts_next:
            return True
        if self.labels_of_their_own:
            return False
        rule = self._rule(task)
        return rule.get("kind") == "item" and rule.get("label", "item") == "item"

    def repeats(self, task: str) -> bool:
        """Return whether a task's label may be an item of the user's history: unless the recipe has `repeats: false`."""
        return bool(self._rule(task).get("repeats", True))

    def excludes_seen(self, task: str, setting: bool | None) -> bool:
        """Return whether a task is ranked without the items of a user's own sequence.

        Args:
            task: Its name.
            setting: `evaluate.exclude_seen`; None for what the recipe has. Tasks whose labels are not items are never ranked so.
        """
        return self.labels_are_items(task) and (not self.repeats(task) if setting is None else setting)

    @property
    def leaves_out_taken(self) -> bool:
        """Whether, by its recipe, rankings of any task leave out what a user has taken."""
        return any(not self.repeats(task.name) for task in self.tasks)

    @property
    def keeps_earlier(self) -> bool:
        """Whether it is known what users took before their sequences begin."""
        return earlier_file(0) in self.files

    def _rule(self, task: str) -> dict[str, Any]:
        """Return a task's part of the recipe, the history's for the first task; nothing where there was none."""
        recipe = self.source.get("recipe")
        if not isinstance(recipe, dict):  # a data set of an earlier program has its name
            return {}
        rule = recipe.get("history") if self.task(task).predicts_next else recipe.get("tasks", {}).get(task)
        return cast("dict[str, Any]", rule or {})

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values, with a checksum of them."""
        value = self._values()
        return {**value, "checksum": _checksum(value)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the description without its notes, and through the files' checksums of the whole data set."""
        value = self._values()
        del value["notes"]  # what is told of the raw data is no data
        return _checksum(value)

    def _values(self) -> dict[str, Any]:
        value = asdict(self)
        if self.history == HistoryColumns():  # so that data sets of items alone have the fingerprint that they always had
            del value["history"]
        if self.inputs == NO_FEATURES:
            del value["inputs"]
        if not self.test_periods:
            del value["test_periods"]
        return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


def folder_of(task: str) -> str:
    """Return the name of a task's folders: its own where every file system and store takes it as it is, else a short plain one."""
    return task if _PLAIN.fullmatch(task) else plain_name(task)


def users_file(shard: int) -> str:
    """Path within the data set of a shard's users."""
    return f"users/shard-{shard:05d}.parquet"


def earlier_file(shard: int) -> str:
    """Path within the data set of what a shard's users took before their sequences begin."""
    return f"earlier/shard-{shard:05d}.parquet"


def task_file(task: str, shard: int) -> str:
    """Path within the data set of a shard's labels for a task."""
    return f"tasks/{folder_of(task)}/shard-{shard:05d}.parquet"


def vocabulary_file(name: str) -> str:
    """Path within the data set of a vocabulary, `items` or a task's name."""
    return f"vocab/{folder_of(name)}.parquet"


def input_file(feature: str) -> str:
    """Path within the data set of the names of a feature's values."""
    return f"vocab/_input.{folder_of(feature)}.parquet"


def read_dataset_info(uri: str) -> DatasetInfo:
    """Read a data set's description.

    Raises:
        DataError: the folder holds no data set, or one of another format version.
    """
    where = io.join(uri, "dataset.json")
    if not io.exists(where):
        raise DataError(f"{uri}: no data set there (dataset.json is missing); make one with `dist-teracon prepare`")
    value = io.read_json(where)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version not in (FORMAT_VERSION, FORMAT_WITH_MORE):
        known = f"{FORMAT_VERSION} and {FORMAT_WITH_MORE}"
        raise DataError(f"{where}: format version {version!r}, this program reads {known}; prepare the data set again")
    try:
        return info_from_json(cast("dict[str, Any]", value))
    except DataError as error:
        raise DataError(f"{io.join(uri, '')}{error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a data set's description ({error!r}); prepare the data set again") from None


def info_from_json(value: dict[str, Any]) -> DatasetInfo:
    """Return the description that `DatasetInfo.to_json` gave.

    Raises:
        DataError: it was changed since; one without a checksum, of an earlier program, is taken as it is.
    """
    value = dict(value)
    if (noted := value.pop("checksum", None)) is not None and noted != _checksum(value):
        raise DataError("dataset.json: was damaged or changed since it was written; bring the file back, or prepare the data set again")
    tasks = tuple(
        Task(
            entry["name"], entry["kind"], int(entry["labels"]), int(entry["users"]), cast("tuple[int, int, int]", tuple(entry["examples"]))
        )
        for entry in value["tasks"]
    )
    files = {path: FileEntry(**entry) for path, entry in value["files"].items()}
    history = HistoryColumns(**value.get("history", {}))
    inputs = InputFeatures.from_json(value.get("inputs", {}))
    split = SplitRule(**value["split"])
    parts = {"tasks": tasks, "files": files, "split": split, "history": history, "inputs": inputs}
    return DatasetInfo(**{**value, **parts, "test_periods": tuple(value.get("test_periods", ()))})
