"""Plausible run folders for tests of reports, and readers of what is made of them."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from dist_teracon.report.run_data import RunData
from dist_teracon.report.table import print_scores

TASKS = (
    ("next", "next", 1682),
    ("star4", "item", 1412),
    ("star5", "item", 1170),
    ("age", "profile", 7),
    ("gender", "profile", 2),
    ("occupation", "profile", 21),
)
ALONE = (0.0446, 0.0304, 0.0568, 0.4475, 0.7301, 0.2076)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def make_run(
    folder: Path, *, stages: int | None = None, seed: int = 0, names: tuple[str, ...] | None = None, extras: bool = True,
    method: str = "teracon", users: bool = True,
) -> Path:  # fmt: skip
    """Write a plausible run folder of as many tasks as there are names, six by default.

    Args:
        folder: Where; it does not exist yet.
        stages: Finished ones; all by default.
        seed: Of the made-up numbers.
        names: Of the tasks, whose kinds are those of `TASKS`, over and over but for the first.
        extras: Add baselines, single-task scores, the data set, timing and the log.
        method: Its name.
        users: Add scores by user, from which standard errors come.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    tasks = names or tuple(name for name, _, _ in TASKS)
    stages, last = len(tasks) if stages is None else stages, len(tasks) - 1
    metrics = [_metrics(i)[0] for i in range(len(tasks))]
    alone = [alone_of(i) for i in range(len(tasks))]
    learned = [score * (1 + rng.uniform(-0.04, 0.3)) for score in alone]
    scores = [[learned[i] * (1 + (j - i) * rng.uniform(-0.02, 0.012)) for i in range(j + 1)] for j in range(stages)]
    final = scores[-1]
    places = range(len(tasks))
    results: dict[str, Any] = {
        "format_version": 1,
        "method": method,
        "seed": seed,
        "tasks": list(tasks),
        "metrics": metrics,
        "scores": scores,
        "scores_by_metric": _by_metric(scores),
        "single_task": alone if extras else None,
        "fwt": [100 * (learned[i] / alone[i] - 1) if 0 < i < stages else None for i in places] if extras else None,
        "fwt_absolute": [learned[i] - alone[i] if 0 < i < stages else None for i in places] if extras else None,
        "bwt": [100 * (final[i] / learned[i] - 1) if i < stages - 1 else None for i in places],
        "bwt_absolute": [final[i] - learned[i] if i < stages - 1 else None for i in places],
        "test_examples": [(141, 612, 548, 141, 141, 141)[_kind(i)] for i in places],
        "unseen_targets": [(3, 17, 12, 0, 0, 0)[_kind(i)] for i in places],
    }
    assert last + 1 >= stages
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(_CONFIG.format(seed=seed, method=method))
    if users:
        write_user_scores(folder, tasks, scores, spread=0.3)
    if users and extras:
        write_user_scores(folder / "single-task", tasks, [[None] * j + [alone[j]] for j in range(stages)], spread=0.3)
    if extras:
        (folder / "dataset.json").write_text(json.dumps(_dataset(tasks)))
        (folder / "baselines.json").write_text(json.dumps(_baselines(tasks)))
        (folder / "timing.json").write_text(json.dumps(_timing(tasks, stages, rng)))
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in _events(tasks, stages, rng)))
    return folder


# of a step: what the log has of its time and memory
TIMING = {
    "users_per_s": 1234.0, "memory_bytes": 3 << 30,
    "seconds": {"step": 0.02, "data": 0.001, "forward": 0.006, "backward": 0.01, "wait": 0.002, "optimiser": 0.001},
}  # fmt: skip


def _kind(task: int) -> int:
    """Return the place in `TASKS` of the kind that a task has."""
    return task if task < len(TASKS) else 1 + (task - 1) % (len(TASKS) - 1)


def _metrics(task: int) -> list[str]:
    return ["accuracy", "log-loss"] if TASKS[_kind(task)][1] == "profile" else ["mrr@5", "ndcg@10"]


def alone_of(task: int) -> float:
    """Return the score of a task learned alone."""
    return ALONE[_kind(task)]


