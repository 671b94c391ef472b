"""When rows are predicted, for models that read how long ago a history's last event was (docs/method.md, Backbones).

A row of the first task is predicted when its label happened. Labels of other tasks have no times in a data set: their rows are predicted
when the histories end, which is one moment for all rows of a task and split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.data.schema import DatasetInfo, Split, Task


@dataclass(frozen=True)
class Moments:
    """When rows of a data set are predicted whose labels have no times, in seconds since 1970.

    Attributes:
        last: The last moment of which histories tell; of histories in use, too, where no other is given. `NO_TIME` for unknown.
        labels_from, validation_from: Under a split by time, where earlier histories end.
        earlier: By task of an earlier version of the data set, when its rows are predicted: as in that version.
    """

    last: int = NO_TIME
    labels_from: int | None = None
    validation_from: int | None = None
    earlier: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def is_dated(info: DatasetInfo) -> bool:
        """Return whether a recipe's dates say when the histories end, whatever the events."""
        recipe = info.source.get("recipe")
        rules: dict[str, Any] = recipe if isinstance(recipe, dict) else {}
        return info.split.by == "time" or ((rules.get("history") or {}).get("events") or {}).get("until") is not None

    @classmethod
    def of_dataset(cls, info: DatasetInfo, last_event: int) -> Moments:
        """Return a data set's moments: of its split by time, else the end of its recipe's histories, else its last event.

        Args:
            info: The data set's description.
            last_event: When the last event of all histories was.
        """
        recipe = info.source.get("recipe")
        rules: dict[str, Any] = recipe if isinstance(recipe, dict) else {}
        split: dict[str, Any] = rules.get("split") or {}
        if info.split.by == "time":
            labels_from = split.get("labels_from")
            return cls(int(split["test_from"]), None if labels_from is None else int(labels_from), int(split["validation_from"]))
        until = ((rules.get("history") or {}).get("events") or {}).get("until")
        return cls(last_event if until is None else int(until), earlier=info.source.get("moments", {}))

    def told(self) -> str:
        """Return a line on when labels without times are predicted, so that a wrong date is seen."""
        if self.validation_from is None:
            return f"recency: labels without times are predicted on {day_of(self.last)}"
        before, last = day_of(self.validation_from), day_of(self.last)
        trained = before if self.labels_from is None else f"{day_of(self.labels_from)} (of items) and {before} (of users)"
        return f"recency: labels without times are predicted on {trained} in training, on {before} in validation, on {last} in the test"

    def of(self, task: Task, split: Split) -> int:
        """Return when a task's rows of a split are predicted, its labels having no times.

        In a version of a data set, tasks of an earlier one keep the moment that they had in it, as they keep their labels and histories.
        Under a split by time labels of items follow the history that ends with `labels_from`, `validation_from` or `test_from`; attributes
        of users are told from the history before `validation_from`, in the test before `test_from`.
        """
        if self.validation_from is None or split == Split.TEST:
            return self.earlier.get(task.name, self.last)
        if split == Split.TRAIN and task.kind == "item" and self.labels_from is not None:
            return self.labels_from
        return self.validation_from


def day_of(moment: int) -> str:
    """Return the day of a moment in seconds since 1970, as 2017-11-01 (UTC); its seconds where no calendar has it."""
    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=moment):%Y-%m-%d}"
    except OverflowError:
        return f"{moment} s since 1970"
