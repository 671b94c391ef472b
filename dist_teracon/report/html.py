"""One offline page of a run, `report.html`; further runs stand beside it in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from dist_teracon.atomic import atomic_write
from dist_teracon.config.run import EvaluateConfig
from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.errors import RunError
from dist_teracon.evaluate.metrics import is_metric, parse_metric
from dist_teracon.evaluate.periods import period_of
from dist_teracon.report.axes import stage_title
from dist_teracon.report.figures import make_figures
from dist_teracon.report.later import LaterTable, cold_start_tables, drift_tables
from dist_teracon.report.plot import Figure
from dist_teracon.report.run_data import Baselines, Column, RunData, read_run
from dist_teracon.report.step_times import step_times
from dist_teracon.report.summary import against_baselines, backward_verdicts, final_error, forward_verdicts, headline
from dist_teracon.report.table import by_task, metric_title, score_rows
from dist_teracon.report.template import flat, render_template
from dist_teracon.report.values import as_mapping, as_whole, count_text, difference_text, percent_text, score_text, seconds_text

# From more tasks than this the page shows a task a row, and R folded up.
MANY_TASKS = 8


@dataclass(frozen=True)
class Tile:
    """A figure at the head of the page: a number, what it counts, and how to read it."""

    value: str
    label: str
    note: str


def write_report(runs: Sequence[Path | str], out: Path) -> Path:
    """Write the page of the first run, with a table that compares all of them.

    Args:
        runs: Folders or URIs of runs, finished or not; at least one.
        out: The HTML file to write, atomically.

    Returns:
        `out`.

    Raises:
        RunError: no run given, or a folder that is no run.
        TeraconError: matplotlib or jinja2 is not installed.
    """
    if not runs:
        raise RunError("no run folder given; name at least one, as in `dist-teracon report RUN`")
    return write_page([read_run(run) for run in runs], out)


def write_page(runs: Sequence[RunData], out: Path) -> Path:
    """Write the page of runs that are read; see `write_report`."""
    page = render(runs)
    with atomic_write(Path(out)) as file:
        file.write(page.encode("utf-8", "replace"))
    return Path(out)


def render(runs: Sequence[RunData]) -> str:
    """Return the page as HTML; the same runs give the same text."""
    run, figures = runs[0], make_figures(runs[0])
    return render_template(
        "dist_teracon.report",
        "template.html",
        run=run,
        contents=_contents(run, figures, several=len(runs) > 1),
        facts=_facts(run),
        headline=headline(run),
        tiles=_tiles(run),
        caution=_caution(runs),
        rows=score_rows(run),
        many=len(run.tasks) > MANY_TASKS,
        by_task=by_task(run),
        further=_further(run),
        figures=figures,
        protocol=_protocol(run),
        protocol_tasks=_protocol_tasks(run),
        protocol_users="rows of users" if run.dataset and run.dataset.split.by == "time" else "users",
        notes=flat(_notes(run)),
        later=_later(run),
        configuration=flat(run.config),
        environment=_environment(run),
        passes=_passes(run) if run.events.pseudo_labels else None,
        step_times=step_times(run),
        comparison=_comparison(runs) if len(runs) > 1 else None,
    )


def _contents(run: RunData, figures: Mapping[str, Figure], *, several: bool) -> list[tuple[str, str]]:
    """Return anchor and title of the sections that the page has."""
    sections = (
        ("comparison", "Runs side by side", several),
        ("scores", "Scores", bool(run.scores)),
        ("learning", "Learning", bool({"learning", "loss", "gradient", "rate"} & set(figures))),
        ("retention", "Knowledge retention", bool({"rho", "retention", "similarity", "histograms"} & set(figures))),
        ("time", "Time", "seconds" in figures or bool(run.events.pseudo_labels) or step_times(run) is not None),
        *((anchor, title, True) for anchor, title, _, _ in _later(run)),
        ("protocol", "Protocol", True),
        ("configuration", "Configuration", bool(run.config)),
        ("environment", "Environment", bool(_environment(run))),
    )
    return [(anchor, title) for anchor, title, there in sections if there]


def _later(run: RunData) -> list[tuple[str, str, str, list[LaterTable]]]:
    """Return anchor, title, note and tables of what commands measured of the finished run."""
    sections = [
        (
            "cold-start", "Cold start",
            "Each user's last label of a task that the model did not learn, recommended by NeuMF on frozen vectors and on what stands "
            "beside them; cold users have fewer than two labels to learn from. ± is half of the 95 % interval over users, brackets "
            "are that of a paired difference.",
            cold_start_tables(run.cold_start),
        ),
        ("drift", "Drift of vectors", "How the vectors of the same users differ between stages.", drift_tables(run.drift)),
    ]  # fmt: skip
    return [section for section in sections if section[-1]]


def _notes(run: RunData) -> dict[str, Any]:
    """Return the data set's notes without what counts its raw rows, which `dist-teracon prepare` has printed."""
    notes = dict(run.dataset.notes) if run.dataset else {}
    shown = {"missing": "codes of unknown"}  # cells of the tables, not users without a value
    return {shown.get(name, name): value for name, value in notes.items() if name not in ("matched", "appended", "files", "overlap")}


