"""All tasks so far, scored after a stage: the rows of the matrix R, every user's scores, and what the masks look like."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_teracon.continual.method import Method
from dist_teracon.data.schema import Split, Task
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.periods import period_of
from dist_teracon.evaluate.scorer import Score, score_task
from dist_teracon.train.run_folder import EventLog
from dist_teracon.train.run_setup import Run
from dist_teracon.train.stage_folder import StageFolder


@dataclass(frozen=True)
class StageScores:
    """Scores of all tasks so far, in their order, and the seconds that they took."""

    test: list[Score]
    validation: list[Score]
    seconds: float


def score_stage(run: Run, method: Method, number: int, folder: StageFolder, events: EventLog, *, label: str) -> StageScores:
    """Score all tasks up to stage `number` (from 0), and write and log what came out."""
    began = time.monotonic()
    # all tasks' weights: the engine moves what trains, and those of a resumed run's earlier tasks may still be on the CPU
    method.model().to(run.runtime.device)
    learned = run.tasks[: number + 1]
    periods = [period_of(run.config.evaluate, run.dataset.info, task=place, stage=number) for place in range(len(learned))]
    # a task of before was trained on the version of the data set that its stage had
    seen = [run.stage_folder(place).seen_labels(task.labels) if place < number else None for place, task in enumerate(learned)]
    of_tasks = list(zip(learned, seen, strict=True))
    test = [_score(run, method, *task, Split.TEST, period) for task, period in zip(of_tasks, periods, strict=True)]
    validation = [_score(run, method, *task, Split.VALIDATION) for task in of_tasks]
    _write_user_scores(run, folder, {"test": test, "validation": validation})
    scores = StageScores(test, validation, time.monotonic() - began)
    _log_scores(run, method, scores, events, label)
    return scores


def _score(
    run: Run, method: Method, task: Task, seen_Y: NDArray[np.bool_] | None, split: Split, period: int | None = None
) -> Score:  # fmt: skip
    evaluate = run.config.evaluate
    return score_task(
        method, run.dataset, task.name, split, metrics=metrics_of(task, evaluate.metrics), runtime=run.runtime, batch=evaluate.batch,
        max_users=evaluate.max_users, seed=run.config.seed, exclude_seen=evaluate.exclude_seen, period=period,
        progress=run.console, seen_Y=seen_Y,
    )  # fmt: skip


def _write_user_scores(run: Run, folder: StageFolder, scores: dict[str, list[Score]]) -> None:
    """Write every user's scores after a stage, from which comparisons draw their intervals."""
    parts = [(split, task.name, score.by_user) for split, row in scores.items() for task, score in zip(run.tasks, row, strict=False)]
    gathered = run.runtime.gather(parts)
    if run.runtime.is_main:
        folder.save_user_scores([part for of_rank in gathered for part in of_rank])


def _log_scores(run: Run, method: Method, scores: StageScores, events: EventLog, label: str) -> None:
    values = {task.name: score.value for task, score in zip(run.tasks, scores.test, strict=False)}
    by_metric = {task.name: score.values for task, score in zip(run.tasks, scores.test, strict=False)}
    events.write("scores", scores=values, scores_by_metric=by_metric, seconds=scores.seconds)
    with torch.no_grad():
        masks = method.masks()
    if masks is not None:
        flat = masks.flatten(1)
        similarity = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
        counts = [torch.histc(mask.float().cpu(), bins=20, min=0, max=1).int().tolist() for mask in flat]
        histograms = dict(zip(method.learned, counts, strict=True))
        events.write("masks", tasks=list(method.learned), similarity=similarity.tolist(), histograms=histograms)
    shown = ", ".join(f"{task} {'–' if value is None else f'{value:.4f}'}" for task, value in values.items())
    run.console.log(f"{label} · test: {shown}")
