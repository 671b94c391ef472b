"""Labels of users for tasks that a model never saw: a file with the columns `user` and `label`, or a task of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log, no_log
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.parts import open_parts, read_parts
from dist_teracon.data.raw.table import ColumnSpec
from dist_teracon.data.schema import users_file
from dist_teracon.errors import DataError
from dist_teracon.hashing import mix64, stable_hash

_COLUMNS = {"user": ColumnSpec("name", required=True), "label": ColumnSpec("name", required=True)}
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class UserLabels:
    """A class for each of some users, and which part each user is in.

    Attributes:
        users: Names.
        labels: int64 [U], classes.
        classes: Their names, in the order of the names.
        split: int8 [U], a `Split` each: of a file 70, 10 and 20 per cent, by a hash of the user and the seed.
    """

    users: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    split: NDArray[np.int8]

    def of(self, users: list[str]) -> tuple[UserLabels, NDArray[np.int64]]:
        """Return the labels of those of these users that have one, and their places among `users`."""
        place = {user: row for row, user in enumerate(users)}
        kept = np.array([row for row, user in enumerate(self.users) if user in place], dtype=np.int64)
        rows = np.array([place[self.users[row]] for row in kept.tolist()], dtype=np.int64)
        names = [self.users[row] for row in kept.tolist()]
        return UserLabels(names, self.labels[kept], self.classes, self.split[kept]), rows


def read_labels(uri: str, *, seed: int = 0, log: Log = no_log) -> UserLabels:
    """Read a file of labels, Parquet or CSV.

    Args:
        uri: The file.
        seed: Of the split.
        log: Takes what is passed over.

    Raises:
        DataError: it is missing or malformed, a user is there twice, or there are fewer than two classes or more than a thousand.
    """
    with TemporaryDirectory() as folder:
        context = ReadContext(BadRows(root=uri, adjustable=False), Path(folder), log=log)
        parts = open_parts([uri], dialect=Dialect(delimiter=",", quote='"'), context=context, guess=True)
        table = read_parts(parts, _COLUMNS, context)
    context.bad.tell(uri, log)
    users, labels = table.columns["user"], table.columns["label"]
    counts = np.bincount(users.codes, minlength=len(users.names))
    if (counts > 1).any():
        raise DataError(f"{uri}: user '{users.names[int(counts.argmax())]}' stands there {counts.max()} times; expected one label a user")
    if not 2 <= len(labels.names) <= _MOST_CLASSES:
        raise DataError(f"{uri}: expected 2 to {_MOST_CLASSES} classes, got {len(labels.names)}; numbers have to be cut into classes first")
    order = sorted(range(len(labels.names)), key=labels.names.__getitem__)
    class_of = np.empty(len(order), dtype=np.int64)
    class_of[order] = np.arange(len(order))
    names = [users.names[code] for code in users.codes.tolist()]
    hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    share = mix64(hashes, key=stable_hash(f"probe:{seed}")).astype(np.float64) / 2.0**64
    split = np.where(share < 0.7, 0, np.where(share < 0.8, 1, 2)).astype(np.int8)
    return UserLabels(names, class_of[labels.codes], [labels.names[code] for code in order], split)


def labels_of_task(dataset: Dataset, task: str) -> UserLabels:
    """Return the labels of a data set's profile task, with the data set's own split; of a test of several periods those of the first,
    as a user who is there in all of them is one user.

    Raises:
        DataError: there is no such task, or it ranks items.
    """
    if dataset.info.task(task).ranks_labels:
        raise DataError(f"{dataset.uri}: task '{task}' ranks items; a probe learns classes, as those of a profile task")
    classes: list[str] = dataset.vocabulary(task)["label"].to_pylist()
    users: list[str] = []
    labels, split = [], []
    for shard in range(dataset.info.shards):
        found = dataset.labels(task, shard)
        once = np.ones(len(found.users), dtype=bool) if found.period is None else found.period[found.offsets[:-1]] == 0
        names = dataset.table(users_file(shard), ["user_id"])["user_id"].to_pylist()
        users += [names[row] for row in found.users[once].tolist()]
        labels.append(found.values[found.offsets[:-1]][once])
        split.append(found.split[found.offsets[:-1]][once])
    return UserLabels(users, np.concatenate(labels).astype(np.int64), classes, np.concatenate(split))
