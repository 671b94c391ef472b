"""At what pace a variant learns its tasks: seconds an epoch and replayed rows, from the times and logs of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dist_teracon import io
from dist_teracon.compare.comparison import Comparison
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import read_yaml, validate
from dist_teracon.report.events import read_events


@dataclass(frozen=True)
class Pace:
    """What a stage took, over the seeds that have it: seconds an epoch, and replayed rows of all past tasks as a share of the batch."""

    seconds: float | None
    share: float | None


def paces(comparison: Comparison) -> dict[str, dict[str, Pace]]:
    """Return each variant's pace at each task."""
    found = {}
    for variant in comparison.variants:
        of_runs = [_paces_of(run, comparison.order(variant)) for run in comparison.folders[variant]]
        found[variant] = {
            task: Pace(_mean([pace[task].seconds for pace in of_runs]), _mean([pace[task].share for pace in of_runs]))
            for task in comparison.tasks
        }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _paces_of(run: Path, order: Sequence[str]) -> dict[str, Pace]:
    """Read a run's pace at each of its tasks."""
    timing: dict[str, Any] = io.read_json(str(run / "timing.json")) if (run / "timing.json").is_file() else {"stages": []}
    seconds = {entry["stage"]: entry["training_seconds"] / entry["epochs"] for entry in timing["stages"] if entry.get("epochs")}
    log, batches = read_events(run / "events.jsonl"), batches_of(run, order)
    found = {}
    for stage, task in enumerate(order, start=1):
        steps, batch = log.steps_of(stage), batches.get(task)
        share = fmean(sum(step.rows.values()) / batch for step in steps) if steps and batch else None
        found[task] = Pace(seconds.get(stage), share)
    return found


def batches_of(run: Path, order: Sequence[str]) -> dict[str, int]:
    """Return the batch of each task by the run's configuration."""
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    train = validate(RunConfig, read_yaml(str(path)), where=str(path)).train
    return {task: train.stage(position, task).batch for position, task in enumerate(order)}
