"""What is checked before the first cell of a comparison runs: its folder, and that every cell can learn its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_teracon.compare.cells import is_finished, results_of
from dist_teracon.compare.plan import Cell, Plan, cell_place
from dist_teracon.compare.statistics import judging_metric
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import read_yaml, validate
from dist_teracon.console import Console
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.open import open_dataset
from dist_teracon.data.schema import DatasetInfo, Task, read_dataset_info
from dist_teracon.data.summary import taken_but_ranked
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.evaluate.metrics import metrics_of


def check_folder(cells: Sequence[Cell], out: Path) -> None:
    """Check that a folder is new, or that of this comparison.

    Raises:
        ConfigError: it is a file, holds something else, or has cells of other configurations.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder for the comparison")
    there = {path.name for path in (out / "cells").glob("*")}
    others = {path.name for path in out.iterdir()} - {".lock"}  # that of a comparison which was killed before its first cell
    if not there and others and not (out / "configs").is_dir():
        raise ConfigError(f"--out {out}: holds other files and no comparison; name a new folder")
    if there and there.isdisjoint(cell.variant for cell in cells):
        raise ConfigError(f"--out {out}: holds another comparison (variants {', '.join(sorted(there))}); name another folder")
    for cell in cells:
        if problem := _changed(cell, out):
            raise ConfigError(
                f"--out {out}: {cell.name} was begun with another configuration: {problem}. "
                f"Name another folder, or remove {cell.folder(out)}"
            )


def _changed(cell: Cell, out: Path) -> str:
    """Return how a cell's configuration differs from the one that its run was begun with; empty where it may go on."""
    from dist_teracon.train.config_changes import compare_configs
    from dist_teracon.train.run_setup import resolve

    folder = cell.folder(out)
    if not (folder / "config.yaml").exists():
        return ""
    before = validate(RunConfig, read_yaml(str(folder / "config.yaml")), where=str(folder / "config.yaml"))
    now = resolve(cell.config, where=cell.name)[0]
    if before.dataset != now.dataset:
        return f"dataset was {before.dataset!r} and is now {now.dataset!r}"
    found = results_of(cell, out) or {"tasks": now.tasks or (), "scores": ()}
    return compare_configs(before, now, tasks=found["tasks"], finished=len(found["scores"])).problem


def check_cells(plan: Plan, cells: Sequence[Cell], out: Path, *, where: str, console: Console) -> None:
    """Check of every cell that is not finished that its data set is there, has its tasks, and that its method can learn them; and of all
    cells that their scores compare.

    Synthetic data sets are prepared on the way, each once.

    Args:
        plan: The comparison.
        cells: All cells.
        out: The comparison's folder.
        where: The comparison, for messages.
        console: Where preparing is logged.

    Raises:
        ConfigError: names each variant that cannot run, and why; the tasks or the methods do not fit the plan's experiment; or a data set
            is another one than that of the cells which are there.
        DataError: a data set is not there.
    """
    known = _known_data(cells, out)
    datasets: dict[str, Dataset] = {}
    problems: dict[str, None] = {}
    tasks: dict[str, tuple[str, ...]] = {}
    ranked: dict[str, dict[str, bool]] = {}
    partly: dict[str, bool] = {}
    judged: dict[str, dict[str, str | None]] = {}
    for cell in cells:
        uri, info = cell.config.dataset, _info_of_finished(cell, out)
        if info is not None:
            tasks[cell.variant] = tuple((results_of(cell, out) or {})["tasks"])
        else:
            if uri not in datasets:
                datasets[uri] = open_dataset(uri, log=console.log)
                _check_same_data(uri, "what is there now", datasets[uri].info.fingerprint, known, out)
            try:
                info, own = datasets[uri].info, _check_cell(cell, datasets[uri], where=cell_place(where, cell.variant))
            except ConfigError as error:
                problems[str(error)] = None
                continue
            tasks[cell.variant] = own
        setting = cell.config.evaluate.exclude_seen
        ranked[cell.variant] = {task: info.excludes_seen(task, setting) for task in tasks[cell.variant]}
        if any(ranked[cell.variant].values()):
            partly[uri] = taken_but_ranked(info) is not None
        judged[cell.variant] = {task: _judge(info.task(task), cell.config, plan.metrics) for task in tasks[cell.variant]}
    if problems:
        raise ConfigError("\n".join(problems))
    for problem in (other_knowledge(partly), other_candidates(ranked), _other_judges(judged), _other_periods(cells, tasks)):
        if problem:
            raise ConfigError(f"{where}: {problem}")
    if problem := _experiment_problem(plan, tasks) or _method_problem(plan, cells):
        raise ConfigError(f"{where}: experiment '{plan.experiment}' {problem}")


