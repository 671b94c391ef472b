"""A run folder, read into frozen dataclasses for tables, figures and the page.

A run may be under way or cut off: every file but one may be missing, the last line of `events.jsonl` may be half written, and
entries may be null. What is not there is `None` or empty here; nothing is made up for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dist_teracon import io
from dist_teracon.data.schema import DatasetInfo, read_dataset_info
from dist_teracon.errors import RunError
from dist_teracon.report.events import Events, read_events
from dist_teracon.report.later import COLD_START, DRIFT
from dist_teracon.report.paired import Errors, read_errors
from dist_teracon.report.values import as_list, as_mapping, as_number, as_whole
from dist_teracon.store.view import fetch_view

FORMAT_VERSION = 1

Column = tuple[float | None, ...]


@dataclass(frozen=True)
class SvdBaseline:
    """Truncated SVD and logistic regression on one profile task: test score, dimensions kept and score on validation."""

    score: float
    dimensions: int | None
    validation_score: float | None


@dataclass(frozen=True)
class Baselines:
    """Scores of what anyone would try first, one entry a task; `None` where a baseline does not apply."""

    popularity: Column
    majority: Column
    svd_logistic_regression: tuple[SvdBaseline | None, ...]

    def named(self, task: int) -> list[tuple[str, float]]:
        """Return (name, score) of the baselines that a task has."""
        svd = self.svd_logistic_regression[task]
        entries = (("popularity", self.popularity[task]), ("majority", self.majority[task]), ("SVD + LR", svd.score if svd else None))
        return [(name, score) for name, score in entries if score is not None]


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage, whole and by what they were spent on."""

    stage: int
    task: str
    seconds: float | None
    training: float | None
    pseudo_labels: float | None
    evaluation: float | None
    epochs: int | None


@dataclass(frozen=True)
class Machine:
    """Where a run was made."""

    cpu: str | None
    cores: int | None
    world_size: int | None
    versions: dict[str, str]


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder.

    Attributes:
        folder: The run's folder.
        method, seed: As in `results.json`, else as in the configuration.
        config: The resolved configuration.
        dataset: The data set's description, if the run holds its copy.
        tasks: Names of all tasks in the run's order, not yet learned ones included.
        metrics: The metric that selects, a name a task; `None` where it is not known.
        scores: R by those metrics: a row a finished stage, a column a task; `None` where a task was not evaluated.
        scores_by_metric: R by every metric, `None` too where a task does not have it.
        single_task: Score of each task learned alone.
        fwt, bwt: Transfer in percent, one entry a task.
        fwt_absolute, bwt_absolute: The same as differences of scores.
        data_versions: The data set's fingerprint when each finished stage was scored, `None` where it is not known.
        test_examples, unseen_targets: Test examples a task, and those of them whose target training never saw.
        baselines: Scores of simple baselines, if they were computed.
        times: Seconds of the finished stages.
        machine: Where the run was made.
        events: The run's log.
        errors: Standard errors of scores and of their changes, over users.
        cold_start, drift: What the commands of these names noted, by target and by task.
    """

    folder: Path
    method: str
    seed: int | None
    config: dict[str, Any]
    dataset: DatasetInfo | None
    tasks: tuple[str, ...]
    metrics: tuple[str | None, ...]
    scores: tuple[Column, ...]
    scores_by_metric: dict[str, tuple[Column, ...]]
    single_task: Column
    fwt: Column
    bwt: Column
    fwt_absolute: Column
    bwt_absolute: Column
    data_versions: tuple[str | None, ...]
    test_examples: tuple[int | None, ...]
    unseen_targets: tuple[int | None, ...]
    baselines: Baselines | None
    times: tuple[StageTime, ...]
    machine: Machine | None
    events: Events
    errors: Errors
    cold_start: dict[str, Any]
    drift: dict[str, Any]

    @property
    def final(self) -> Column:
        """The last score of each task; methods that train a model a task evaluate each task only once."""
        return _last(self.scores, len(self.tasks))

    @property
    def learned(self) -> Column:
        """The first score of each task, R(i,i)."""
        return tuple(next((row[i] for row in self.scores if row[i] is not None), None) for i in range(len(self.tasks)))

    @property
    def bwt_error(self) -> Column:
        """Paired standard error of each task's `bwt_absolute`."""
        return _padded_column(self.errors.changes[-1] if self.errors.changes else (), self.bwt_absolute)

    @property
    def fwt_error(self) -> Column:
        """Paired standard error of each task's `fwt_absolute`."""
        return _padded_column(self.errors.forward, self.fwt_absolute)

    @property
    def final_error(self) -> Column:
        """Standard error of each task's final score, over users."""
        return _last(self.errors.scores, len(self.tasks))

    @property
    def version_note(self) -> str:
        """Which stages were scored on a version of the data set whose scores do not compare with the last one's; empty for none."""
        if self.dataset is None:
            return ""
        comparable = {self.dataset.fingerprint, *self.dataset.source.get("comparable", ()), None}
        stages = [name for name, version in zip(self.stage_names, self.data_versions, strict=False) if version not in comparable]
        if not stages:
            return ""
        return (
            f"Scored on an earlier version of the data set, with other histories: after {', '.join(stages)}. These rows, and transfer that "
            "is computed from them, do not compare exactly with those below."
        )

    @property
    def further_metrics(self) -> dict[str, tuple[Column, ...]]:
        """R by each metric that selects for no task."""
        return {name: rows for name, rows in self.scores_by_metric.items() if name not in self.metrics}

    def final_by(self, metric: str) -> Column:
        """Return the last score of each task by a metric, `None` for tasks that do not have it."""
        return _last(self.scores_by_metric.get(metric, ()), len(self.tasks))

    def metrics_of(self, task: int) -> list[str]:
        """Return the names of a task's metrics, the one that selects first."""
        first, further = self.metrics[task], [name for name in self.further_metrics if self.final_by(name)[task] is not None]
        return [*([first] if first else []), *further]

    def batch_of(self, stage: int) -> int | None:
        """Return the rows of a batch in a stage, counted from 1, by the configuration."""
        train = as_mapping(self.config.get("train"))
        group = as_mapping(train.get({1: "first", 2: "second"}.get(stage, "later")))
        task = self.events.stages.get(stage) or (self.tasks[stage - 1] if 0 < stage <= len(self.tasks) else "")
        own = as_mapping(as_mapping(train.get("by_task")).get(task))
        return as_whole(own.get("batch")) or as_whole(group.get("batch"))

    @property
    def finished(self) -> bool:
        """Whether every task was learned; one may have no score by then, as where its metric is not defined on its users."""
        return bool(self.tasks) and self.learned_tasks == len(self.tasks)

    @property
    def learned_tasks(self) -> int:
        """How many tasks were learned: R has a row for each, also of a method that learns several at once."""
        return min(len(self.scores), len(self.tasks))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The task of each finished stage, by its name in the log, else by its place."""
        started = self.events.stages
        places = dict(enumerate(self.tasks, start=1))
        return tuple(started.get(stage) or places.get(stage, f"stage {stage}") for stage in range(1, len(self.scores) + 1))

    @property
    def dataset_name(self) -> str:
        """The data set's own name, else what the configuration calls it."""
        return self.dataset.name if self.dataset else str(self.config.get("dataset") or "unknown data")

    @property
    def seconds(self) -> float | None:
        """Seconds of all finished stages."""
        known = [time.seconds for time in self.times if time.seconds is not None]
        return sum(known) if known else None

    @property
    def max_users(self) -> int | None:
        """Users a task that evaluation was cut to, `None` for all."""
        return as_whole(as_mapping(self.config.get("evaluate")).get("max_users"))


