"""Scores of a trained model on any version of its data, or on another data set with the same ids, by any metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log, Progress, no_log
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.moments import Moments
from dist_teracon.data.open import open_dataset
from dist_teracon.data.schema import DatasetInfo, Split
from dist_teracon.data.summary import taken_but_ranked
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import metrics_of, parse_metric
from dist_teracon.evaluate.periods import check_period, period_of
from dist_teracon.evaluate.scorer import excludes_seen, score_task
from dist_teracon.inference.mapped_dataset import MappedDataset, MappedEncoder, are_versions, read_event_columns
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.runtime import Runtime


@dataclass(frozen=True)
class TaskScore:
    """A task's scores.

    Attributes:
        task: Its name.
        values: By metric; None where one is not defined.
        examples: How many were scored.
        unseen: Targets that training never saw, or that the model does not know; each is a miss.
        excludes_seen: Whether the items of a user's own history were left out.
        users: How many the examples are of.
        period: The period of the test that was scored, from 0 on; None for all of them, and where there is one.
    """

    task: str
    values: dict[str, float | None]
    examples: int
    unseen: int
    excludes_seen: bool
    users: int
    period: int | None = None


def evaluate(
    model: PretrainedModel, dataset: str | None = None, *,
    tasks: Sequence[str] | None = None, metrics: Sequence[str] | None = None, split: str = "test", exclude_seen: bool | None = None,
    max_users: int | None = None, period: str | None = None, log: Log = no_log, progress: Progress | None = None,
) -> list[TaskScore]:  # fmt: skip
    """Score a model's tasks on a split of a data set.

    Args:
        model: The model.
        dataset: Folder or URI; the run's own where None. One that is no version of the run's own is matched by the names of items and
            labels.
        tasks: Which; all that the model has learned and the data set has where None.
        metrics: Names; the run's where None.
        split: `train`, `validation` or `test`.
        exclude_seen: As `evaluate.exclude_seen`; the run's setting where None.
        max_users: At most so many users a task.
        period: Of a test of several periods, each task on its `own` or the `present` one, as `evaluate.period`, or on `all` together; as
            the run's setting where None.
        log: Takes what was left out.
        progress: Shows how far it is.

    Raises:
        ConfigError: an unknown task, metric, split or period, or no task with any of the metrics.
        DataError: no data set there, or one whose classes the model does not know.
    """
    chosen = _split(split)
    _check_period(period, chosen)
    if max_users is not None and max_users < 1:
        raise ConfigError(f"--max-users: expected 1 or more, got {max_users}")
    names = tuple(metrics or model.config.evaluate.metrics)
    for name in names:
        try:
            parse_metric(name)
        except ValueError as error:
            raise ConfigError(f"--metrics: {error}") from None
    setting = model.config.evaluate.exclude_seen if exclude_seen is None else exclude_seen
    opened = open_dataset(dataset or model.config.dataset, log=log)
    same = opened.info.fingerprint == model.info.fingerprint and opened.info.items == model.num_items
    same &= model.num_types in (0, opened.info.history.types)
    read_event_columns(model, opened)
    same &= opened.inputs_read.user == model.inputs.user
    data = opened if same else _mapped(opened, model, log)
    _tell_differences(model, opened, chosen, max_users, log)
    if model.reads_moments:
        data.moments = Moments.of_dataset(opened.info, opened.last_event(range(opened.info.shards)))
    encoder, runtime = MappedEncoder(model, data.info), Runtime(0, 1, model.device)
    periods, scores = _periods(model, data, chosen, period, log), []
    for task in _tasks(model, data, tasks, log):
        own = metrics_of(data.info.task(task), names)
        if not own:
            log(f"{task}: none of {', '.join(names)} is for its kind of task; left out")
            continue
        score = score_task(
            encoder, data, task, chosen, metrics=own, runtime=runtime, batch=model.config.evaluate.batch, max_users=max_users,
            seed=model.config.seed, exclude_seen=setting, period=periods[task], progress=progress,
            seen_Y=_seen(model, task, data.info.task(task).labels),
        )  # fmt: skip
        without = excludes_seen(data.info, task, setting)
        scored = score.by_user.user_hash[score.by_user.examples > 0]
        # a user of a split by time is a row in each period of the test
        users = len(np.unique(scored)) if data.info.split.by == "time" else len(scored)
        scores.append(TaskScore(task, score.values, score.examples, score.unseen, without, users, periods[task]))
        if setting and not without and data.info.task(task).ranks_labels:
            log(f"{task}: its labels are not known to be items of the history, so all are ranked")
    if any(score.excludes_seen for score in scores) and (line := taken_but_ranked(opened.info)):
        log(line)
    if not scores:
        raise ConfigError(f"--metrics: no task of {model.run} has any of {', '.join(names)}")
    return scores


def _seen(model: PretrainedModel, task: str, labels: int) -> NDArray[np.bool_] | None:
    """Return which labels of a data set the task's training saw, bool [labels], those behind the model's unseen; None where the run has
    not kept it: then it is told from what the data set's own training rows hold."""
    seen = model.seen_labels.get(task)
    return None if seen is None else np.concatenate([seen, np.zeros(max(0, labels - len(seen)), np.bool_)])[:labels]


