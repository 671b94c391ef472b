"""Preparation: a source and a recipe become a data set folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.adapters import ADAPTERS
from dist_teracon.data.badrows import BadRows
from dist_teracon.data.recipe import TASK_NAME, Recipe, read_recipe
from dist_teracon.data.schema import (
    FIRST_ITEM,
    FORMAT_VERSION,
    DatasetInfo,
    FileEntry,
    SplitRule,
    Task,
    TaskKind,
    read_dataset_info,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.data.sources import Source
from dist_teracon.data.split import effective, split_rows, split_users
from dist_teracon.data.tables import Tables
from dist_teracon.data.tasks import build_tables
from dist_teracon.errors import ConfigError, DataError, nearest

_SMALL_SHARDS = 8
_USERS_A_SHARD = 50_000


def prepare(
    format: str,
    source: str,
    out: str,
    *,
    recipe: str | Path | Recipe | None = None,
    split: Literal["users", "rows"] | None = None,
    max_bad_rows: float = 0.001,
    shards: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DatasetInfo:
    """Make a data set from raw logs, or find that it is there already.

    Args:
        format: A name of `ADAPTERS`.
        source: Folder or URI of the raw files.
        out: Folder or URI of the data set.
        recipe: How tasks come from events; event formats want one.
        split: Overrides the recipe's `split.by`.
        max_bad_rows: Largest share of malformed rows in a file.
        shards: Number of shards; by the size where None.
        say: Takes lines on the progress.

    Raises:
        ConfigError: the recipe is wrong or names what the source does not have.
        DataError: the source is missing or malformed, or `out` holds something else.
    """
    if format not in ADAPTERS:
        raise ConfigError(f"format: no format '{format}'{nearest(format, ADAPTERS)} (there are: {', '.join(ADAPTERS)})")
    if not 0 <= max_bad_rows < 1:
        raise ConfigError(f"--max-bad-rows: a share of at least 0 and below 1 is allowed, not {max_bad_rows}")
    if shards is not None and shards < 1:
        raise ConfigError(f"--shards: 1 or more are allowed, not {shards}")
    adapter = ADAPTERS[format]
    rules = recipe if isinstance(recipe, Recipe) or recipe is None else read_recipe(str(recipe))
    if rules is None and adapter.needs_recipe:
        raise ConfigError(f"--recipe: format '{format}' wants a recipe that says how tasks come from events (see configs/recipes/)")
    rule = effective((rules or Recipe()).split_rule(split))
    made_from = {
        "format": format,
        "files": {uri[len(source.rstrip("/")) + 1 :]: io.sha256(uri) for uri in adapter.files(source)},
        "recipe": None if rules is None else rules.to_json(),
        "split": split,
        "max_bad_rows": max_bad_rows,
        "shards": shards,
    }
    made_from["fingerprint"] = fingerprint(made_from)
    if (there := existing_dataset(out, made_from)) is not None:
        say(f"{out}: is there already, made from the same input and options; nothing to do")
        return there

    bad = BadRows(max_bad_rows)
    say(f"reading {source}")
    read = adapter.read(source, rules, bad)
    tables = build_tables(rules or Recipe(), read, bad=bad) if isinstance(read, Source) else read
    notes = {**tables.notes, "malformed_rows": dict(sorted(bad.counts.items()))}
    tables = replace(tables, source=made_from, notes=notes)
    for kind, count in notes["malformed_rows"].items():
        say(f"left out malformed rows: {count} × {kind}")
    say(f"writing {len(tables.sequences.user_ids)} users, {len(tables.items)} items, {1 + len(tables.labels)} tasks to {out}")
    return write_dataset(tables, out, rule, shards=shards)


def prepare_tables(
    tables: Tables, out: str, split_rule: SplitRule, *, shards: int | None = None, say: Callable[[str], None] = lambda _: None
) -> DatasetInfo:
    """Write tables that were made by a generator, or find that they are there already; raises as `write_dataset`."""
    made_from = {**tables.source, "split": asdict(effective(split_rule)), "shards": shards}
    made_from["fingerprint"] = fingerprint(made_from)
    if (there := existing_dataset(out, made_from)) is not None:
        say(f"{out}: is there already, made from the same options; nothing to do")
        return there
    return write_dataset(replace(tables, source=made_from), out, split_rule, shards=shards)


def fingerprint(made_from: dict[str, Any]) -> str:
    """Return the SHA-256 of what a data set is made from: input checksums and options."""
    value = {**made_from, "format_version": FORMAT_VERSION}
    value.pop("fingerprint", None)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def existing_dataset(out: str, made_from: dict[str, Any]) -> DatasetInfo | None:
    """Return the data set in `out` if it was made from the same input and options, None if nothing is there.

    Raises:
        DataError: `out` holds another data set, a damaged one, or something else.
    """
    if not io.exists(io.join(out, "dataset.json")):
        if io.is_local(out) and io.exists(out) and (not io.local_path(out).is_dir() or io.list_folder(out)):
            raise DataError(f"{out}: is there already and is no data set; name a new folder or remove it")
        return None
    info = read_dataset_info(out)
    if info.source.get("fingerprint") != made_from["fingerprint"]:
        differs = [key for key in made_from if key != "fingerprint" and info.source.get(key) != made_from[key]]
        raise DataError(
            f"{out}: holds a data set made from something else (differs in: {', '.join(differs) or 'options'}); "
            "name a new folder or remove it"
        )
    for path, entry in info.files.items():
        uri = io.join(out, path)
        if not io.exists(uri) or _size(uri) != entry.bytes:
            raise DataError(f"{uri}: is missing or changed since the data set was made; remove {out} and prepare it again")
    return info


def default_shards(users: int) -> int:
    """Return the number of shards for so many users: a power of two, 8 or more, with at most 50,000 users a shard."""
    return max(_SMALL_SHARDS, 1 << (users // _USERS_A_SHARD).bit_length())


def _size(uri: str) -> int:
    filesystem, path = url_to_fs(uri)
    return int(filesystem.size(path))


def write_dataset(tables: Tables, out: str, split_rule: SplitRule, *, shards: int | None = None) -> DatasetInfo:
    """Split, shard and write tables as a data set folder; equal tables give equal bytes.

    Local folders appear whole or not at all; on a store `dataset.json` comes last.

    Raises:
        DataError: the tables cannot make a data set, or a local `out` is there already and not empty.
    """
    _check(tables)
    count = shards or default_shards(len(tables.sequences.user_ids))
    if io.is_local(out):
        with io.atomic_folder(io.local_path(out)) as folder:
            return _fill(folder, tables, effective(split_rule), count)
    with tempfile.TemporaryDirectory() as name:
        info = _fill(Path(name), tables, effective(split_rule), count)
        filesystem, root = url_to_fs(out)
        for path in (*info.files, "dataset.json"):
            target = io.join(root, path)
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            filesystem.put_file(str(Path(name) / path), target)
    return info


@dataclass(frozen=True)
class _Examples:
    """A task's examples: user rows ascending, and a ragged table of labels and splits."""

    name: str
    kind: TaskKind
    classes: int
    users: NDArray[np.int64]
    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    split: NDArray[np.int8]

    def task(self) -> Task:
        if self.kind == "next" and len(self.users) == 0:
            raise DataError(f"task '{self.name}': no user has two items or more whose last one is in the catalogue")
        train, validation, test = np.bincount(self.split, minlength=3).tolist()
        for part, size in (("training", train), ("validation", validation), ("test", test)):
            if size == 0:
                sizes = f"{train} training, {validation} validation, {test} test examples of {len(self.users)} users"
                raise DataError(f"task '{self.name}': has no {part} example ({sizes}); give it more users or that part a larger share")
        return Task(self.name, self.kind, self.classes, len(self.users), (train, validation, test))


