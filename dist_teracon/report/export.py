"""The tables of a report as files for programs, beside its page: CSV, and the same as JSON (docs/report.md).

report.csv         a task a row: its scores, transfer, standard errors, baselines
report.stages.csv  R: a score a row, by every metric after every stage
report.json        both, and what the runs are
"""

from __future__ import annotations

import csv
import io as memory
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_teracon.atomic import atomic_write, write_json
from dist_teracon.errors import RunError
from dist_teracon.report.run_data import RunData
from dist_teracon.report.summary import backward_verdicts, final_error, forward_verdicts, headline

FORMAT_VERSION = 1
# Files of a run's or a data set's folder that no report may replace.
_OWN = (
    "additions.json", "baselines.json", "config.yaml", "dataset.json", "events.jsonl", "item_vectors.json", "results.json", "timing.json",
    "trackers.json",
)  # fmt: skip
_STAGE_FIELDS = ("run", "method", "seed", "stage", "after", "number", "task", "metric", "selects", "score", "error")


def write_tables(runs: Sequence[RunData], page: Path) -> list[Path]:
    """Write the tables of runs beside their page, under its name.

    Args:
        runs: At least one.
        page: The page, as `report.html`.

    Returns:
        The files: tasks and stages as CSV, and both as JSON.

    Raises:
        RunError: one of them, or the page, would replace a file of a run or of a data set.
    """
    page = Path(page)
    tasks = [row for run in runs for row in task_entries(run)]
    stages = [row for run in runs for row in stage_entries(run)]
    described = [_described(run) for run in runs]
    files = [page.with_suffix(ending) for ending in (".csv", ".stages.csv", ".json")]
    for path in (page, *files):
        if path.name in _OWN and any((path.parent / name).exists() for name in ("config.yaml", "vocab")):
            raise RunError(f"--out {page}: would replace {path}, a file of the run or data set itself; name another page, as report.html")
    for path, rows in zip(files, (tasks, stages), strict=False):
        with atomic_write(path) as file:
            file.write(_csv(rows, list(rows[0]) if rows else _STAGE_FIELDS).encode("utf-8", "replace"))
    write_json(files[2], {"format_version": FORMAT_VERSION, "runs": described})
    return files


def task_entries(run: RunData) -> list[dict[str, Any]]:
    """Return a row a task, with what it is called in which run; transfer is in percent, errors are standard errors of the score."""
    forward, backward = forward_verdicts(run), backward_verdicts(run)
    rows = []
    for i, task in enumerate(run.tasks):
        named = dict(run.baselines.named(i)) if run.baselines else {}
        rows.append(
            {
                **_key(run),
                "number": i + 1,
                "task": task,
                "metric": run.metrics[i],
                "learned": run.learned[i],
                "final": run.final[i],
                "final_error": final_error(run, i),
                "learned_alone": run.single_task[i],
                "fwt_percent": run.fwt[i],
                "fwt_absolute": run.fwt_absolute[i],
                "fwt_error": run.fwt_error[i],
                "fwt_verdict": forward[i] or None,
                "bwt_percent": run.bwt[i],
                "bwt_absolute": run.bwt_absolute[i],
                "bwt_error": run.bwt_error[i],
                "bwt_verdict": backward[i] or None,
                "popularity": named.get("popularity"),
                "majority": named.get("majority"),
                "svd_logistic_regression": named.get("SVD + LR"),
                "test_examples": run.test_examples[i],
                "unseen_targets": run.unseen_targets[i],
            }
        )
    return rows


def stage_entries(run: RunData) -> list[dict[str, Any]]:
    """Return a row a score: R by every metric, the one that selects first."""
    rows = []
    for j, (after, selecting) in enumerate(zip(run.stage_names, run.scores, strict=True)):
        for i, task in enumerate(run.tasks):
            place = {**_key(run), "stage": j + 1, "after": after, "number": i + 1, "task": task}
            if selecting[i] is not None:
                errors = run.errors.scores[j][i] if j < len(run.errors.scores) else None
                rows.append({**place, "metric": run.metrics[i], "selects": True, "score": selecting[i], "error": errors})
            for metric, by_stage in run.further_metrics.items():
                if j < len(by_stage) and by_stage[j][i] is not None:
                    rows.append({**place, "metric": metric, "selects": False, "score": by_stage[j][i], "error": None})
    return rows


def _key(run: RunData) -> dict[str, Any]:
    return {"run": run.folder.name or str(run.folder), "method": run.method, "seed": run.seed}


def _described(run: RunData) -> dict[str, Any]:
    keys = _key(run)
    return {
        **keys,
        "dataset": run.dataset_name,
        "dataset_fingerprint": run.dataset.fingerprint if run.dataset else None,
        "finished": run.finished,
        "headline": headline(run).replace("\u00a0", " "),
        "seconds": run.seconds,
        "tasks": [_without(row, keys) for row in task_entries(run)],
        "scores": [_without(row, keys) for row in stage_entries(run)],
    }


def _without(row: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in keys}


def _csv(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Return rows of equal fields as CSV (RFC 4180); nothing is an empty field."""
    text = memory.StringIO()
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows({name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()} for row in rows)
    return text.getvalue()
