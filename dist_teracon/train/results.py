"""`results.json`: the matrix R and what follows from it; nothing in it depends on time or machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_teracon.atomic import write_json
from dist_teracon.config.run import RunConfig
from dist_teracon.continual.registry import method_class
from dist_teracon.data.schema import Task
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.scorer import Score
from dist_teracon.evaluate.transfer import Transfer, backward_transfer, forward_transfer
from dist_teracon.train.stage_folder import StageFolder


def write_results(folder: Path, config: RunConfig, tasks: Sequence[Task]) -> None:
    """Write the results of the stages finished so far."""
    states = _finished(folder, tasks)
    if not states:
        return
    scores = [state["scores"] for state in states]
    single = _single_task(folder, config, tasks, scores)
    forward = forward_transfer(scores, single) if single is not None else None
    backward = backward_transfer(scores)
    if not method_class(config.method["name"]).stages_stand_alone:
        # tasks that are learned together come neither before nor after one another
        forward, nothing = None, [None] * len(scores)
        backward = Transfer(percent=[*nothing], absolute=[*nothing])
    by_task = [metrics_of(task, config.evaluate.metrics) for task in tasks]
    names = [name for name in config.evaluate.metrics if any(metric.name == name for metrics in by_task for metric in metrics)]
    results = {
        "format_version": 1,
        "method": config.method["name"],
        "seed": config.seed,
        "tasks": [task.name for task in tasks],
        "metrics": [metrics[0].name for metrics in by_task],
        "scores": scores,
        "scores_by_metric": {name: [state["scores_by_metric"][name] for state in states] for name in names},
        "single_task": single,
        "fwt": forward.percent if forward else None,
        "bwt": backward.percent,
        "fwt_absolute": forward.absolute if forward else None,
        "bwt_absolute": backward.absolute,
        "data_versions": [state.get("dataset") for state in states],
        "test_examples": states[-1]["test_examples"],
        "unseen_targets": states[-1]["unseen_targets"],
    }
    write_json(folder / "results.json", results)


def by_metric(config: RunConfig, scores: Sequence[Score]) -> dict[str, list[float | None]]:
    """Return the tasks' scores by each metric of the configuration, None for a task that does not have it."""
    return {name: [score.values.get(name) for score in scores] for name in config.evaluate.metrics}


def _finished(folder: Path, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    states = []
    for position, task in enumerate(tasks):
        stage = StageFolder(folder, position, task.name)
        if not stage.finished:
            break
        states.append(stage.state())
    return states


def _single_task(
    folder: Path, config: RunConfig, tasks: Sequence[Task], scores: Sequence[Sequence[float | None]]
) -> list[float | None] | None:
    """Each task's score when learned alone: the diagonal of the SinMo run beside this one, once it has as many stages."""
    if config.method["name"] == "sinmo":
        return [row[-1] for row in scores]
    states = _finished(folder / "single-task", tasks)
    return [state["scores"][-1] for state in states] if len(states) == len(tasks) else None
