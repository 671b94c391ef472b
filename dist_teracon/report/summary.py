"""A run in one sentence, made from its numbers alone.

What is counted as lost, gained or above something differs by more than a standard error over test users; of transfer the error is paired.
Every figure of transfer is a mean over tasks, or one task's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from dist_teracon.evaluate.metrics import is_metric, parse_metric
from dist_teracon.report.run_data import Column, RunData
from dist_teracon.report.values import percent_error_text, percent_text, relative, score_text, verdict

_NAMED = 3


def headline(run: RunData) -> str:
    """Return one sentence: what the earlier tasks gave to the later ones, what was kept of them, and how many end above every baseline."""
    learned = run.learned_tasks
    if not learned:
        return f"No task has a score yet: {run.method} on {run.dataset_name} has not finished its first stage."
    parts = [part for part in (_forward(run), _backward(run), _against_baselines(run)) if part]
    if run.finished:
        opening = f"{run.method} learned {_tasks(learned)} on {run.dataset_name}"
    else:
        opening = f"Unfinished: {run.method} has learned {learned} of {_tasks(len(run.tasks))} on {run.dataset_name}"
    first = next((i for i, score in enumerate(run.final) if score is not None), None)
    if not parts and first is not None:
        parts = [f"{run.tasks[first]} scores {score_text(run.final[first])} ({run.metrics[first] or 'score'})"]
    if without := [task for task, score in zip(run.tasks[:learned], run.final, strict=False) if score is None]:
        parts.append(f"no score of {', '.join(without[:_NAMED])}{f' and {len(without) - _NAMED} more' if len(without) > _NAMED else ''}")
    return f"{opening}: {'; '.join(parts)}."


def backward_verdicts(run: RunData) -> list[str]:
    """Return for each task whether it ends `better` or `worse` than it was learned, beyond its paired standard error."""
    return [verdict(change, error) for change, error in zip(run.bwt_absolute, run.bwt_error, strict=True)]


def forward_verdicts(run: RunData) -> list[str]:
    """Return for each task whether it was learned `better` or `worse` than alone, beyond its paired standard error."""
    return [verdict(change, error) for change, error in zip(run.fwt_absolute, run.fwt_error, strict=True)]


def against_baselines(run: RunData) -> dict[str, str]:
    """Return for each task with a score and a baseline whether it ends `better` or `worse` than the best baseline.

    Empty for a difference within the score's standard error; where that is not known, the difference alone counts.
    """
    if run.baselines is None:
        return {}
    found = {}
    for i, (task, score) in enumerate(zip(run.tasks, run.final, strict=True)):
        rivals = [rival for _, rival in run.baselines.named(i)]
        if score is not None and rivals:
            found[task] = verdict(score - max(rivals), final_error(run, i) or 0.0)
    return found


def final_error(run: RunData, task: int) -> float | None:
    """Return the standard error of a task's final score: over users, else by the number of examples."""
    known = run.final_error[task]
    return known if known is not None else standard_error(run.metrics[task], run.final[task], run.test_examples[task])


def standard_error(metric: str | None, score: float | None, examples: int | None) -> float | None:
    """Return √(p(1 − p)/n), the standard error of a mean of n zeros and ones, and an upper bound for other numbers in [0, 1].

    Examples are taken as independent, which several targets of one user are not. None for a metric that is no mean over examples.
    """
    if score is None or not examples or examples < 0 or not 0 <= score <= 1:
        return None
    if metric is None or not is_metric(metric) or parse_metric(metric).over != "examples":
        return None
    return math.sqrt(score * (1 - score) / examples)


def _forward(run: RunData) -> str:
    verdicts = forward_verdicts(run)
    opening, judged, known = _mean(run.fwt, run.fwt_error, "FWT")
    if not judged:
        return opening
    above, below = verdicts.count("better"), verdicts.count("worse")
    return f"{opening}, {above} of {_tasks(known, 'later ')} learned better than alone and {below} worse, beyond a standard error"


def _backward(run: RunData) -> str:
    verdicts = backward_verdicts(run)
    opening, judged, known = _mean(run.bwt, run.bwt_error, "BWT")
    if not judged:
        return opening
    lost = sorted((run.bwt[i] or 0.0, i) for i, word in enumerate(verdicts) if word == "worse")
    so_far = "by the end" if run.finished else "so far"
    if not lost:
        return f"{opening}, none of {_tasks(known, 'earlier ')} lost more than a standard error {so_far}"
    texts = [f"{run.tasks[i]} {percent_error_text(run.bwt[i], relative(run.bwt_error[i], run.learned[i]))}" for _, i in lost[:_NAMED]]
    texts += [f"{len(lost) - _NAMED} more"] if len(lost) > _NAMED else []
    return f"{opening}, {len(lost)} of {_tasks(known, 'earlier ')} lost more than a standard error {so_far} ({', '.join(texts)})"


def _mean(values: Column, errors: Column, name: str) -> tuple[str, int, int]:
    """Return the mean as text, how many values have an error, and how many there are."""
    known = [value for value in values if value is not None]
    if not known:
        return "", 0, 0
    judged = sum(value is not None and error is not None for value, error in zip(values, errors, strict=True))
    opening = f"mean {name} {percent_text(fmean(known))}"
    if judged < len(known):
        some = "no task" if not judged else f"only {judged} of {_tasks(len(known))}"
        opening += f" ({some} with a standard error to judge by)"
    return opening, judged, len(known)


def _against_baselines(run: RunData) -> str:
    found = against_baselines(run)
    if not found:
        return ""
    above = sum(word == "better" for word in found.values())
    rest = [(f"within a standard error: {_listed([task for task, word in found.items() if not word])}", "" in found.values())]
    rest += [(f"below: {_listed([task for task, word in found.items() if word == 'worse'])}", "worse" in found.values())]
    exception = "; ".join(text for text, any_there in rest if any_there)
    text = f"{above} of {_tasks(len(found))} {'end' if run.finished else 'stand'} above every baseline"
    return f"{text} ({exception})" if exception else text


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])])


def _tasks(number: int, kind: str = "") -> str:
    return f"{number} {kind}task{'' if number == 1 else 's'}"
