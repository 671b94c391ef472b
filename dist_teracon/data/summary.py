"""A data set in a few lines, as `dist-teracon prepare` prints it."""

from __future__ import annotations

from dist_teracon.data.schema import DatasetInfo


def dataset_lines(info: DatasetInfo) -> list[str]:
    """Return a line on the whole and one a task."""
    split = info.split
    head = (
        f"{info.name}: {info.users} users, {info.items - 2} items, {info.events} events, sequences of at most {info.length_limit}, "
        f"{info.shards} shards; split by {split.by} {split.train:g}/{split.validation:g}/{split.test:g}, seed {split.seed}"
    )
    width = max(len(task.name) for task in info.tasks)
    lines = [
        f"  {task.name:<{width}}  {task.kind:<7} {task.labels:>8} labels {task.users:>9} users   "
        f"examples train {task.examples[0]}, validation {task.examples[1]}, test {task.examples[2]}"
        for task in info.tasks
    ]
    return [head, *lines]