def _check(tables: Tables) -> None:
    """Raise DataError where tables cannot make a data set."""
    sequences = tables.sequences
    lengths = np.diff(sequences.offsets)
    if len(sequences.user_ids) == 0:
        raise DataError(f"data set '{tables.name}': has no users")
    if len(set(sequences.user_ids)) != len(sequences.user_ids):
        raise DataError(f"data set '{tables.name}': a user id stands there more than once")
    if (lengths < 1).any():
        raise DataError(f"user '{sequences.user_ids[int(lengths.argmin())]}': has no history")
    if len(sequences.values) and not -1 <= int(sequences.values.min()) <= int(sequences.values.max()) < len(tables.items):
        raise DataError(f"data set '{tables.name}': an item lies outside of the catalogue of {len(tables.items)}")
    names = [tables.next_task, *(table.name for table in tables.labels)]
    for name in names:
        if not TASK_NAME.fullmatch(name) or name == "items":
            raise DataError(f"task '{name}': letters, digits, '_', '-', '.' are allowed in a name, and 'items' is taken")
    if len(set(names)) != len(names):
        raise DataError(f"data set '{tables.name}': two tasks have one name ({', '.join(names)})")
    for table in tables.labels:
        if len(table.classes) < 2:
            raise DataError(f"task '{table.name}': has one label only; two or more are wanted")
        if len(table.values) and not 0 <= int(table.values.min()) <= int(table.values.max()) < len(table.classes):
            raise DataError(f"task '{table.name}': a label lies outside of its {len(table.classes)} classes")
        if (np.diff(table.offsets) < 1).any() or (np.diff(table.users) < 1).any():
            raise DataError(f"task '{table.name}': users must ascend and have a label each")


