"""The baselines of a data set's tasks, gathered from its shards: `baselines.json` beside a run's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.schema import Split, Task
from dist_teracon.data.shards import Dataset
from dist_teracon.errors import TeraconError
from dist_teracon.evaluate.baselines import SvdFeatures, majority_score, popularity_score, svd_logistic_regression

Int = NDArray[np.int64]


def baseline_table(dataset: Dataset, tasks: Sequence[Task], *, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Score popularity on item tasks, majority and SVD with logistic regression on profile tasks, all on the whole test split.

    Returns:
        `popularity`, `majority`, `svd_logistic_regression`: lists over `tasks`, None where a baseline does not apply.
    """
    popularity: list[float | None] = []
    majority: list[float | None] = []
    for task in tasks:
        targets = np.concatenate([dataset.labels(task.name, shard).of(Split.TEST).values for shard in range(dataset.info.shards)])
        counts = dataset.train_counts(task.name)
        ranks_items = task.kind != "profile"
        popularity.append(popularity_score(counts, targets) if ranks_items and targets.size else None)
        majority.append(majority_score(counts, targets) if not ranks_items and targets.size else None)
    return {"popularity": popularity, "majority": majority, "svd_logistic_regression": _svd(dataset, tasks, seed, say)}


def _svd(dataset: Dataset, tasks: Sequence[Task], seed: int, say: Callable[[str], None]) -> list[dict[str, Any] | None]:
    profiles = [task for task in tasks if task.kind == "profile"]
    if not profiles:
        return [None] * len(tasks)
    shards = range(dataset.info.shards)
    sizes = [dataset.shard(shard).user_hash.shape[0] for shard in shards]
    first_user = np.concatenate([[0], np.cumsum(sizes)])
    values = np.concatenate([dataset.shard(shard).values for shard in shards])
    lengths = np.concatenate([np.diff(dataset.shard(shard).offsets) for shard in shards])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    examples = {task.name: _examples(dataset, task.name, first_user) for task in profiles}
    # split by user: a user is in training for all tasks or for none; split by row: every user trains some task
    train_users = np.unique(np.concatenate([rows[split == Split.TRAIN] for rows, _, split in examples.values()]))
    try:
        features = SvdFeatures.fit(values, offsets, items=dataset.info.items, train_users=train_users, seed=seed)
    except TeraconError as error:
        say(f"SVD with logistic regression is left out: {error}")
        return [None] * len(tasks)
    table: list[dict[str, Any] | None] = []
    for task in tasks:
        if task.kind != "profile":
            table.append(None)
            continue
        rows, labels, split = examples[task.name]
        if not (split == Split.TEST).any() or not (split == Split.TRAIN).any():
            table.append(None)
            continue
        found = svd_logistic_regression(features, rows=rows, labels=labels, split=split)
        table.append({"score": found.score, "dimensions": found.dimensions, "validation_score": found.validation_score})
    return table


def _examples(dataset: Dataset, task: str, first_user: Int) -> tuple[Int, Int, NDArray[np.int8]]:
    rows, labels, split = [], [], []
    for shard in range(dataset.info.shards):
        part = dataset.labels(task, shard)
        rows.append(np.repeat(part.users + first_user[shard], part.counts))
        labels.append(part.values)
        split.append(part.split)
    return np.concatenate(rows), np.concatenate(labels), np.concatenate(split)
