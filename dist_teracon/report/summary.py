"""A run in one sentence, made from its numbers alone."""

from __future__ import annotations

import math
from statistics import median

from dist_teracon.evaluate.metrics import is_metric, parse_metric
from dist_teracon.report.run_data import RunData
from dist_teracon.report.values import percent_text, score_text


def headline(run: RunData) -> str:
    """Return one sentence: how many tasks gained from the earlier ones, were kept, and end above every baseline."""
    learned = sum(score is not None for score in run.final)
    if not learned:
        return f"No task has a score yet: {run.method} on {run.dataset_name} has not finished its first stage."
    parts = [part for part in (_forward(run), _backward(run), _against_baselines(run)) if part]
    if run.finished:
        opening = f"{run.method} learned {_tasks(learned)} on {run.dataset_name}"
    else:
        opening = f"Unfinished: {run.method} has learned {learned} of {_tasks(len(run.tasks))} on {run.dataset_name}"
    if not parts:
        best = next(i for i, score in enumerate(run.final) if score is not None)
        parts = [f"{run.tasks[best]} scores {score_text(run.final[best])} ({run.metrics[best] or 'score'})"]
    return f"{opening}: {_join(parts)}."


def above_baselines(run: RunData) -> dict[str, bool]:
    """Return for each task with a score and a baseline whether its final score is above all of its baselines."""
    if run.baselines is None:
        return {}
    above = {}
    for i, (task, score) in enumerate(zip(run.tasks, run.final, strict=True)):
        rivals = [rival for _, rival in run.baselines.named(i)]
        if score is not None and rivals:
            above[task] = score > max(rivals)
    return above


def standard_error(metric: str | None, score: float | None, examples: int | None) -> float | None:
    """Return √(p(1 − p)/n), the standard error of a mean of n zeros and ones, and an upper bound for other numbers in [0, 1].

    Examples are taken as independent, which several targets of one user are not. None for a metric that is no mean over examples.
    """
    if score is None or not examples or not 0 <= score <= 1:
        return None
    if metric is None or not is_metric(metric) or parse_metric(metric).over != "examples":
        return None
    return math.sqrt(score * (1 - score) / examples)


def _forward(run: RunData) -> str:
    known = [value for value in run.fwt if value is not None]
    if not known:
        return ""
    gained = sum(value > 0 for value in known)
    return f"{gained} of {_tasks(len(known), 'later ')} scored above the same task learned alone (median FWT {percent_text(median(known))})"


def _backward(run: RunData) -> str:
    known = [(value, task) for task, value in zip(run.tasks, run.bwt, strict=True) if value is not None]
    if not known:
        return ""
    lost = [pair for pair in known if pair[0] < 0]
    so_far = "by the end" if run.finished else "so far"
    if not lost:
        return f"none of {_tasks(len(known), 'earlier ')} lost score {so_far} (median BWT {percent_text(median(v for v, _ in known))})"
    worst, task = min(lost)
    return f"{len(lost)} of {_tasks(len(known), 'earlier ')} lost score {so_far} (most: {task}, BWT {percent_text(worst)})"


def _against_baselines(run: RunData) -> str:
    above = above_baselines(run)
    if not above:
        return ""
    missed = [task for task, better in above.items() if not better]
    exception = f" (not {', '.join(missed)})" if missed and len(missed) < len(above) else ""
    return f"{len(above) - len(missed)} of {_tasks(len(above))} {'end' if run.finished else 'stand'} above every baseline{exception}"


def _tasks(number: int, kind: str = "") -> str:
    return f"{number} {kind}task{'' if number == 1 else 's'}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]