def _known_data(cells: Sequence[Cell], out: Path) -> dict[str, tuple[str, str]]:
    """Return by data set the fingerprint of what the cells that were begun are trained on, and one of these cells.

    Raises:
        ConfigError: they are trained on two.
    """
    known: dict[str, tuple[str, str]] = {}
    for cell in cells:
        folder = cell.folder(out)
        if (folder / "dataset.json").is_file():
            found = read_dataset_info(str(folder)).fingerprint
            _check_same_data(cell.config.dataset, f"that of {cell.name}", found, known, out)
            known.setdefault(cell.config.dataset, (found, cell.name))
    return known


def _check_same_data(uri: str, which: str, fingerprint: str, known: Mapping[str, tuple[str, str]], out: Path) -> None:
    before, name = known.get(uri, (fingerprint, ""))
    if before != fingerprint:
        raise ConfigError(
            f"--out {out}: {name} was trained on another version of {uri} than {which}, so their scores do not compare; bring that version "
            "back, or name another folder"
        )


def _info_of_finished(cell: Cell, out: Path) -> DatasetInfo | None:
    """Return the data set that a finished cell was trained on, as its run has it; None for any other cell."""
    folder = cell.folder(out)
    return read_dataset_info(str(folder)) if is_finished(cell, out) and (folder / "dataset.json").is_file() else None


def _judge(task: Task, config: RunConfig, asked: Sequence[str]) -> str | None:
    """Return the name of the metric by which tables will have a task's scores."""
    found = judging_metric([metric.name for metric in metrics_of(task, config.evaluate.metrics)], asked)
    return None if found is None else found.name


def _other_judges(judged: Mapping[str, Mapping[str, str | None]]) -> str:
    """Return that a task's scores are by one metric in one variant and by another one in another; empty where none is."""
    for variant, own in judged.items():
        for task, metric in own.items():
            for other, rows in judged.items():
                if rows.get(task, metric) != metric:
                    return (
                        f"task '{task}' is judged by {metric} in '{variant}' and by {rows[task]} in '{other}', the first of their "
                        "evaluate.metrics, so their scores do not compare; expected one order of them, or `metrics` of the comparison, or "
                        "--metric"
                    )
    return ""


def _other_periods(cells: Sequence[Cell], tasks: Mapping[str, tuple[str, ...]]) -> str:
    """Return that a task is learned in one test period in one variant and in another in another; empty where none is."""
    present = [cell.variant for cell in cells if cell.config.evaluate.period == "present" and cell.variant in tasks]
    for variant in present[1:]:
        common = [[task for task in tasks[name] if task in tasks[variant] and task in tasks[present[0]]] for name in (present[0], variant)]
        if common[0] != common[1]:
            return (
                f"'{present[0]}' and '{variant}' learn their tasks in other orders, and with evaluate.period 'present' a task's score when "
                "it was learned is then of another period; expected one order"
            )
    return ""


