"""The public TERACON format: one file a task, a row `0,0,5,9,,7,3` being left-padded items, `,,`, one or more targets.

Files stand in natural order, the first task's first; its rows have no `,,`. A task's name is the file's without `taskN_`. There are
no user ids: a user is the unpadded sequence, and where it comes again within a file, its k-th occurrence.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.badrows import BadRows
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources import Adapter, folder_name
from dist_teracon.data.tables import LabelTable, SequenceTable, Tables, stable_hash
from dist_teracon.errors import ConfigError, DataError, nearest

# Numbers of up to nine digits fit in 32 bits; only rows with longer ones are looked at number by number.
_ROW = re.compile(r"(?:0,)*([1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})*)(?:,,([0-9]{1,9}(?:,[0-9]{1,9})*))?")
_LONG_ROW = re.compile(r"(?:0,)*([1-9][0-9]*(?:,[1-9][0-9]*)*)(?:,,([0-9]+(?:,[0-9]+)*))?")
_PADDING = re.compile(r"0(?:,0)*(?:,,.*)?", re.ASCII)
_TASK = re.compile(r"^task\d+[_-]?(?=.)", re.IGNORECASE)
_LARGEST = 2**31 - 1
_MOST_CLASSES = 100


def files(folder: str) -> list[str]:
    """Return the folder's task files in natural order.

    Raises:
        DataError: there are none.
    """
    names = [name for name in io.list_folder(folder) if name.endswith((".csv", ".csv.gz")) and not name.startswith(".")]
    if not names:
        raise DataError(f"{folder}: no *.csv file there; one a task is wanted")
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return [io.join(folder, name) for name in names]


def task_name(uri: str) -> str:
    """Return the task that a file holds: its stem without `taskN_`."""
    stem = uri.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".csv")
    return _TASK.sub("", stem)


@dataclass
class _Users:
    """Users over all files: row by (sequence, occurrence within a file), and their items laid end to end."""

    rows: dict[tuple[int, int], int] = field(default_factory=dict)
    items: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    width: int = 0

    def row(self, sequence: str, seen: Counter[int]) -> int:
        """Return the user's row, a new one where need be; `seen` counts sequences within the file."""
        key = stable_hash(sequence)
        seen[key] += 1
        row = self.rows.setdefault((key, seen[key]), len(self.rows))
        if row == len(self.ends):
            self.items.extend(map(int, sequence.split(",")))
            self.ends.append(len(self.items))
        return row


@dataclass
class _File:
    """A task file's rows: users in file order and their targets laid end to end."""

    users: array[int] = field(default_factory=lambda: array("q"))
    targets: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))


def read(folder: str, recipe: Recipe | None, bad: BadRows) -> Tables:
    """Read a folder of task files; a recipe may choose tasks, say their kind, name the first one, and split.

    Raises:
        ConfigError: the recipe names a task that has no file, or says what this format cannot do.
        DataError: a missing or empty file, or too many malformed rows.
    """
    uris = files(folder)
    names = [task_name(uri) for uri in uris]
    if len(set(names)) != len(names):
        raise DataError(f"{folder}: two files hold a task of one name ({', '.join(names)})")
    kinds = _kinds(recipe, names[1:])
    users = _Users()
    read_files = {
        name: _read_file(uri, users, targets=number > 0, bad=bad)
        for number, (name, uri) in enumerate(zip(names, uris, strict=True))
        if number == 0 or name in kinds
    }
    first = read_files.pop(names[0])
    sequences, items = _sequences(users)
    return Tables(
        name=(recipe.name if recipe else None) or folder_name(folder),
        items=items,
        sequences=sequences,
        labels=[_labels(name, kinds[name], read_files[name]) for name in kinds],
        length_limit=recipe.history.length if recipe and "length" in recipe.history.model_fields_set else users.width,
        next_task=recipe.first_task if recipe and "first_task" in recipe.model_fields_set else names[0],
        next_users=np.unique(np.array(first.users, dtype=np.int64)),
        notes=_notes(users),
    )


def _notes(users: _Users) -> dict[str, int]:
    groups = [count for count in Counter(key for key, _ in users.rows).values() if count > 1]
    return {"groups_of_equal_sequences": len(groups), "users_in_groups_of_equal_sequences": sum(groups)}


