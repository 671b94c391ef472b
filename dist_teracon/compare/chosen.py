"""Which variant of each method its validation scores choose, as among learning rates, and what the chosen ones score on test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_teracon.compare.axes import ORDER
from dist_teracon.compare.comparison import Comparison, Statistic
from dist_teracon.compare.differences import best_other_table, is_reference
from dist_teracon.compare.statistics import Estimate, change_in_percent
from dist_teracon.compare.table import NONE, Table, made, percent_cell, signed
from dist_teracon.compare.tables import score_table, transfer_table


@dataclass(frozen=True)
class Choice:
    """The finished variants of one method, by validation.

    Attributes:
        planned: How many the plan has.
        reference: The variant that the others are held against: the baseline among them, else the first.
        tasks: Places of the tasks of which the reference scores something in every seed; only these count.
        changes: Variant to its change from the reference in percent, mean over tasks, above zero is better; best first, NaN last.
        lead: The best one's change less that of the next, paired; None of a single variant.
    """

    planned: int
    reference: str
    tasks: tuple[int, ...]
    changes: dict[str, float]
    lead: Estimate | None

    @property
    def chosen(self) -> str | None:
        """The variant with the best change; None where none has a score."""
        best, change = next(iter(self.changes.items()))
        return None if math.isnan(change) else best


def choices(validation: Comparison) -> dict[str, Choice]:
    """Return the choice of each method; empty where no method has several variants.

    Variants of one method, backbone and task order are those that are chosen among, whatever they differ in.

    Args:
        validation: The comparison on the validation split.
    """
    groups = _groups(validation)
    finished = {name: [variant for variant in group if variant in validation.variants] for name, group in groups.items()}
    if max(map(len, finished.values()), default=0) < 2:
        return {}
    return {name: _choice(validation, variants, len(groups[name])) for name, variants in finished.items() if variants}


def _groups(comparison: Comparison) -> dict[str, list[str]]:
    """Return the plan's variants by method, and by backbone and order where there are several."""
    keys = {variant: _key(comparison, variant) for variant in comparison.plan.variants}
    naming = [place for place in range(3) if place == 0 or len({key[place] for key in keys.values()}) > 1]
    groups: dict[str, list[str]] = {}
    for variant, key in keys.items():
        groups.setdefault("+".join(key[place] for place in naming if key[place]), []).append(variant)
    return groups


def _key(comparison: Comparison, variant: str) -> tuple[str, str, str]:
    """Return a variant's method, backbone and order of tasks."""
    config, points = comparison.configs[variant], comparison.plan.points
    order = points[variant].labels.get(ORDER) if variant in points else None
    tasks = order or ("" if config.tasks is None else ", ".join(config.tasks))
    return str(config.method["name"]), str(config.model.backbone["name"]), tasks


def _choice(comparison: Comparison, variants: list[str], planned: int) -> Choice:
    reference = next((variant for variant in variants if comparison.plan.baseline_of(variant) == variant), variants[0])
    seeds, every = range(len(comparison.bootstrap.runs)), range(len(comparison.tasks))
    tasks = tuple(task for task in every if all(comparison.final(reference, task)(seed)[0] > 0 for seed in seeds))
    statistics = {variant: _mean_change(comparison, variant, reference, tasks) for variant in variants}
    changes = {variant: comparison.summary(statistic).value for variant, statistic in statistics.items()}
    # a variant without a score is the last; of equal ones the plan's first is the best
    best = sorted(variants, key=lambda variant: -math.inf if math.isnan(changes[variant]) else changes[variant], reverse=True)
    lead = comparison.difference(statistics[best[0]], statistics[best[1]]) if len(best) > 1 else None
    return Choice(planned, reference, tasks, {variant: changes[variant] for variant in best}, lead)


def _mean_change(comparison: Comparison, variant: str, reference: str, tasks: tuple[int, ...]) -> Statistic:
    pairs = [(comparison.sign(task), comparison.final(variant, task), comparison.final(reference, task)) for task in tasks]

    def mean(seed: int) -> np.ndarray:
        changes = [sign * change_in_percent(own(seed), before(seed)) for sign, own, before in pairs]
        return np.mean(changes, axis=0) if changes else np.full(comparison.bootstrap.draws + 1, np.nan)

    return mean


def chosen_tables(validation: Comparison, test: Comparison) -> list[Table]:
    """Return what validation chooses of each method, and the chosen ones' test scores; empty where there is nothing to choose."""
    found = choices(validation)
    if not found:
        return []
    return [_choice_table(validation, found), *_scores_of_chosen(test, found)]


def _choice_table(comparison: Comparison, found: dict[str, Choice]) -> Table:
    rows = [
        [
            name,
            f"{len(choice.changes)} of {choice.planned}",
            choice.chosen or NONE,
            NONE if choice.lead is None else percent_cell(choice.lead),
            ", ".join(f"{variant} {_change(change)}" for variant, change in choice.changes.items()),
        ]
        for name, choice in found.items()
    ]
    without = {
        name: [task for place, task in enumerate(comparison.tasks) if place not in choice.tasks] for name, choice in found.items()
    }  # fmt: skip
    left_out = "".join(
        f" {name} without {', '.join(tasks)}, where its reference scores nothing." for name, tasks in without.items() if tasks
    )
    title = (
        "The variant of each method with the best final validation scores: the change from the method's reference in percent, mean over "
        "tasks. The reference is the baseline where it is one of them, else the first; it has +0.0. The lead over the next is paired; one "
        f"whose interval holds zero is a choice by chance.{left_out}"
    )
    columns = ["method", "variants tried", "chosen", "lead over the next, %", "all, best first, %"]
    return made(title, columns, rows, heading="Chosen on validation")


def _change(value: float) -> str:
    return NONE if math.isnan(value) else signed(value, 1)


def _scores_of_chosen(test: Comparison, found: dict[str, Choice]) -> list[Table]:
    chosen = [name for choice in found.values() if (name := choice.chosen) is not None and name in test.variants]
    if not chosen:
        return []
    title = "Final test scores of the variants chosen on validation; no test score had a part in the choice:"
    best = best_other_table(test, {name: _rivals(test, name, chosen) for name in chosen})
    return [
        score_table(test, title, test.final, variants=chosen),
        *([] if best is None else [best]),
        *([transfer_table(test, variants=chosen)] if len(test.tasks) > 1 else []),
    ]


def _rivals(comparison: Comparison, variant: str, chosen: Sequence[str]) -> list[str]:
    """Return the chosen variants of other methods with the same backbone and order, without lines of reference."""
    rest = _key(comparison, variant)[1:]
    return [name for name in chosen if name != variant and not is_reference(comparison.plan, name) and _key(comparison, name)[1:] == rest]