def _further(run: RunData) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return R by each metric that selects for no task: its title, and for each stage the name and the cells."""
    return [
        (
            metric_title(metric),
            [
                (f"after {name}", ["" if value is None else score_text(value) for value in row])
                for name, row in zip(run.stage_names, rows, strict=False)
                if any(value is not None for value in row)
            ],
        )
        for metric, rows in run.further_metrics.items()
    ]


def _facts(run: RunData) -> list[str]:
    done = run.learned_tasks
    facts = [f"seed {run.seed}"] if run.seed is not None else []
    facts.append(f"{done} of {len(run.tasks)} tasks learned" if not run.finished else f"{done} tasks")
    if run.dataset:
        people = as_whole(as_mapping(run.dataset.notes.get("split_by_time")).get("users"))
        facts.append(f"{count_text(run.dataset.users)} {'users' if people is None else f'rows of {count_text(people)} users'}")
        facts.append(f"{count_text(run.dataset.items - FIRST_ITEM)} items")
    if run.seconds is not None:
        facts.append(f"{seconds_text(run.seconds)} in its stages")
    if run.events.last_time is not None:
        facts.append(f"{datetime.fromtimestamp(run.events.last_time, UTC):%Y-%m-%d %H:%M} UTC")
    return facts


def _tiles(run: RunData) -> list[Tile]:
    tiles = []
    if bwt := [value for value in run.bwt if value is not None]:
        tiles.append(Tile(percent_text(fmean(bwt)), "mean BWT", _judged(backward_verdicts(run), run.bwt_error, len(bwt), "earlier")))
    if fwt := [value for value in run.fwt if value is not None]:
        tiles.append(Tile(percent_text(fmean(fwt)), "mean FWT", _judged(forward_verdicts(run), run.fwt_error, len(fwt), "later")))
    if found := list(against_baselines(run).values()):
        within, below = found.count(""), found.count("worse")
        rest = [f"{within} within a standard error"] * bool(within) + [f"{below} below"] * bool(below)
        above = f"{found.count('better')} of {len(found)}"
        tiles.append(Tile(above, "tasks above every baseline", ", ".join(rest) or "popularity, majority, SVD + LR"))
    if run.seconds is not None:
        tiles.append(Tile(seconds_text(run.seconds), "in its stages", f"{len(run.scores)} of {len(run.tasks)} stages finished"))
    return tiles


def _judged(verdicts: Sequence[str], errors: Column, known: int, which: str) -> str:
    """Return how many tasks gained and lost more than a standard error."""
    if not any(error is not None for error in errors):
        return f"{known} {which} tasks, no standard errors"
    return f"of {known} {which} tasks {verdicts.count('better')} gained, {verdicts.count('worse')} lost more than a standard error"


def _caution(runs: Sequence[RunData]) -> str:
    errors = "Standard errors are over test users, paired where a task is compared with itself; differences below them are no evidence."
    versions = f" {runs[0].version_note}".rstrip()
    if len({run.seed for run in runs}) > 1:
        return f"Few runs: how much other seeds would differ is hardly known. {errors}{versions}"
    return f"One seed: how much another would differ is unknown. {errors}{versions}"


def _without_seen(run: RunData) -> list[str]:
    """Return the tasks that are ranked without the items of the user's own history."""
    if run.dataset is None:
        return []
    info, known = run.dataset, {task.name for task in run.dataset.tasks}
    setting = as_mapping(run.config.get("evaluate")).get("exclude_seen")
    return [task for task in run.tasks if task in known and info.excludes_seen(task, setting if isinstance(setting, bool) else None)]


