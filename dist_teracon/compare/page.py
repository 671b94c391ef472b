"""One offline page of a comparison, `report.html`: its tables, its figures, what failed, and what was compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_teracon.atomic import atomic_write
from dist_teracon.compare.comparison import Comparison
from dist_teracon.compare.differences import leads
from dist_teracon.compare.experiment_figures import make_figures
from dist_teracon.compare.experiments import changes, spreads
from dist_teracon.compare.many_tasks import milestones, transfers
from dist_teracon.compare.plan import Plan
from dist_teracon.compare.statistics import Estimate
from dist_teracon.compare.table import Table, signed
from dist_teracon.compare.tables import Tables
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.report.template import flat, render_template

_EXPERIMENTS = {
    "reversed": "The reverse order",
    "orders": "Orders of the tasks",
    "noisy": "A task of noise",
    "sampling": "Sampling of past users",
    "adaptation": "Learning a new task",
    "similarity": "Similarity of masks",
    "many": "Many tasks",
}


@dataclass(frozen=True)
class Result:
    """A comparison as far as it is finished.

    Attributes:
        plan: What is compared.
        cells: How many there are.
        splits: `validation` and `test`, with their tables; none before a seed of a variant is finished.
        chosen: What validation chooses of each method, and its test scores; empty where there is nothing to choose.
        costs: What each task costs.
        unfinished: Cells that are not finished, and why.
    """

    plan: Plan
    cells: int
    splits: Mapping[str, tuple[Comparison, Tables]]
    chosen: Sequence[Table]
    costs: Table | None
    unfinished: Mapping[str, str]


def write_page(result: Result, out: Path) -> Path:
    """Write the page of a comparison, atomically.

    Raises:
        TeraconError: matplotlib or jinja2 is not installed.
    """
    page = render(result, out.parent.name)
    with atomic_write(out) as file:
        file.write(page.encode("utf-8", "replace"))
    return out


def render(result: Result, name: str) -> str:
    """Return the page as HTML; the same cells give the same text.

    Args:
        result: The comparison.
        name: Of its folder.

    Raises:
        TeraconError: matplotlib or jinja2 is not installed.
    """
    comparison, tables = result.splits.get("test", (None, None))
    experiment = result.plan.experiment
    return render_template(
        "dist_teracon.compare",
        "page.html",
        name=name,
        title=_title(comparison, result.plan),
        facts=_facts(result, comparison),
        headline="" if comparison is None else headline(comparison),
        plan=result.plan,
        tables=tables,
        validation=result.splits.get("validation", (None, None))[1],
        figures={} if comparison is None else make_figures(comparison),
        experiment=_EXPERIMENTS.get(experiment or "", ""),
        chosen=result.chosen,
        costs=result.costs,
        unfinished=list(result.unfinished.items()),
        cells=result.cells,
        settings=_settings(result.plan),
    )


def _title(comparison: Comparison | None, plan: Plan) -> str:
    """Return the data set's own name, else what the plan calls it."""
    if comparison is not None:
        run = comparison.folders[comparison.variants[0]][0]
        if (run / "dataset.json").is_file():
            return read_dataset_info(str(run)).name
    return str(plan.set.get("dataset", plan.config))


def _facts(result: Result, comparison: Comparison | None) -> list[str]:
    of = "fold" if result.plan.cross_fitting else "seed"
    facts = [f"{len(result.plan.variants)} variants", f"{len(result.plan.seeds)} {of}{'s' * (len(result.plan.seeds) > 1)}"]
    facts.append(f"{result.cells - len(result.unfinished)} of {result.cells} cells finished")
    if comparison is not None:
        facts.append(f"{len(comparison.tasks)} tasks")
        facts.append(f"{comparison.bootstrap.users:,} different test users over all {of}s")
    return facts


def headline(comparison: Comparison) -> str:
    """Return what the comparison found, in a sentence or two."""
    match comparison.plan.experiment:
        case "reversed" | "orders":
            return _spread_sentence(comparison)
        case "noisy" | "sampling":
            return _change_sentence(comparison)
        case "many":
            return _many_sentence(comparison)
        case None:
            return _lead_sentence(comparison)
        case _:
            return ""


def _lead_sentence(comparison: Comparison) -> str:
    count, sentences = len(comparison.tasks), []
    for variant, of_tasks in leads(comparison).items():
        if comparison.plan.baseline_of(variant) != variant:
            continue
        words = [lead.word for lead in of_tasks if lead is not None]
        sentences.append(
            f"{variant} against the best other, task by task: better in {words.count('better')} of {count}, "
            f"worse in {words.count('worse')}, and in {words.count('')} they cannot be told apart (5 %, Holm)."
        )
    return " ".join(sentences)


def _spread_sentence(comparison: Comparison) -> str:
    parts = []
    for group, of_tasks in spreads(comparison).items():
        known = [(width, task) for (width, _), task in zip(of_tasks, comparison.tasks, strict=True) if not math.isnan(width)]
        if known:
            parts.append("{} {:.1f} % ({})".format(group, *max(known)))
    return f"How far the final scores of a task lie apart over orders, at most: {', '.join(parts)}." if parts else ""


def _change_sentence(comparison: Comparison) -> str:
    """Return the largest change of a final score from each baseline, and how many can be told from nothing."""
    of_baseline: dict[str, list[tuple[str, str, Estimate]]] = {}
    for variant, values in changes(comparison).items():
        pairs = zip(comparison.tasks, values, strict=True)
        entries = [(variant, task, value) for task, value in pairs if not math.isnan(value.value)]
        of_baseline.setdefault(comparison.plan.baseline_of(variant) or "", []).extend(entries)
    parts = []
    for baseline, entries in of_baseline.items():
        if not entries:
            continue
        variant, task, value = max(entries, key=lambda entry: abs(entry[2].value))
        beyond = sum(entry[2].low > 0 or entry[2].high < 0 for entry in entries)
        name = "+".join(part for part in baseline.split("+") if part != comparison.plan.baseline)
        parts.append(f"{name} {signed(value.value, 1)} % ({task}, {variant}; {beyond} of {len(entries)} intervals without zero)".lstrip())
    return f"The largest change of a final score from {comparison.plan.baseline}: {', '.join(parts)}." if parts else ""


def _many_sentence(comparison: Comparison) -> str:
    known = {variant: values[-1] for variant, values in transfers(comparison).items() if not math.isnan(values[-1].value)}
    parts = [f"{variant} {signed(value.value, 1)} %" for variant, value in known.items()]
    return f"Mean BWT after {milestones(comparison)[-1]} tasks: {', '.join(parts)}." if parts else ""


def _settings(plan: Plan) -> list[tuple[str, str]]:
    given: dict[str, Any] = plan.model_dump(mode="json", exclude={"notes", "variants"})
    return flat({name: value for name, value in given.items() if value not in (None, [], {}, "", False)})