def _kinds(recipe: Recipe | None, names: list[str]) -> dict[str, Literal["item", "profile"] | None]:
    """Return the tasks after the first in their order, with the kind that the recipe says."""
    if recipe is None:
        return dict.fromkeys(names)
    if recipe.columns != Columns():
        raise ConfigError("columns: this format has no columns to name")
    if more := sorted(recipe.history.model_fields_set - {"length"}):
        raise ConfigError(f"history.{more[0]}: this format has its sequences in the file; only 'length' is allowed")
    if not recipe.tasks:
        return dict.fromkeys(names)
    kinds: dict[str, Literal["item", "profile"] | None] = {}
    for name, task in recipe.tasks.items():
        if name not in names:
            raise ConfigError(f"tasks.{name}: no file holds that task{nearest(name, names)} (there are: {', '.join(names)})")
        if (extra := next(iter(sorted(task.model_fields_set - {"kind"})), None)) is not None:
            raise ConfigError(f"tasks.{name}.{extra}: this format has its targets in the file; only 'kind' is allowed")
        kinds[name] = task.kind
    return kinds


def _read_file(uri: str, users: _Users, *, targets: bool, bad: BadRows) -> _File:
    """Read one task's rows; `targets` says whether they have `,,` and targets."""
    file, seen, rows = _File(), Counter[int](), 0
    for number, line in enumerate(io.text_lines(uri), 1):
        if not line:
            continue
        rows += 1
        match = _ROW.fullmatch(line) or _LONG_ROW.fullmatch(line)
        kind = _fault(line, match, targets=targets)
        if kind is not None or match is None:
            bad.add(kind or "malformed", f"{uri}:{number}", text=line)
            continue
        file.users.append(users.row(match.group(1), seen))
        users.width = max(users.width, line.partition(",,")[0].count(",") + 1)
        if targets:
            file.targets.extend(dict.fromkeys(map(int, match.group(2).split(","))))  # a label twice is one target
            file.ends.append(len(file.targets))
    if rows == 0:
        raise DataError(f"{uri}: is empty; rows of items are wanted")
    bad.check(uri, rows)
    if not file.users:
        raise DataError(f"{uri}: has no rows")
    return file


def _fault(line: str, match: re.Match[str] | None, *, targets: bool) -> str | None:
    """Say what is wrong with a row, or None."""
    if match is None:
        if _PADDING.fullmatch(line):
            return "a user without history (nothing but padding)"
        if ",,," in line or line.count(",,") > 1 or line.endswith(",") or line.startswith(","):
            return "an empty field, or more than one ',,'"
        return "a field that is not a whole number of 0 or more, or padding (0) after the first item"
    if (match.group(2) is not None) != targets:
        return "no ',,' with targets" if targets else "targets after ',,' in the first task's file"
    if match.re is _LONG_ROW and any(int(part) > _LARGEST for part in line.split(",") if part):
        return f"a number above {_LARGEST}"
    return None


def _sequences(users: _Users) -> tuple[SequenceTable, list[str]]:
    """Return the users with their items, the catalogue ordered by descending count, then number."""
    numbers, codes, counts = np.unique(np.array(users.items, dtype=np.int32), return_inverse=True, return_counts=True)
    position, order = _by_count(counts)
    hashes = np.fromiter((key for key, _ in users.rows), dtype=np.uint64, count=len(users.rows))
    ids = [f"{key:016x}-{occurrence}" for key, occurrence in users.rows]
    offsets = np.concatenate(([0], np.array(users.ends, dtype=np.int64)))
    return SequenceTable(ids, hashes, position[codes], offsets), [str(number) for number in numbers[order]]


def _by_count(counts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return each code's place in the order of descending counts, and the codes in that order."""
    order = np.argsort(-counts, kind="stable")
    position = np.empty(len(order), dtype=np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    return position, order


def _labels(name: str, kind: Literal["item", "profile"] | None, file: _File) -> LabelTable:
    """Return a task's labels; an item task where a user has several targets or there are more than 100 labels, unless `kind` says."""
    numbers, codes, counts = np.unique(np.array(file.targets, dtype=np.int64), return_inverse=True, return_counts=True)
    if len(numbers) == 1:
        raise DataError(f"task '{name}': has one label only ('{numbers[0]}'); two or more are wanted")
    ends = np.array(file.ends, dtype=np.int64)
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    several = bool((lengths > 1).any())
    if kind is None:
        kind = "item" if several or len(numbers) > _MOST_CLASSES else "profile"
    elif kind == "profile" and several:
        raise ConfigError(f"tasks.{name}.kind: users have several targets, so 'item' is allowed, not 'profile'")
    position, order = _by_count(counts) if kind == "item" else (np.arange(len(numbers), dtype=np.int32), np.arange(len(numbers)))
    users = np.array(file.users, dtype=np.int64)
    by_user = np.argsort(users, kind="stable")
    lengths = lengths[by_user]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    at = np.arange(len(codes)) + np.repeat(starts[by_user] - offsets[:-1], lengths)
    return LabelTable(name, kind, [str(number) for number in numbers[order]], users[by_user], position[codes[at]], offsets)


ADAPTER = Adapter(files, read, needs_recipe=False)
