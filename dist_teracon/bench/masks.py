"""What finished runs' masks look like: how open, how alike from task to task, and the sampling rates that followed from them.

Legend: T tasks, K masked layers, C channels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_teracon.bench.measure import markdown_table
from dist_teracon.errors import RunError
from dist_teracon.train.restore import restore_method
from dist_teracon.train.run_folder import RunFolder

# Pairs of six-tasks-v1 that read the same part of a user's vector (docs/method.md, Synthetic data).
RELATED = ("item-a:item-b", "profile-8:profile-6")


@dataclass(frozen=True)
class MaskFacts:
    """One run's masks at inference.

    Attributes:
        tasks: Names, in the order in which they were learned.
        mean: Mean of each task's mask.
        closed, open: Share of each task's mask below .1, and above .9.
        similarity: Cosine between two tasks' masks, averaged over layers, float64 [T, T].
        rates: ρ of each later task against each earlier one at the end of its stage, by the later task.
        final, backward: R(M, i) and BWT_i in percent on the test split, None where there is none.
        validation: R(M, i) on the validation split, by which settings are chosen.
    """

    tasks: tuple[str, ...]
    mean: list[float]
    closed: list[float]
    open: list[float]
    similarity: Tensor
    rates: dict[str, dict[str, float]]
    final: list[float | None]
    backward: list[float | None]
    validation: list[float | None]


def mask_facts(run: Path) -> MaskFacts:
    """Read a finished run's masks.

    Raises:
        RunError: there is no such run, or its method has no masks.
    """
    method = restore_method(run)
    masks_TKC = method.masks()
    if masks_TKC is None:
        raise RunError(f"{run}: method {method.name} has no masks; name a run of one that has, as teracon")
    masks_TKC = masks_TKC.detach().double()
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    flat = masks_TKC.flatten(1)
    return MaskFacts(
        tasks=tuple(method.learned),
        mean=flat.mean(1).tolist(),
        closed=(flat < 0.1).double().mean(1).tolist(),
        open=(flat > 0.9).double().mean(1).tolist(),
        similarity=torch.nn.functional.cosine_similarity(masks_TKC[:, None], masks_TKC[None], dim=-1, eps=1e-12).mean(-1),
        rates=_last_rates(run / "events.jsonl"),
        final=results["scores"][-1],
        backward=results["bwt"] or [None] * len(method.learned),
        validation=_last_validation_scores(run, method.learned),
    )


def _last_validation_scores(run: Path, learned: Sequence[str]) -> list[float | None]:
    last = RunFolder(run).stage(len(learned) - 1, learned[-1]).state()
    scores: list[float | None] = last["validation_scores"]
    return scores


def _last_rates(events: Path) -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, float]] = {}
    with events.open(encoding="utf-8") as lines:
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "step" and event.get("rho"):
                rates[event["task"]] = event["rho"]
    return rates


def alike(facts: MaskFacts, related: Sequence[tuple[str, str]]) -> tuple[float | None, float | None]:
    """Return the mean similarity of related pairs of later tasks, and of all other pairs of later tasks."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    known = {frozenset(pair) for pair in related}
    for (a, one), (b, other) in combinations(enumerate(facts.tasks[1:], start=1), 2):
        groups[frozenset((one, other)) in known].append(float(facts.similarity[a, b]))
    means = [sum(group) / len(group) if group else None for group in (groups[True], groups[False])]
    return means[0], means[1]


def one_run(facts: MaskFacts) -> str:
    """Return the tables of one run: a row a task, and the similarities."""
    rows = [
        [
            task,
            f"{facts.mean[i]:.3f}",
            f"{facts.closed[i]:.1%}",
            f"{facts.open[i]:.1%}",
            ", ".join(f"{past} {rate:.4f}" for past, rate in facts.rates.get(task, {}).items()) or "–",
            _score(facts.final[i]),
            "–" if facts.backward[i] is None else f"{facts.backward[i]:+.1f}",
        ]
        for i, task in enumerate(facts.tasks)
    ]
    first = markdown_table(["task", "mean", "below .1", "above .9", "ρ at the stage's end", "R(M, i)", "BWT, %"], rows)
    cosines = [[task, *(f"{float(value):.3f}" for value in facts.similarity[i])] for i, task in enumerate(facts.tasks)]
    return f"{first}\n\n{markdown_table(['cosine', *facts.tasks], cosines)}"


def summary(runs: Sequence[tuple[str, MaskFacts]], related: Sequence[tuple[str, str]], *, validation: bool = False) -> str:
    """Return a row a run: openness, ρ, likeness of related and of other tasks, final scores of one split, and BWT on the test split."""
    rows = []
    for name, facts in runs:
        rates = [rate for of_task in facts.rates.values() for rate in of_task.values()]
        near, far = alike(facts, related)
        rows.append(
            [
                name,
                f"{sum(facts.mean) / len(facts.mean):.3f}",
                f"{min(rates):.4f} … {max(rates):.4f}" if rates else "–",
                _score(near),
                _score(far),
                *(_score(value) for value in (facts.validation if validation else facts.final)),
                " ".join("–" if value is None else f"{value:+.1f}" for value in facts.backward[:-1]),
            ]
        )
    tasks = runs[0][1].tasks
    return markdown_table(["run", "mean mask", "ρ", "related alike", "others alike", *tasks, "BWT, %"], rows)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench masks", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs with the same tasks")
    parser.add_argument("--related", nargs="*", default=RELATED, metavar="TASK:TASK", help="pairs that should be alike (%(default)s)")
    parser.add_argument("--validation", action="store_true", help="with several runs: final scores of the validation split, to choose by")
    options = parser.parse_args(arguments)
    related = [(one, other) for one, _, other in (pair.partition(":") for pair in options.related)]
    facts = [(str(run), mask_facts(run)) for run in options.runs]
    if len(facts) == 1:
        print(one_run(facts[0][1]))
    else:
        print(summary(facts, related, validation=options.validation))
