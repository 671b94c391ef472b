"""The baselines of a data set's tasks, gathered from its shards: `baselines.json` beside a run's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data import ragged
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset, Labels
from dist_teracon.data.schema import Split, Task
from dist_teracon.errors import TeraconError
from dist_teracon.evaluate.baselines import SvdFeatures, popularity_score, svd_logistic_regression
from dist_teracon.evaluate.candidates import LeftOut, items_left_out
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.scorer import excludes_seen
from dist_teracon.hashing import mix64, stable_hash

Int = NDArray[np.int64]

# SVD with logistic regression is fitted and scored on so many users at most: it costs minutes then, and 2 GB, whatever the data's size.
SVD_USERS = 100_000


def baseline_table(
    dataset: Dataset, tasks: Sequence[Task], *, metrics: Sequence[str], seed: int, log: Log, exclude_seen: bool | None = None,
    periods: Sequence[int | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score popularity on item tasks, majority and SVD with logistic regression on profile tasks, on the whole test split.

    Of more than `SVD_USERS` users the SVD takes a sample, training and test users alike, and its entries say of how many (`users`).

    Args:
        dataset: The data set.
        tasks: Its tasks that a run has.
        metrics: Names; the first that a task has is that of its baselines.
        seed: Of the SVD and its sample of users.
        log: Takes messages.
        periods: The test period of each task, where the test has several.
        exclude_seen: `evaluate.exclude_seen` of the configuration: popularity then leaves out what models' rankings leave out.

    Returns:
        `popularity`, `majority`, `svd_logistic_regression`: lists over `tasks`, None where a baseline does not apply.
    """
    popularity: list[float | None] = []
    majority: list[float | None] = []
    chosen = dict(zip((task.name for task in tasks), periods or [None] * len(tasks), strict=True))
    for task in tasks:
        parts = [dataset.labels(task.name, shard).of(Split.TEST, period=chosen[task.name]) for shard in range(dataset.info.shards)]
        targets, users = np.concatenate([part.values for part in parts]), np.concatenate([part.counts for part in parts])
        metric, counts = metrics_of(task, metrics)[0], dataset.train_counts(task.name)
        left_out = _left_out(dataset, task, parts) if excludes_seen(dataset.info, task.name, exclude_seen) else None
        rows = np.repeat(np.arange(users.size), users)
        if left_out is not None and (gone := int(left_out.holds(targets, rows).sum())):
            log(
                f"{task.name}: {gone:,} of {targets.size:,} test targets are items that the user's history holds already; rankings leave "
                "these out (evaluate.exclude_seen, `repeats: false` of the recipe), so each of them is a miss"
            )
        score = popularity_score(metric, counts, targets, rows, left_out) if targets.size else None
        popularity.append(score if task.ranks_labels else None)
        majority.append(None if task.ranks_labels else score)
    return {"popularity": popularity, "majority": majority, "svd_logistic_regression": _svd(dataset, tasks, metrics, seed, log, chosen)}


def _left_out(dataset: Dataset, task: Task, parts: Sequence[Labels]) -> LeftOut:
    """Return what the rankings of each shard's users leave out, shard behind shard."""
    found = []
    for shard, part in enumerate(parts):
        data = dataset.shard(shard)
        without_last = int(task.predicts_next) + dataset.behind(task.name, Split.TEST)
        rows = take_rows(data.values, data.offsets, part.users, without_last=without_last)
        label_of_item = dataset.label_of_item(task.name)
        assert label_of_item is not None
        earlier = dataset.earlier_labels(task.name, shard)
        earlier = None if earlier is None else ragged.take(*earlier, part.users)
        found.append(items_left_out(rows.values, rows.offsets, label_of_item, earlier=earlier))
    return LeftOut(*ragged.concatenate([(part.labels, part.offsets) for part in found]))


def _svd(
    dataset: Dataset, tasks: Sequence[Task], metrics: Sequence[str], seed: int, log: Log, periods: Mapping[str, int | None]
) -> list[dict[str, Any] | None]:  # fmt: skip
    profiles = [task for task in tasks if not task.ranks_labels]
    if not profiles:
        return [None] * len(tasks)
    picked = [_picked_users(dataset, shard, seed) for shard in range(dataset.info.shards)]
    taken = [take_rows(dataset.shard(shard).values, dataset.shard(shard).offsets, users) for shard, users in enumerate(picked)]
    values = np.concatenate([part.values for part in taken])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.offsets) for part in taken]))]).astype(np.int64)
    examples = {task.name: _examples(dataset, task.name, picked, periods[task.name]) for task in profiles}
    sampled = {"users": len(offsets) - 1} if len(offsets) - 1 < dataset.info.users else {}
    if sampled:
        log(f"SVD with logistic regression: on {sampled['users']:,} of {dataset.info.users:,} users")
    # split by user: a user is in training for all tasks or for none; split by row: every user trains some task
    train_users = np.unique(np.concatenate([rows[split == Split.TRAIN] for rows, _, split in examples.values()]))
    try:
        features = SvdFeatures.fit(values, offsets, items=dataset.info.items, train_users=train_users, seed=seed)
    except TeraconError as error:
        log(f"SVD with logistic regression is left out: {error}")
        return [None] * len(tasks)
    table: list[dict[str, Any] | None] = []
    for task in tasks:
        if task.ranks_labels:
            table.append(None)
            continue
        rows, labels, split = examples[task.name]
        if not (split == Split.TEST).any() or not (split == Split.TRAIN).any():
            table.append(None)
            continue
        metric = metrics_of(task, metrics)[0]
        found = svd_logistic_regression(metric, features, classes=task.labels, rows=rows, labels=labels, split=split)
        table.append({"score": found.score, "dimensions": found.dimensions, "validation_score": found.validation_score, **sampled})
    return table


def _picked_users(dataset: Dataset, shard: int, seed: int) -> Int:
    """Rows of a shard's users that the SVD takes: all of a small data set, else those whose keyed hash lies in the share."""
    hashes = dataset.shard(shard).user_hash
    if dataset.info.users <= SVD_USERS:
        return np.arange(hashes.shape[0])
    share = SVD_USERS / dataset.info.users
    return np.flatnonzero(mix64(hashes, key=stable_hash(f"baselines:{seed}")) < np.uint64(share * 2.0**64))


def _examples(
    dataset: Dataset, task: str, picked: Sequence[Int], period: int | None = None
) -> tuple[Int, Int, NDArray[np.int8]]:  # fmt: skip
    """Return the picked users' examples, of the test those of one period where it is given.

    Each one's user is counted over the picked users of all shards; with it its label and its split.
    """
    rows, labels, split, first = [], [], [], 0
    for shard, users in enumerate(picked):
        part = dataset.labels(task, shard)
        user_of_label = np.repeat(part.users, part.counts)
        place = np.minimum(np.searchsorted(users, user_of_label), max(0, len(users) - 1))
        kept = users[place] == user_of_label if len(users) else np.zeros(len(user_of_label), dtype=bool)
        if period is not None and part.period is not None:
            kept &= (part.split != Split.TEST) | (part.period == period)
        rows.append(place[kept] + first)
        labels.append(part.values[kept])
        split.append(part.split[kept])
        first += len(users)
    return np.concatenate(rows), np.concatenate(labels), np.concatenate(split)