def write_user_scores(
    folder: Path, tasks: Sequence[str], scores: Sequence[Sequence[float | None]], *, spread: float, users: int = 200
) -> None:
    """Write `scores.parquet` of each stage whose means are the scores given.

    A user's score is the mean plus a number of its own, the same in all stages, and one of the stage's, `spread` as large as the mean.
    """
    generator = np.random.default_rng(7)
    own = {task: _centred(generator, users) for task in tasks}
    for j, row in enumerate(scores):
        parts = []
        for task, mean in zip(tasks, row, strict=False):
            if mean is not None:
                values = mean * (1 + own[task] + spread * _centred(generator, users))
                parts.append(pa.table({
                    "split": ["test"] * users, "task": [task] * users, "user_hash": np.arange(users, dtype=np.uint64) * np.uint64(9973),
                    "score": values, "examples": np.ones(users, dtype=np.int32),
                }))  # fmt: skip
        stage = folder / "stages" / f"{j + 1:02d}-{j + 1}"
        stage.mkdir(parents=True)
        pq.write_table(pa.concat_tables(parts), stage / "scores.parquet")


def _centred(generator: np.random.Generator, users: int) -> NDArray[np.float64]:
    numbers = generator.normal(size=users)
    return (numbers - numbers.mean()) / numbers.std()


def _by_metric(scores: list[list[float]]) -> dict[str, list[list[float | None]]]:
    """Made-up scores by every metric: the first's own, the further ones twice as much."""
    names = dict.fromkeys(name for task in range(len(scores[-1])) for name in _metrics(task))
    return {
        name: [[score * (1 + _metrics(i).index(name)) if name in _metrics(i) else None for i, score in enumerate(row)] for row in scores]
        for name in names
    }


_CONFIG = """
dataset: data/ml-100k
seed: {seed}
method: {{name: {method}, alpha: 0.7, retention: {{scale: full, pool: auto, minimum: 64}}, relation_init: extend}}
model: {{backbone: nextitnet, channels: 64, dilations: [1, 4, 1, 4]}}
train: {{epochs: 30, patience: 5, batch: 256, first: {{batch: 32}}, second: {{batch: 256}}, later: {{batch: 256}}, clip: null}}
evaluate: {{max_users: 5000, with_single_task: true}}
"""
BASELINES: dict[str, list[Any]] = {
    "popularity": [0.0215, 0.0219, 0.0477, None, None, None],
    "majority": [None, None, None, 0.3404, 0.7092, 0.1986],
    "svd_logistic_regression": [None, None, None]
    + [
        {"score": score, "dimensions": dimensions, "validation_score": score + 0.0123}
        for score, dimensions in ((0.4255, 64), (0.7731, 32), (0.2198, 16))
    ],
}


def _baselines(tasks: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [values[_kind(i)] for i in range(len(tasks))] for name, values in BASELINES.items()}


def _dataset(tasks: tuple[str, ...]) -> dict[str, Any]:
    kinds = [(name, TASKS[_kind(i)]) for i, name in enumerate(tasks)]
    return {
        "name": "ml-100k",
        "users": 943,
        "items": 1684,
        "events": 26571,
        "length_limit": 30,
        "shards": 8,
        "split": {"by": "users", "seed": 7, "train": 0.8, "validation": 0.05, "test": 0.15, "folds": 1, "fold": 0},
        "tasks": [
            {"name": name, "kind": kind, "labels": labels, "users": 930 - i, "examples": [754 - i, 47, 141]}
            for i, (name, (_, kind, labels)) in enumerate(kinds)
        ],
        "files": {"users/shard-00000.parquet": {"rows": 943, "bytes": 123456, "sha256": "ab" * 32}},
        "source": {"format": "recbole", "recipe": "ml-100k"},
        "notes": {"rejected_rows": {"bad number": 2}, "users_without_history": 11, "equal_sequences": 0},
        "parent": None,
        "format_version": 1,
    }


