"""Plausible finished cells of any comparison, for tests of its tables and its page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_teracon.atomic import write_json
from dist_teracon.compare.plan import Cell
from dist_teracon.config_io import dump_config
from dist_teracon.evaluate.scorer import UserScores
from dist_teracon.hashing import stable_hash
from dist_teracon.train.stage_folder import StageFolder

TASKS = ("next", "item-a", "item-b", "profile-8", "profile-2", "profile-6")
SCORES = {"next": 0.36, "item-a": 0.09, "item-b": 0.12, "profile-8": 0.39, "profile-2": 0.71, "profile-6": 0.42, "noise": 0.02}
USERS = np.arange(120, dtype=np.uint64) * np.uint64(7919)
EPOCHS, BATCH = 6, 256


def make_cells(cells: Sequence[Cell], out: Path) -> None:
    """Write the run of every cell: scores by user, log, times and the data set's description."""
    for cell in cells:
        make_cell(cell, cell.folder(out))


def make_cell(cell: Cell, folder: Path) -> None:
    """Write one run; its scores follow from the variant's name, the seed and the task."""
    tasks = list(cell.config.tasks or TASKS)
    lift = {task: 1 + 0.1 * (stable_hash(f"{cell.variant} {task}") % 100) / 100 for task in tasks}
    metrics = ["accuracy" if task.startswith(("profile", "noise")) else "mrr@5" for task in tasks]
    scores = [
        [SCORES[task] * lift[task] * (1 - 0.01 * (stage - i)) for i, task in enumerate(tasks[: stage + 1])] for stage in range(len(tasks))
    ]
    by_metric = {
        name: [[score if metrics[i] == name else None for i, score in enumerate(row)] for row in scores] for name in dict.fromkeys(metrics)
    }
    write_json(folder / "results.json", {"tasks": tasks, "metrics": metrics, "scores": scores, "scores_by_metric": by_metric})
    noise = {task: np.random.default_rng(stable_hash(f"{cell.seed} {task}")).normal(size=len(USERS)) for task in tasks}
    for stage, name in enumerate(tasks):
        own = StageFolder(folder, stage, name)
        own.save_user_scores([
            (split, task, UserScores(USERS, score * (1 + 0.5 * noise[task] + 0.05 * noise[name]), np.ones(len(USERS), np.int64)))
            for split in ("validation", "test")
            for task, score in zip(tasks, scores[stage], strict=False)
        ])  # fmt: skip
        last = {metric: rows[stage] for metric, rows in by_metric.items()}
        write_json(own.path / "state.json", {"scores_by_metric": last, "validation_scores_by_metric": last})
    (folder / "config.yaml").write_text(dump_config(cell.config))
    (folder / "dataset.json").write_text(json.dumps(_dataset(tasks)))
    pace = 1 + stable_hash(cell.variant) % 50 / 25
    stages = [
        {"stage": k, "task": task, "seconds": 9.0, "training_seconds": pace * k * EPOCHS, "epochs": EPOCHS}
        for k, task in enumerate(tasks, 1)
    ]
    write_json(folder / "timing.json", {"stages": stages})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in _events(tasks, metrics, scores, pace)))


def _dataset(tasks: Sequence[str]) -> dict[str, Any]:
    counts = {"labels": 9, "users": 9, "examples": [7, 1, 1]}
    return {
        "name": "six-tasks-v1", "users": 4000, "items": 5002, "events": 76000, "length_limit": 30, "shards": 8,
        "split": {"by": "rows", "seed": 0, "train": 0.8, "validation": 0.05, "test": 0.15, "folds": 1, "fold": 0},
        "tasks": [{"name": task, "kind": "next" if task == "next" else "item", **counts} for task in tasks],
        "files": {}, "source": {"format": "synthetic", "name": "six-tasks-v1"}, "notes": {}, "parent": None, "format_version": 1,
    }  # fmt: skip


def _events(tasks: Sequence[str], metrics: Sequence[str], scores: Sequence[Sequence[float]], pace: float) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = [{"event": "run", "tasks": list(tasks)}]
    for stage, task in enumerate(tasks, start=1):
        log.append({"event": "stage", "stage": stage, "task": task})
        for epoch in range(EPOCHS + 1):
            place = {"stage": stage, "task": task, "phase": "train", "epoch": epoch}
            if epoch:
                rows, timing = dict.fromkeys(tasks[: stage - 1], 64), {"seconds": {"step": 0.01 * stage * pace}}
                log.append({"event": "step", **place, "step": epoch, "rho": {}, "rows": rows, "timing": timing})
            score = scores[stage - 1][stage - 1] * (1 - math.exp(-(epoch + 0.3) / pace))
            log.append({"event": "epoch", **place, "loss": {}, "validation": score, "metric": metrics[stage - 1], "best": True})
        similarity = [[1.0 if i == j else 0.6 + 0.35 * abs(math.sin(i + j + pace)) for i in range(stage)] for j in range(stage)]
        log.append({"event": "masks", "stage": stage, "tasks": list(tasks[:stage]), "similarity": similarity, "histograms": {}})
    return [{"time": 0.0, **event} for event in log]