def _mapped(dataset: Dataset, model: PretrainedModel, log: Log) -> MappedDataset:
    found = MappedDataset(dataset, model)
    if not are_versions(model.info, dataset.info):
        log(f"{dataset.uri}: is no version of the run's own data set; items and labels are matched by name")
    for line in found.notes():
        log(line)
    return found


def _tell_differences(model: PretrainedModel, dataset: Dataset, split: Split, max_users: int | None, log: Log) -> None:
    """Tell why scores may be others than the run's own, where neither the data nor the arguments say it."""
    if split != Split.TRAIN and _split_rule(dataset.info) != _split_rule(model.info):
        log(f"{dataset.uri}: is split by another rule than the run's own data set; users who are scored may have been trained on")
    if max_users is None and (most := model.config.evaluate.max_users) is not None:
        log(f"the run itself scored at most {most} users a task (evaluate.max_users); all are scored here")


def _split_rule(info: DatasetInfo) -> tuple[object, ...]:
    """Return what decides over who is in which part; of a split by time its dates, too."""
    recipe = info.source.get("recipe")
    dates = recipe.get("split") if isinstance(recipe, dict) and info.split.by == "time" else None
    return info.split, dates


def _split(name: str) -> Split:
    try:
        return Split[name.upper()]
    except KeyError:
        raise ConfigError(f"--split: expected train, validation or test, got '{name}'") from None


def _check_period(period: str | None, split: Split) -> None:
    if period not in (None, "own", "present", "all"):
        raise ConfigError(f"--period: expected own, present or all, got '{period}'")
    if period is not None and split != Split.TEST:
        raise ConfigError(f"--period: the test alone has periods; leave it out for {split.name.lower()}")


def _periods(model: PretrainedModel, data: Dataset, split: Split, period: str | None, log: Log) -> dict[str, int | None]:
    """Return the period of the test on which each of the model's tasks is scored, as after the model's stage of its run; None for all."""
    setting, several = model.config.evaluate, split == Split.TEST and bool(data.info.test_periods)
    if (not several and period != "present") or period == "all":
        if several:
            log(f"the test has {len(data.info.test_periods)} periods; all are scored together (--period all)")
        return dict.fromkeys(model.tasks)
    if period is not None:
        setting = setting.model_copy(update={"period": period})
        check_period(setting, data.info, where="--period")
    which = "that of its own stage" if setting.period == "own" else f"that of stage {model.stage}"
    whose = "--period" if period is not None else "the run's evaluate.period"
    log(f"the test has {len(data.info.test_periods)} periods; each task is scored on {which} ({whose}: {setting.period})")
    return {task: period_of(setting, data.info, task=place, stage=model.stage - 1) for place, task in enumerate(model.tasks)}


def _tasks(model: PretrainedModel, data: Dataset, tasks: Sequence[str] | None, log: Log) -> list[str]:
    there = [task.name for task in data.info.tasks]
    if tasks is not None:
        return [data.info.task(model.task(name).name).name for name in tasks]
    if missing := [name for name in model.tasks if name not in there]:
        log(f"{data.uri}: has no task {', '.join(missing)}; left out")
    return [name for name in model.tasks if name in there]


def score_lines(scores: Sequence[TaskScore]) -> list[str]:
    """Return a table of scores for people."""
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    several = any(score.period is not None for score in scores)
    rows = [["task", *names, "users", "examples", "never seen", "own items", *(["test period"] if several else [])]]
    for score in scores:
        cells = [_cell(score.values, name) for name in names]
        counts = [str(score.users), str(score.examples), str(score.unseen), "left out" if score.excludes_seen else "ranked"]
        rows.append([score.task, *cells, *counts, *([_number(score.period)] if several else [])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]


def _number(period: int | None) -> str:
    return "all" if period is None else str(period + 1)


def _cell(values: dict[str, float | None], name: str) -> str:
    if name not in values:
        return ""
    value = values[name]
    return "–" if value is None else f"{value:.4f}"


def scores_json(model: PretrainedModel, dataset: str | None, split: str, scores: Sequence[TaskScore]) -> dict[str, Any]:
    """Return scores as JSON values."""
    return {
        "run": model.run,
        "fingerprint": model.fingerprint,
        "stage": model.stage,
        "dataset": dataset or model.config.dataset,
        "split": split,
        "tasks": {
            score.task: {
                "scores": score.values,
                "users": score.users,
                "examples": score.examples,
                "unseen_targets": score.unseen,
                "excludes_seen": score.excludes_seen,
                **({} if score.period is None else {"test_period": score.period + 1}),
            }
            for score in scores
        },
    }