def _is_read(path: str) -> bool:
    """Return whether reports read a file of a run."""
    return "/" not in path or path.endswith("/scores.parquet")


def read_run(folder: Path | str) -> RunData:
    """Read a run, finished or not: a folder, or the URI of one on a store.

    Raises:
        RunError: the folder is missing, is no run, or holds results of another format version.
        DataError: a JSON file in it does not parse, or the store fails.
    """
    if not io.is_local(str(folder)):
        with tempfile.TemporaryDirectory() as cache:
            view = read_run(fetch_view(str(folder), Path(cache), wanted=_is_read))
            return replace(view, folder=Path(str(folder)))
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; `dist-teracon train CONFIG --run {folder}` makes one")
    if not any((folder / name).is_file() for name in ("results.json", "events.jsonl", "config.yaml")):
        raise RunError(
            f"{folder}: is no run (none of config.yaml, events.jsonl and results.json is in it); name the folder given to `train --run`"
        )
    config = _read_config(folder / "config.yaml")
    events = read_events(folder / "events.jsonl")
    results = _optional_json(folder / "results.json")
    version = results.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise RunError(f"{folder / 'results.json'}: format version {version!r}, this program reads {FORMAT_VERSION}; update it")
    dataset = read_dataset_info(str(folder)) if (folder / "dataset.json").is_file() else None
    tasks = _task_names(results, events, config, dataset)
    metrics, scores = _metrics(results, tasks, events), _matrix(results.get("scores"), len(tasks))
    timing = _optional_json(folder / "timing.json")
    return RunData(
        folder=folder,
        method=str(results.get("method") or events.method or as_mapping(config.get("method")).get("name") or "unknown method"),
        seed=next((s for s in map(as_whole, (results.get("seed"), events.seed, config.get("seed"))) if s is not None), None),
        config=config,
        dataset=dataset,
        tasks=tasks,
        metrics=metrics,
        scores=scores,
        scores_by_metric={str(name): _matrix(rows, len(tasks)) for name, rows in as_mapping(results.get("scores_by_metric")).items()},
        single_task=_column(results.get("single_task"), len(tasks)),
        fwt=_column(results.get("fwt"), len(tasks)),
        bwt=_column(results.get("bwt"), len(tasks)),
        fwt_absolute=_column(results.get("fwt_absolute"), len(tasks)),
        bwt_absolute=_column(results.get("bwt_absolute"), len(tasks)),
        data_versions=tuple(str(version) if version else None for version in as_list(results.get("data_versions"))),
        test_examples=tuple(map(as_whole, _padded(results.get("test_examples"), len(tasks)))),
        unseen_targets=tuple(map(as_whole, _padded(results.get("unseen_targets"), len(tasks)))),
        baselines=_baselines(_optional_json(folder / "baselines.json"), len(tasks)),
        times=tuple(map(_stage_time, as_list(timing.get("stages")))),
        machine=_machine(as_mapping(timing.get("machine")), events),
        events=events,
        errors=read_errors(folder, tasks=tasks, metrics=metrics, stages=len(scores)),
        cold_start=_optional_json(folder / COLD_START),
        drift=_optional_json(folder / DRIFT),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return as_mapping(io.read_json(str(path))) if path.is_file() else {}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return as_mapping(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not valid YAML ({' '.join(str(error).split())}); was the file changed by hand?") from None


def _task_names(results: Mapping[str, Any], events: Events, config: Mapping[str, Any], dataset: DatasetInfo | None) -> tuple[str, ...]:
    """Take the longest list among results and log, as results may name the learned tasks alone; else what was planned."""
    known = tuple(map(str, as_list(results.get("tasks"))))
    if len(events.tasks) > len(known) and events.tasks[: len(known)] == known:
        known = events.tasks
    planned = tuple(task for task in as_list(config.get("tasks")) if isinstance(task, str))
    return known or events.tasks or planned or (tuple(task.name for task in dataset.tasks) if dataset else ())


def _metrics(results: Mapping[str, Any], tasks: Sequence[str], events: Events) -> tuple[str | None, ...]:
    planned = {task: names[0] for task, names in zip(events.tasks, events.metrics, strict=False) if names}
    given = _padded(results.get("metrics"), len(tasks))
    return tuple(str(metric) if metric is not None else planned.get(task) for task, metric in zip(tasks, given, strict=True))


def _last(rows: Sequence[Column], tasks: int) -> Column:
    return tuple(next((row[i] for row in reversed(rows) if row[i] is not None), None) for i in range(tasks))


def _padded_column(errors: Column, values: Column) -> Column:
    """Return the errors of the values that there are."""
    known = (*errors, *[None] * len(values))[: len(values)]
    return tuple(None if value is None else error for error, value in zip(known, values, strict=True))


def _matrix(value: object, tasks: int) -> tuple[Column, ...]:
    return tuple(_column(row, tasks) for row in as_list(value))


def _padded(value: object, length: int) -> list[Any]:
    entries = as_list(value)[:length]
    return entries + [None] * (length - len(entries))


def _column(value: object, length: int) -> Column:
    return tuple(map(as_number, _padded(value, length)))


def _baselines(value: Mapping[str, Any], length: int) -> Baselines | None:
    if not value:
        return None
    svd: list[SvdBaseline | None] = []
    for entry in map(as_mapping, _padded(value.get("svd_logistic_regression"), length)):
        score = as_number(entry.get("score"))
        known = score is not None
        svd.append(
            SvdBaseline(score or 0.0, as_whole(entry.get("dimensions")), as_number(entry.get("validation_score"))) if known else None
        )
    return Baselines(_column(value.get("popularity"), length), _column(value.get("majority"), length), tuple(svd))


def _stage_time(value: object) -> StageTime:
    entry = as_mapping(value)
    return StageTime(
        stage=as_whole(entry.get("stage")) or 0,
        task=str(entry.get("task", "")),
        seconds=as_number(entry.get("seconds")),
        training=as_number(entry.get("training_seconds")),
        pseudo_labels=as_number(entry.get("pseudo_label_seconds")),
        evaluation=as_number(entry.get("evaluation_seconds")),
        epochs=as_whole(entry.get("epochs")),
    )


def _machine(value: Mapping[str, Any], events: Events) -> Machine | None:
    if not value and events.world_size is None and not events.versions:
        return None
    versions = {str(name): str(version) for name, version in as_mapping(value.get("versions")).items()}
    cpu = value.get("cpu")
    return Machine(
        cpu=str(cpu) if cpu else None,
        cores=as_whole(value.get("cores")),
        world_size=as_whole(value.get("world_size")) or events.world_size,
        versions=versions or events.versions,
    )