def _how_ranked(run: RunData) -> list[tuple[bool, int | None]]:
    """Return of each task whether its rankings leave out the user's own items, and the period of the test of its final score."""
    without, setting = _without_seen(run), as_mapping(run.config.get("evaluate")).get("period")
    evaluate = EvaluateConfig(period="present" if setting == "present" else "own")
    last = len(run.tasks) - 1
    periods = [None if run.dataset is None else period_of(evaluate, run.dataset, task=place, stage=last) for place in range(len(run.tasks))]
    return [(task in without, period) for task, period in zip(run.tasks, periods, strict=True)]


def _protocol(run: RunData) -> list[tuple[str, str]]:
    entries = []
    if run.dataset:
        split = run.dataset.split
        rule = {
            "users": "by user: one split for all tasks, so that no task's test user is seen in training",
            "rows": "by row: each task by itself, so a user may stand in the training set of one task and in the test set of another",
            "last": "the first task by each user's last items (the last for the test, the one before for validation), others by user",
            "time": "by time: what is trained on, then what is validated, then what is tested; attributes of users by user",
        }[split.by]
        entries.append(("Split", f"{rule} (seed {split.seed})"))
        shares = f"{100 * split.train:g} % training, {100 * split.validation:g} % validation, {100 * split.test:g} % test"
        if split.by != "time":
            entries.append(("Shares", shares if split.folds == 1 else f"{shares}; fold {split.fold + 1} of {split.folds}"))
        elif not all(task.ranks_labels for task in run.dataset.tasks):
            entries.append(("Shares", f"{shares}, of users, in tasks of their attributes"))
    entries += [
        ("Candidates", "all labels of the task, none sampled; the reserved items (none, unseen) are never candidates"),
        ("Ranking", "full: rank = 1 + number of labels with a greater score; ties count by the mean over their order"),
        ("Unseen targets", "a test target that training never saw is a miss, and is counted below"),
    ]
    if without := _without_seen(run):
        entries.insert(-2, ("Own items", f"those of the user's own history are no candidates in {', '.join(without)}"))
    names = dict.fromkeys(name for task in range(len(run.tasks)) for name in run.metrics_of(task))
    entries += [(name, parse_metric(name).description) for name in names if is_metric(name)]
    if run.baselines and any(run.baselines.svd_logistic_regression):
        entries.append(("SVD + LR", "; ".join(_svd_texts(run.tasks, run.baselines))))
    if run.max_users is not None:
        entries.append(("Cut", f"evaluated on at most {count_text(run.max_users)} users a task (evaluate.max_users): a trial"))
    if run.dataset:
        entries.append(("Sequences", f"the last {run.dataset.length_limit} items at most; {count_text(run.dataset.events)} events in all"))
    return entries


def _svd_texts(tasks: Sequence[str], baselines: Baselines) -> Iterator[str]:
    for task, entry in zip(tasks, baselines.svd_logistic_regression, strict=True):
        if entry:
            yield f"{task}: {entry.dimensions or '?'} dimensions, chosen on validation ({score_text(entry.validation_score)})"


def _protocol_tasks(run: RunData) -> list[tuple[str, ...]]:
    described = {task.name: task for task in run.dataset.tasks} if run.dataset else {}
    rows: list[tuple[str, ...]] = []
    for i, task in enumerate(run.tasks):
        known = described.get(task)
        examples = run.test_examples[i]
        unseen = run.unseen_targets[i]
        share = f" ({100 * unseen / examples:.1f} %)" if unseen and examples else ""
        error = final_error(run, i)
        rows.append(
            (
                f"{i + 1} {task}",
                known.kind if known else "",
                ", ".join(run.metrics_of(i)),
                count_text(known.labels if known else None),
                count_text(known.users if known else None),
                count_text(known.examples[0] if known else None),
                count_text(examples),
                count_text(unseen) + share,
                difference_text(error).replace("+", "± "),
            )
        )
    return rows