def _examples(tables: Tables, rule: SplitRule) -> list[_Examples]:
    """Return every task's examples with their split, the self-supervised first task's included."""
    sequences = tables.sequences
    hashes = sequences.user_hash
    last = sequences.values[sequences.offsets[1:] - 1]
    able = (np.diff(sequences.offsets) >= 2) & (last >= 0)  # an unseen item is never a target
    if tables.length_limit < 2:
        able[:] = False
    users = np.flatnonzero(able)
    if tables.next_users is not None:
        users = np.intersect1d(users, tables.next_users)
    raw: list[tuple[str, TaskKind, int, Any, Any, Any]] = [
        (tables.next_task, "next", len(tables.items), users, last[users], np.arange(len(users) + 1, dtype=np.int64))
    ]
    raw += [(table.name, table.kind, len(table.classes), table.users, table.values, table.offsets) for table in tables.labels]
    by_user = split_users(hashes, rule) if rule.by == "users" else None
    examples = []
    for name, kind, classes, rows, values, offsets in raw:
        row_of_example = np.repeat(rows, np.diff(offsets))
        if by_user is not None:
            split = by_user[row_of_example]
        else:
            position = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
            split = split_rows(name, hashes[row_of_example], position, rule)
        examples.append(_Examples(name, kind, classes, rows, values, offsets, split))
    return examples


def _fill(folder: Path, tables: Tables, rule: SplitRule, shards: int) -> DatasetInfo:
    """Write all files of a data set into a folder, `dataset.json` last."""
    writer = _Writer(folder)
    sequences = tables.sequences
    every_user = np.arange(len(sequences.user_ids))
    values, offsets = _last(sequences.values, sequences.offsets, limit=tables.length_limit)
    examples = _examples(tables, rule)
    tasks = tuple(task.task() for task in examples)

    counts = np.bincount(values + FIRST_ITEM, minlength=len(tables.items) + FIRST_ITEM)
    writer.vocabulary("items", "item", [None] * FIRST_ITEM + list(tables.items), counts)
    for table in tables.labels:
        writer.vocabulary(table.name, "label", list(table.classes), np.bincount(table.values, minlength=len(table.classes)))

    shard_of_user = (sequences.user_hash % np.uint64(shards)).astype(np.int64)
    row_of_user = np.empty(len(every_user), dtype=np.int64)
    for shard, users in enumerate(_grouped(every_user, shard_of_user, shards)):
        row_of_user[users] = np.arange(len(users))
        ids = pa.array([sequences.user_ids[user] for user in users], pa.string())
        items = _take(values + np.int32(FIRST_ITEM), offsets, users)
        writer.table(users_file(shard), {"user_id": ids, "user_hash": pa.array(sequences.user_hash[users], pa.uint64()), "sequence": items})
    for task in examples:
        for shard, at in enumerate(_grouped(np.arange(len(task.users)), shard_of_user[task.users], shards)):
            columns = {
                "row": pa.array(row_of_user[task.users[at]], pa.int32()),
                "labels": _take(task.values, task.offsets, at),
                "split": _take(task.split, task.offsets, at),
            }
            writer.table(task_file(task.name, shard), columns)
    info = DatasetInfo(
        name=tables.name,
        users=len(every_user),
        items=len(tables.items) + FIRST_ITEM,
        events=len(values),
        length_limit=tables.length_limit,
        shards=shards,
        split=rule,
        tasks=tasks,
        files=writer.files,
        source=tables.source,
        notes=tables.notes,
    )
    io.write_json(folder / "dataset.json", info.to_json())
    return info


def _grouped(values: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> list[NDArray[np.int64]]:
    """Return the values of each group, their order kept."""
    order = np.argsort(group, kind="stable")
    ends: list[int] = np.cumsum(np.bincount(group, minlength=groups)).tolist()
    return np.split(values[order], ends[:-1])


def _last(values: NDArray[np.int32], offsets: NDArray[np.int64], *, limit: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return a ragged table with the last `limit` values of each row."""
    lengths = np.diff(offsets)
    if not (lengths > limit).any():
        return values, offsets
    left = np.repeat(offsets[1:], lengths) - np.arange(len(values))  # 1 for a row's last value
    return values[left <= limit], np.concatenate(([0], np.cumsum(np.minimum(lengths, limit)))).astype(np.int64)


def _take(values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> Any:
    """Return rows of a ragged table as an Arrow list array of the values' type."""
    lengths = offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(lengths)
    at = np.arange(int(lengths.sum())) + np.repeat(offsets[rows] - (ends - lengths), lengths)
    starts = np.concatenate(([0], ends)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(values[at]))


class _Writer:
    """Writes Parquet files into a folder and keeps their rows, bytes and checksums."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}

    def table(self, path: str, columns: dict[str, Any]) -> None:
        """Write columns as a file of the data set."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        pq.write_table(table, target, compression="zstd", version="2.6")
        self.files[path] = FileEntry(len(table), target.stat().st_size, io.sha256(str(target)))

    def vocabulary(self, name: str, column: str, names: list[str | None], counts: NDArray[np.int64]) -> None:
        """Write names with their index and count."""
        index = pa.array(np.arange(len(names)), pa.int32())
        self.table(vocabulary_file(name), {column: pa.array(names, pa.string()), "index": index, "count": pa.array(counts, pa.int64())})