def other_knowledge(partly: Mapping[str, bool]) -> str:
    """Return that one data set knows all that users took and another the last events alone; empty where they are alike.

    Args:
        partly: By data set, of those with rankings that leave out what was taken, whether it knows the last events alone.
    """
    if len(set(partly.values())) < 2:
        return ""
    less, more = (next(uri for uri, part in partly.items() if part == which) for which in (True, False))
    return (
        f"{more} knows all that users took, and {less} the last events alone, so rankings leave out more in one of them; "
        "prepare both by the same program"
    )


def other_candidates(ranked: Mapping[str, Mapping[str, bool]]) -> str:
    """Return that a task is ranked without the items of users' histories in one variant and with them in another; empty where none is."""
    for variant, own in ranked.items():
        for task, without in own.items():
            if (other := next((name for name, rows in ranked.items() if rows.get(task, without) != without), None)) is not None:
                one, two = (variant, other) if without else (other, variant)
                return (
                    f"'{one}' ranks task '{task}' without the items of the user's history and '{two}' with them, so their scores do not "
                    "compare; expected one evaluate.exclude_seen (or `repeats` of the recipe) in all variants"
                )
    return ""


# The fewest tasks with which an experiment shows anything: of fewer there is one order, no new task, no pair of masks, no number of tasks.
_FEWEST = {"reversed": 3, "orders": 3, "many": 3}


def _experiment_problem(plan: Plan, tasks: Mapping[str, tuple[str, ...]]) -> str:
    """Return why the variants' tasks do not fit the plan's experiment; empty where they do."""
    if plan.experiment is None:
        return ""
    fewest = _FEWEST.get(plan.experiment, 2)
    for variant, own in tasks.items():
        if len(own) < fewest:
            return f"needs {fewest} tasks at least; variant '{variant}' has {len(own)} ({', '.join(own)})"
    for variant, own in tasks.items():
        before = tasks.get(plan.baseline_of(variant) or "", own)
        further, less = set(own) - set(before), set(before) - set(own)
        if plan.experiment in ("reversed", "orders") and (further or less):
            return f"compares orders of the same tasks; '{variant}' differs from its baseline in {', '.join(sorted(further | less))}"
        if plan.experiment == "noisy" and less:
            return f"adds a task to the baseline's; '{variant}' lacks {', '.join(sorted(less))}"
    baselines = [(own, tasks.get(plan.baseline_of(name) or "", ())) for name, own in tasks.items() if plan.baseline_of(name) != name]
    if plan.experiment == "noisy" and baselines and all(before and set(own) == set(before) for own, before in baselines):
        return "adds a task to the baseline's; all orders have the same tasks"
    return ""


def _method_problem(plan: Plan, cells: Sequence[Cell]) -> str:
    """Return that no variant's method has what the plan's experiment shows; empty where one has."""
    from dist_teracon.continual.heads_alone import HeadsAlone
    from dist_teracon.continual.method import Method
    from dist_teracon.continual.registry import method_class

    kinds = {method_class(cell.config.method["name"]) for cell in cells}
    has = {
        "similarity": ("shows masks of tasks", any(kind.masks is not Method.masks for kind in kinds)),
        "sampling": ("compares how past users are sampled", any(kind.replay_bounds is not Method.replay_bounds for kind in kinds)),
        "adaptation": ("shows how a task is learned", any(not issubclass(kind, HeadsAlone) for kind in kinds)),
    }
    asks, found = has.get(plan.experiment or "", ("", True))
    return "" if found else f"{asks}, and no variant's method does that ({', '.join(sorted(kind.name for kind in kinds))})"


def _check_cell(cell: Cell, dataset: Dataset, *, where: str) -> tuple[str, ...]:
    """Check one cell; returns the names of its tasks."""
    from dist_teracon.train.run_checks import checked_tasks
    from dist_teracon.train.run_setup import resolve

    config, kind, _ = resolve(cell.config, where=where)
    try:
        return tuple(task.name for task in checked_tasks(config, kind, dataset, where=where))
    except (ConfigError, DataError) as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