def _timing(tasks: tuple[str, ...], stages: int, rng: random.Random) -> dict[str, Any]:
    entries = []
    for stage in range(1, stages + 1):
        training, labels, evaluation = 20 + 30 * rng.random(), 1.5 * (stage - 1), 2.0 + stage
        parts = {"training_seconds": training, "pseudo_label_seconds": labels, "evaluation_seconds": evaluation}
        entries.append({"stage": stage, "task": tasks[stage - 1], "seconds": training + labels + evaluation + 1.1, **parts, "epochs": 9})
    versions = {"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19.8"}
    return {"stages": entries, "machine": {"cpu": "x86_64 8-core", "cores": 2, "world_size": 1, "versions": versions}}


def _events(tasks: tuple[str, ...], stages: int, rng: random.Random) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = [
        {
            "event": "run",
            "method": "teracon",
            "seed": 0,
            "tasks": list(tasks),
            "metrics": [_metrics(i) for i in range(len(tasks))],
            "world_size": 1,
        }
    ]
    for stage in range(1, stages + 1):
        task, past = tasks[stage - 1], tasks[: stage - 1]
        log.append({"event": "stage", "stage": stage, "task": task})
        log += [{"event": "pseudo_labels", "stage": stage, "task": task, "past": name, "rows": 1640, "seconds": 0.4} for name in past]
        epochs = 6 + rng.randrange(8)
        for epoch in range(epochs + 1):
            rates = {name: 0.012 + 0.01 * k + 0.03 * math.exp(-epoch / 4) + 0.001 * rng.random() for k, name in enumerate(past)}
            loss = {f"class/{task}": 2.1 * math.exp(-epoch / 5) + 0.9} if epoch else {}
            loss |= {f"retention/{name}": 0.004 * (k + 1) * (1 - math.exp(-epoch / 3)) for k, name in enumerate(past)} if epoch else {}
            score = alone_of(stage - 1) * (0.35 + 0.7 * (1 - math.exp(-epoch / 3))) * (1 + 0.03 * rng.random())
            place = {"stage": stage, "task": task, "phase": "train", "epoch": epoch}
            rows = dict.fromkeys(past, 64)
            if epoch:
                for step in range(10):
                    number = 10 * (epoch - 1) + step
                    step_event = {"event": "step", **place, "step": number, "loss": loss, "scale": 3.1, "rho": rates, "rows": rows}
                    rate = 1e-3 if stage > 1 else 1e-3 * (1 - number / (10 * epochs))
                    log.append({**step_event, "gradient_norm": 2.0 / (1 + number), "learning_rate": rate, "timing": TIMING})
            kept = {"metric": _metrics(stage - 1)[0], "best": epoch >= epochs - 2}
            log.append({"event": "epoch", **place, "loss": loss, "validation": score, "validation_error": 0.1 * score, **kept})
        known = tasks[:stage]
        similarity = [[1.0 if i == j else 0.62 + 0.3 * abs(math.sin(3 * (i + j) + i * j)) for i in range(stage)] for j in range(stage)]
        histograms = {
            name: [400 * math.exp(-b / 2) + 900 * math.exp(-(19 - b) / (2 + k)) for b in range(20)] for k, name in enumerate(known)
        }
        log.append({"event": "masks", "stage": stage, "tasks": list(known), "similarity": similarity, "histograms": histograms})
        log.append({"event": "scores", "stage": stage, "task": task, "scores": {}, "seconds": 2.0})
    return [{**event, "time": 1_790_000_000 + k} for k, event in enumerate(log)]


class Balanced(HTMLParser):
    """Checks that every element is closed in its turn, and collects ids, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text.append(data)


def parse(page: str) -> Balanced:
    """Parse a page, every element of which is closed."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def printed(run: RunData, *, terminal: bool = False, width: int = 160) -> str:
    """Return a run's table as it is printed."""
    buffer = io.StringIO()
    print_scores(run, Console(file=buffer, force_terminal=terminal, width=width, color_system="truecolor" if terminal else None))
    return re.sub(r"\x1b\[[0-9;]*m", "", buffer.getvalue())
