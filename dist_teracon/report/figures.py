"""The figures of a run: each builder returns a `Figure`, or `None` where the run has nothing to show yet. Those of scores and time are
here, those of training in `training_figures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dist_teracon.report.axes import MEDIUM, NUMBERED_CELLS, SMALL, cell, matrix_axes, name_rows, task_label
from dist_teracon.report.plot import (
    ACCENT,
    BETTER,
    INK,
    MUTED,
    SOFT,
    WORSE,
    Figure,
    Key,
    Panel,
    Plot,
    drawing,
    series_colour,
    series_key,
)
from dist_teracon.report.run_data import Column, RunData
from dist_teracon.report.training_figures import TRAINING_BUILDERS
from dist_teracon.report.values import (
    difference_text,
    percent_error_text,
    percent_text,
    relative,
    score_text,
    seconds_text,
    short,
    verdict,
)

_COLOURS = {"better": BETTER, "worse": WORSE, "": SOFT}


def make_figures(run: RunData) -> dict[str, Figure]:
    """Draw all figures that a run has data for, by name, in the page's order.

    Raises:
        TeraconError: matplotlib is not installed.
    """
    with drawing():
        made = (builder(run) for builder in (*_SCORE_BUILDERS, *TRAINING_BUILDERS, stage_seconds))
        return {figure.name: figure for figure in made if figure is not None}


def retained_scores(run: RunData) -> Figure | None:
    """R as a heat map, each task shaded by its change since it was learned, where that is beyond its paired standard error."""
    if len(run.scores) < 2:
        return None
    changes = [_changes(run, j) for j in range(len(run.scores))]
    span = max([2.0, *(abs(change or 0) for row in changes for change, _, word in row if word)])
    rows, columns = len(run.scores), len(run.tasks)
    full = columns <= NUMBERED_CELLS
    size = (max(300, 44 + 52 * columns), 30 + 36 * rows) if full else (36 + 17 * columns, 24 + 17 * rows)
    with Plot(*size, "Scores after each stage") as plot:
        matrix_axes(plot, [str(j + 1) for j in range(rows)], [str(i + 1) for i in range(columns)])
        for j, name in enumerate(run.stage_names):
            for i, (change, error, word) in enumerate(changes[j]):
                value = run.scores[j][i]
                if value is None:
                    continue
                first = all(earlier[i] is None for earlier in run.scores[:j])
                tip = f"{i + 1} {run.tasks[i]}, after {j + 1} {name}: {score_text(value)} {run.metrics[i] or ''}".rstrip()
                tip += "\nwhen learned" if first else f"\n{percent_error_text(change, error)} since it was learned"
                shade = 0 if first or not word else 0.15 + 0.85 * abs(change or 0) / span
                cell(plot, j, i, colour=_COLOURS[word], shade=shade, tip=tip, outlined=first)
                if full:
                    plot.axes.text(i, j - (0 if first else 0.14), score_text(value), ha="center", va="center", size=11, color=INK)
                if full and not first:
                    plot.axes.text(i, j + 0.23, percent_text(change), ha="center", va="center", size=8.5, color=INK)
        panel = plot.panel("")
    where = "" if full else " Numbers: point at a cell, or see the table."
    return Figure(
        "retained",
        "What each stage did to earlier tasks",
        f"Row j: after learning task j. Column i: task i. Framed: when it was learned. Shade: change since then, full at ±{span:.1f} %; "
        f"a change within its paired standard error has none.{where}",
        (panel,),
        (Key("better than when learned", "better"), Key("worse", "worse")),
    )


def _changes(run: RunData, stage: int) -> list[tuple[float | None, float | None, str]]:
    """Return each task's change since it was learned after a stage in percent, its error, and what it is judged as.

    Without an error, its sign alone counts.
    """
    errors = run.errors.changes[stage] if stage < len(run.errors.changes) else (None,) * len(run.tasks)
    found = []
    for value, learned, error in zip(run.scores[stage], run.learned, errors, strict=True):
        change = None if value is None or not learned else 100 * (value / learned - 1)
        percent = relative(error, learned)
        found.append((change, percent, verdict(change, percent if percent is not None else 0.0)))
    return found


def transfer(run: RunData) -> Figure | None:
    """FWT and BWT as bars with standard errors, a panel each, coloured by what they are: gain, loss, neither."""
    panels = []
    used: set[str] = set()
    kinds: tuple[tuple[str, str, Column, Column, Column, Column], ...] = (
        ("FWT", "when learned, against learned alone", run.fwt, run.fwt_absolute, run.fwt_error, run.single_task),
        ("BWT", "at the end, against when learned", run.bwt, run.bwt_absolute, run.bwt_error, run.learned),
    )
    for kind, what, values, differences, errors, bases in kinds:
        places = [i for i, value in enumerate(values) if value is not None]
        if not places:
            continue
        percents = [relative(errors[i], bases[i]) for i in places]
        words = [
            verdict(values[i], percent if percent is not None else 0.0) for i, percent in zip(places, percents, strict=True)
        ]  # fmt: skip
        used |= set(words)
        tips = [
            f"{kind} of {i + 1} {run.tasks[i]}: {percent_error_text(values[i], percent)} ({difference_text(differences[i])})"
            for i, percent in zip(places, percents, strict=True)
        ]
        labels = [task_label(i + 1, run.tasks[i]) for i in places]
        panels.append(_transfer_panel(f"{kind}: {what}", labels, [values[i] or 0.0 for i in places], percents, words, tips))
    if not panels:
        return None
    legend = {"better": Key("gain", "better"), "worse": Key("loss", "worse"), "": Key("within the standard error", "soft")}
    return Figure(
        "transfer",
        "Transfer between tasks",
        "Relative to each task's own score, so a small score makes a large percentage; absolute differences are in the table. "
        "Thin lines: ± one standard error over test users, paired.",
        tuple(panels),
        tuple(key for word, key in legend.items() if word in used),
    )


def _transfer_panel(
    title: str, labels: Sequence[str], values: Sequence[float], errors: Sequence[float | None], words: Sequence[str], tips: Sequence[str]
) -> Panel:  # fmt: skip
    with Plot(SMALL + 50, 34 + len(values) * 22, title) as plot:
        ends = [value + side * (error or 0.0) for value, error in zip(values, errors, strict=True) for side in (-1, 1)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        margin = max(high - low, 1e-3)
        for row, (value, error, word, tip) in enumerate(zip(values, errors, words, tips, strict=True)):
            (bar,) = plot.axes.barh(row, value, 0.66, color=_COLOURS[word])
            plot.tip(bar, tip)
            if error is not None:
                plot.axes.plot([value - error, value + error], [row, row], color=MUTED, linewidth=1)
            side = 1 if value >= 0 else -1
            text_x = value + side * ((error or 0.0) + 0.02 * margin)
            plot.axes.text(text_x, row, percent_text(value), ha="left" if side > 0 else "right", va="center", size=9, color=INK)
        plot.axes.axvline(0, color=MUTED, linewidth=1)
        plot.axes.set_xlim(low - (0.3 if min(values) < 0 else 0.02) * margin, high + (0.3 if max(values) >= 0 else 0.02) * margin)
        name_rows(plot, labels)
        plot.axes.locator_params(axis="x", nbins=5)
        plot.axes.set_xlabel("%")
        return plot.panel(title)


def final_scores(run: RunData) -> Figure | None:
    """Final scores beside single-task training and the baselines, a panel a task."""
    panels = []
    if run.baselines is None and not any(run.single_task):
        return None
    for i, (task, score) in enumerate(zip(run.tasks, run.final, strict=True)):
        if score is None:
            continue
        bars = [(run.method, score, ACCENT)]
        if run.single_task[i] is not None:
            bars.append(("learned alone", run.single_task[i] or 0.0, series_colour(4)))
        bars += [(name, value, SOFT) for name, value in (run.baselines.named(i) if run.baselines else [])]
        with Plot(SMALL, 14 + 24 * len(bars), f"Final score of task {i + 1}") as plot:
            top = max(value for _, value, _ in bars) or 1.0
            for k, (name, value, colour) in enumerate(bars):
                (bar,) = plot.axes.barh(k, value, 0.66, color=colour)
                plot.tip(bar, f"{task}, {name}: {score_text(value)}")
                weight = "bold" if k == 0 else "normal"
                plot.axes.text(value + 0.02 * top, k, score_text(value), ha="left", va="center", size=9.5, color=INK, weight=weight)
            plot.axes.set_xlim(0, top * 1.24)
            name_rows(plot, [short(name, 14) for name, _, _ in bars])
            plot.axes.set_xticks([])
            plot.axes.spines["bottom"].set_visible(False)
            panels.append(plot.panel(f"{i + 1} {task} · {run.metrics[i] or 'score'}"))
    if not panels:
        return None
    return Figure(
        "final",
        "Final scores beside single-task training and baselines",
        "Test scores after the last finished stage. Each panel has its own scale from zero.",
        tuple(panels),
        wide=True,
    )


def stage_seconds(run: RunData) -> Figure | None:
    """Seconds a stage, by what they were spent on."""
    times = [time for time in run.times if time.seconds is not None]
    if not times:
        return None
    longest = max(time.seconds or 0 for time in times) or 1.0
    used: dict[str, Key] = {}
    with Plot(MEDIUM, 40 + 28 * len(times), "Seconds of each stage") as plot:
        for row, time in enumerate(times):
            known = [("training", time.training, 0), ("pseudo-labels", time.pseudo_labels, 1), ("evaluation", time.evaluation, 2)]
            rest = (time.seconds or 0) - sum(value or 0 for _, value, _ in known)
            left = 0.0
            for name, value, index in [*known, ("other", rest, 7)]:
                if value is None or value < 1e-3 * longest:
                    continue
                (bar,) = plot.axes.barh(row, value, 0.6, left=left, color=series_colour(index))
                epochs = f" ({time.epochs} epochs)" if name == "training" and time.epochs is not None else ""
                plot.tip(bar, f"{time.task}, {name}: {seconds_text(value)}{epochs}")
                used[name] = series_key(name, index)
                left += value
            text_x = max(left, time.seconds or 0) + 0.015 * longest
            plot.axes.text(text_x, row, seconds_text(time.seconds), ha="left", va="center", size=9.5, color=INK)
        plot.axes.set_xlim(0, longest * 1.28)
        name_rows(plot, [task_label(time.stage, time.task) for time in times])
        plot.axes.set_xlabel("seconds")
        panel = plot.panel("")
    order = [used[name] for name in ("training", "pseudo-labels", "evaluation", "other") if name in used]
    caption = f"{seconds_text(run.seconds)} in all, without the start, the baselines and tasks alone."
    return Figure("seconds", "Time a stage", caption, (panel,), tuple(order))


_SCORE_BUILDERS: tuple[Callable[[RunData], Figure | None], ...] = (retained_scores, transfer, final_scores)