def _passes(run: RunData) -> dict[str, Any]:
    """Return the table of the teacher's passes: a row a stage, a column a past task, and their time."""
    passes = run.events.pseudo_labels
    tasks = list(dict.fromkeys(entry.past for entry in passes))
    rows = []
    for stage in dict.fromkeys(entry.stage for entry in passes):
        made = {entry.past: entry for entry in passes if entry.stage == stage}
        seconds = [entry.seconds for entry in made.values() if entry.seconds is not None]
        users = [count_text(made[task].rows) if task in made else "" for task in tasks]
        rows.append([stage_title(run, stage), *users, seconds_text(sum(seconds) if seconds else None)])
    places = {task: place for place, task in enumerate(run.tasks, start=1)}
    return {"tasks": [(places.get(task, "–"), task) for task in tasks], "rows": rows}


def _environment(run: RunData) -> list[tuple[str, str]]:
    entries = []
    if run.machine:
        machine = run.machine
        if machine.cpu:
            entries.append(("processor", machine.cpu))
        if machine.cores is not None:
            entries.append(("cores", str(machine.cores)))
        if machine.world_size is not None:
            entries.append(("processes", str(machine.world_size)))
        entries += sorted(machine.versions.items())
    if run.dataset:
        entries.append(("data set version", run.dataset.fingerprint[:16]))
        entries += [(f"source.{name}", value) for name, value in flat(run.dataset.source)]
    if run.errors.unreadable:
        entries.append(("scores by user", f"could not be read, so some standard errors are missing: {', '.join(run.errors.unreadable)}"))
    if run.events.unreadable:
        entries.append(("events.jsonl", f"{run.events.unreadable} lines could not be read and are left out"))
    return entries


def _comparison(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return tasks and rows of the table that sets runs side by side, and whether their scores compare."""
    comparable = len({run.dataset.fingerprint if run.dataset else run.dataset_name for run in runs}) == 1
    comparable = comparable and len({run.max_users for run in runs}) == 1
    ranked = {(task, how) for run in runs for task, how in zip(run.tasks, _how_ranked(run), strict=True)}
    comparable = comparable and len(ranked) == len({task for task, _ in ranked})
    used = {(task, metric) for run in runs for task, metric in zip(run.tasks, run.metrics, strict=True)}
    comparable = comparable and len(used) == len({task for task, _ in used})
    metrics: dict[str, str] = {}
    finals: list[dict[str, float | None]] = []
    for run in runs:
        finals.append(dict(zip(run.tasks, run.final, strict=True)))
        for task, metric in zip(run.tasks, run.metrics, strict=True):
            metrics.setdefault(task, metric or "score")
    best: dict[str, float] = {}
    for run, final in zip(runs, finals, strict=True):
        for task, score in final.items():
            # A score that later stages may still change wins nothing.
            if comparable and run.finished and score is not None:
                best[task] = max(score, best.get(task, score))
    rows = []
    for run, final in zip(runs, finals, strict=True):
        transfer = dict(zip(run.tasks, run.bwt, strict=True))
        words = dict(zip(run.tasks, backward_verdicts(run), strict=True))
        cells = []
        for task in metrics:
            score, bwt = final.get(task), transfer.get(task)
            is_best = run.finished and score is not None and score == best.get(task)
            cells.append((score_text(score), "" if bwt is None else percent_text(bwt), is_best, words.get(task, "")))
        about = [run.method, run.dataset_name, *([f"seed {run.seed}"] if run.seed is not None else [])]
        about += [] if run.finished else ["unfinished"]
        name = run.folder.name or str(run.folder)
        means = [percent_text(fmean(known) if (known := [v for v in values if v is not None]) else None) for values in (run.bwt, run.fwt)]
        wins = sum(cell[2] for cell in cells)
        rows.append(
            {"folder": name, "about": " · ".join(about), "cells": cells, "means": means, "wins": wins, "seconds": seconds_text(run.seconds)}
        )
    return {"tasks": list(metrics.items()), "rows": rows, "comparable": comparable}
