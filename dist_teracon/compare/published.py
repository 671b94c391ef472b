"""Published scores beside those of a comparison, where its data set fits: `published.yaml`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import Field

from dist_teracon.compare.comparison import Comparison
from dist_teracon.compare.table import NONE, Table, made
from dist_teracon.config.base import ConfigModel
from dist_teracon.config_io import validate
from dist_teracon.data.schema import DatasetInfo, read_dataset_info


class Fits(ConfigModel):
    """The data that published scores are of; a data set's name is its owner's, so it is known by what it holds.

    Attributes:
        tasks: Their names, in the published order, which is that of the scores.
        users: The fewest and the most of them.
        split: By `users` or `rows`.
        source: The generated set that it has to be; not compared where None.
    """

    tasks: tuple[str, ...]
    users: tuple[int, int]
    split: str
    source: str | None = None


class Published(ConfigModel):
    """A table of published scores.

    Attributes:
        source: Where they stand, and how they were made.
        fits: Of which data.
        metrics: Of each task.
        scores: System to a score a task, as text; nothing where there is none.
    """

    source: str
    fits: Fits
    metrics: tuple[str, ...]
    scores: dict[str, tuple[str | None, ...]] = Field(min_length=1)


@cache
def known_tables() -> tuple[Published, ...]:
    """Return all published tables that are shipped."""
    where = files("dist_teracon.compare").joinpath("published.yaml")
    entries: list[dict[str, Any]] = yaml.safe_load(where.read_text(encoding="utf-8"))
    return tuple(validate(Published, entry, where=f"published.yaml, {number}") for number, entry in enumerate(entries))


def published_tables(comparison: Comparison) -> list[Table]:
    """Return the published scores of a comparison's tasks, where the data of all its runs and the metrics are theirs; on test alone."""
    runs = [run for of_variant in comparison.folders.values() for run in of_variant]
    if comparison.split != "test" or not all((run / "dataset.json").is_file() for run in runs):
        return []
    infos = [read_dataset_info(str(run)) for run in runs]
    return [_table(entry, comparison) for entry in known_tables() if all(_fits(entry, info, comparison) for info in infos)]


def _fits(entry: Published, info: DatasetInfo, comparison: Comparison) -> bool:
    theirs = dict(zip(entry.fits.tasks, entry.metrics, strict=True))
    return (
        tuple(task.name for task in info.tasks) == entry.fits.tasks
        and entry.fits.users[0] <= info.users <= entry.fits.users[1]
        and entry.fits.split == info.split.by
        and entry.fits.source in (None, info.source.get("name"))
        and all(theirs.get(task) == metric for task, metric in zip(comparison.tasks, comparison.metrics, strict=True))
    )


def _table(entry: Published, comparison: Comparison) -> Table:
    places = [entry.fits.tasks.index(task) for task in comparison.tasks]
    columns = [f"{task} ({metric})" for task, metric in zip(comparison.tasks, comparison.metrics, strict=True)]
    rows = [[system, *(scores[place] or NONE for place in places)] for system, scores in entry.scores.items()]
    return made(f"Not run here, for comparison side by side: {entry.source}:", ["system", *columns], rows, heading="Scores of others")
