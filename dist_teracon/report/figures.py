"""The figures of a run: each builder returns a `Figure`, or `None` where the run has nothing to show yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from dist_teracon.report.events import Epoch
from dist_teracon.report.plot import (
    ACCENT,
    BETTER,
    INK,
    LINE,
    MUTED,
    SOFT,
    WORSE,
    Figure,
    Key,
    Panel,
    Plot,
    drawing,
    series_colour,
    series_dash,
    series_key,
)
from dist_teracon.report.run_data import RunData
from dist_teracon.report.values import difference_text, percent_text, score_text, seconds_text, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TINY, SMALL, MEDIUM = 230, 270, 420
MAX_POINTS = 400


def make_figures(run: RunData) -> dict[str, Figure]:
    """Draw all figures that a run has data for, by name, in the page's order.

    Raises:
        TeraconError: matplotlib is not installed.
    """
    with drawing():
        made = (builder(run) for builder in _BUILDERS)
        return {figure.name: figure for figure in made if figure is not None}


def retained_scores(run: RunData) -> Figure | None:
    """R as a heat map, each task shaded by its change since it was learned."""
    if len(run.scores) < 2:
        return None
    learned = run.learned
    changes = [
        [None if v is None or not learned[i] else v / learned[i] - 1 for i, v in enumerate(row)]  # type: ignore[operator]
        for row in run.scores
    ]
    span = max([0.02, *(abs(c) for row in changes for c in row if c is not None)])
    rows, columns = len(run.scores), len(run.tasks)
    with Plot(max(MEDIUM, 96 + 54 * columns), 36 + 38 * rows, "Scores after each stage") as plot:
        _matrix_axes(plot.axes, [f"after {short(name, 14)}" for name in run.stage_names], [short(task, 10) for task in run.tasks])
        for j, (name, row) in enumerate(zip(run.stage_names, run.scores, strict=True)):
            for i, (value, change) in enumerate(zip(row, changes[j], strict=True)):
                if value is None:
                    continue
                first = all(earlier[i] is None for earlier in run.scores[:j])
                tip = f"{run.tasks[i]} after {name}: {score_text(value)} {run.metrics[i] or ''}".rstrip()
                tip += "\nwhen learned" if first else f"\n{percent_text(None if change is None else 100 * change)} since it was learned"
                colour = BETTER if (change or 0) > 0 else WORSE
                _cell(plot, j, i, colour=colour, shade=abs(change or 0) / span, tip=tip, outlined=first)
                plot.axes.text(i, j - (0 if first else 0.14), score_text(value), ha="center", va="center", size=11, color=INK)
                if not first:
                    below = percent_text(None if change is None else 100 * change)
                    plot.axes.text(i, j + 0.23, below, ha="center", va="center", size=8.5, color=INK)
        panel = plot.panel("")
    return Figure(
        "retained",
        "What each stage did to earlier tasks",
        f"Rows: after learning a task. Shade: change since the task was learned (framed), full at ±{100 * span:.1f} %.",
        (panel,),
        (Key("better than when learned", "better"), Key("worse", "worse")),
        wide=columns > 8,
    )


def transfer(run: RunData) -> Figure | None:
    """FWT and BWT as bars."""
    pairs = (("FWT", run.fwt, run.fwt_absolute, ACCENT), ("BWT", run.bwt, run.bwt_absolute, series_colour(1)))
    kinds = [kind for kind in pairs if any(value is not None for value in kind[1])]
    if not kinds:
        return None
    height = 0.78 / len(kinds)
    with Plot(MEDIUM, 40 + len(run.tasks) * 18 * max(len(kinds), 2), "Transfer forward and backward") as plot:
        known = [value for _, values, _, _ in kinds for value in values if value is not None]
        low, high = min(0.0, *known, 0.0), max(0.0, *known, 0.0)
        margin = max(high - low, 1e-3)
        for k, (kind, values, differences, colour) in enumerate(kinds):
            for i, value in enumerate(values):
                if value is None:
                    continue
                y = i + (k - (len(kinds) - 1) / 2) * height
                (bar,) = plot.axes.barh(y, value, height * 0.86, color=colour)
                plot.tip(bar, f"{kind} of {run.tasks[i]}: {percent_text(value)} ({difference_text(differences[i])})")
                side = 1 if value >= 0 else -1
                text_x = value + side * 0.015 * margin
                plot.axes.text(text_x, y, percent_text(value), ha="left" if side > 0 else "right", va="center", size=9, color=INK)
        plot.axes.axvline(0, color=MUTED, linewidth=1)
        plot.axes.set_xlim(low - (0.2 if low < 0 else 0.02) * margin, high + (0.2 if high > 0 else 0.02) * margin)
        _task_rows(plot.axes, [short(task) for task in run.tasks])
        plot.axes.set_xlabel("%")
        panel = plot.panel("")
    legend = {"FWT": Key("FWT: when learned, against learned alone", "accent"), "BWT": Key("BWT: at the end, against when learned", "s1")}
    return Figure(
        "transfer",
        "Transfer between tasks",
        "Relative to each task's own score, so a small score makes a large percentage; absolute differences are in the table.",
        (panel,),
        tuple(legend[kind] for kind, *_ in kinds),
    )


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
            _task_rows(plot.axes, [short(name, 14) for name, _, _ in bars])
            plot.axes.set_xticks([])
            plot.axes.spines["bottom"].set_visible(False)
            panels.append(plot.panel(f"{task} · {run.metrics[i] or 'score'}"))
    if not panels:
        return None
    return Figure(
        "final",
        "Final scores beside single-task training and baselines",
        "Test scores after the last finished stage. Each panel has its own scale from zero.",
        tuple(panels),
        wide=True,
    )


def learning_curves(run: RunData) -> Figure | None:
    """Validation score an epoch, a panel a stage."""
    panels = []
    for stage, epochs in _stages(run):
        points = [(x, epoch.validation) for x, epoch in enumerate(epochs) if epoch.validation is not None]
        if not points:
            continue
        metric = next((epoch.metric for epoch in epochs if epoch.metric), "score")
        with Plot(SMALL, 152, f"Validation score in stage {stage}") as plot:
            _line(plot.axes, points, 0)
            best = [(x, epoch.validation) for x, epoch in enumerate(epochs) if epoch.best and epoch.validation is not None]
            if best:
                x, y = best[-1]
                (mark,) = plot.axes.plot([x], [y], "o", markersize=6, color=ACCENT)
                plot.tip(mark, f"best: epoch {epochs[x].epoch}, {metric} {score_text(y)}")
            _epoch_axis(plot.axes, epochs)
            panels.append(plot.panel(f"{stage_title(run, stage)} · {metric}"))
    caption = "Epoch 0 is before training. The dot marks the epoch that was kept."
    return Figure("learning", "Validation score an epoch", caption, tuple(panels), wide=True) if panels else None


def training_loss(run: RunData) -> Figure | None:
    """Training loss of the new task an epoch, a panel a stage."""
    return _loss_figure(run, "class/", "loss", "Training loss an epoch", "Mean over an epoch's steps, of the task that the stage learns.")


def retention_loss(run: RunData) -> Figure | None:
    """Retention loss of each past task an epoch, a panel a stage."""
    caption = "Mean squared distance to the frozen model's pseudo-labels, for each past task while a new one is learned."
    return _loss_figure(run, "retention/", "retention", "Knowledge-retention loss an epoch", caption)


def sampling_rates(run: RunData) -> Figure | None:
    """Rho over the steps of each stage, a line a past task."""
    panels, shown = [], set()
    for stage in run.events.stages:
        steps = [step for step in run.events.steps_of(stage) if step.rho]
        if not steps:
            continue
        # A step may be counted within its epoch; a line needs one axis.
        rising = all(a.step < b.step for a, b in pairwise(steps))
        with Plot(SMALL, 152, f"Sampling rates in stage {stage}") as plot:
            for name in dict.fromkeys(name for step in steps for name in step.rho):
                index = _index(run, name)
                shown.add((index, name))
                points = [(step.step if rising else x, step.rho[name]) for x, step in enumerate(steps) if name in step.rho]
                _line(plot.axes, points, index)
            plot.axes.set_ylim(bottom=0)
            plot.axes.set_xlabel("step" if rising else "logged step", loc="right")
            plot.axes.locator_params(axis="both", nbins=4)
            panels.append(plot.panel(stage_title(run, stage)))
    caption = "Share of the stage's users that are replayed for a past task: the more alike the masks of two tasks, the fewer."
    legend = tuple(series_key(name, index) for index, name in sorted(shown))
    return Figure("rho", "Sampling rate ρ of past tasks", caption, tuple(panels), legend, wide=True) if panels else None


def mask_similarity(run: RunData) -> Figure | None:
    """Similarity of the tasks' masks after the last stage that logged them."""
    masks = run.events.masks[-1] if run.events.masks else None
    if masks is None or len(masks.tasks) < 2:
        return None
    names, cells = masks.tasks, masks.similarity
    apart = [value for j, row in enumerate(cells) for i, value in enumerate(row) if i != j and value is not None]
    if not apart:
        return None
    low, high = min(apart), max(apart)
    span = max(high - low, 0.05)
    labels = [short(name, 10) for name in names]
    with Plot(max(MEDIUM, 84 + 56 * len(names)), 36 + 38 * len(names), "Similarity of task masks") as plot:
        _matrix_axes(plot.axes, labels, labels)
        for j, row in enumerate(cells[: len(names)]):
            for i, value in enumerate(row[: len(names)]):
                if value is None:
                    continue
                tip = f"{names[j]} and {names[i]}: {value:.4f}"
                _cell(plot, j, i, colour=ACCENT, shade=0 if i == j else 0.1 + 0.9 * (value - low) / span, tip=tip, outlined=i == j)
                plot.axes.text(i, j, f"{value:.3f}", ha="center", va="center", size=10.5, color=MUTED if i == j else INK)
        panel = plot.panel("")
    caption = f"Mean cosine over the masked layers after stage {masks.stage}. Shade: {low:.3f} to {high:.3f}."
    return Figure("similarity", "Similarity of task masks", caption, (panel,), wide=len(names) > 8)


def mask_histograms(run: RunData) -> Figure | None:
    """Histogram of mask values, a panel a task."""
    masks = run.events.masks[-1] if run.events.masks else None
    panels = []
    for name, counts in masks.histograms.items() if masks else ():
        total = sum(counts)
        if total <= 0:
            continue
        width = 1 / len(counts)
        with Plot(TINY, 104, f"Mask values of task {_index(run, name) + 1}") as plot:
            bars = plot.axes.bar(
                [(k + 0.5) * width for k in range(len(counts))], [100 * c / total for c in counts], width * 0.88, color=ACCENT
            )
            for k, (bar, count) in enumerate(zip(bars, counts, strict=True)):
                plot.tip(bar, f"{name}: {100 * count / total:.1f} % of channels in {k * width:.2f} to {(k + 1) * width:.2f}")
            plot.axes.set_xlim(0, 1)
            plot.axes.set_xticks([0, 0.5, 1], ["closed", "0.5", "open"])
            plot.axes.tick_params(axis="x", pad=6)
            plot.axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
            plot.axes.locator_params(axis="y", nbins=3)
            plot.axes.grid(visible=False, axis="x")
            panels.append(plot.panel(name))
    caption = f"Share of channels by mask value after stage {masks.stage}: 0 blocks a channel, 1 lets it through." if masks else ""
    return Figure("histograms", "Mask values of each task", caption, tuple(panels), wide=len(panels) > 6) if panels else None


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
        plot.axes.set_xlim(0, longest * 1.22)
        _task_rows(plot.axes, [f"{time.stage} · {short(time.task, 14)}" for time in times])
        plot.axes.set_xlabel("seconds")
        panel = plot.panel("")
    order = [used[name] for name in ("training", "pseudo-labels", "evaluation", "other") if name in used]
    return Figure("seconds", "Time a stage", f"{seconds_text(run.seconds)} in all.", (panel,), tuple(order))


_BUILDERS: tuple[Callable[[RunData], Figure | None], ...] = (
    retained_scores,
    transfer,
    final_scores,
    learning_curves,
    training_loss,
    sampling_rates,
    retention_loss,
    mask_similarity,
    mask_histograms,
    stage_seconds,
)


def _loss_figure(run: RunData, prefix: str, name: str, title: str, caption: str) -> Figure | None:
    panels: list[Panel] = []
    shown: set[tuple[int, str]] = set()
    several = any(sum(term.startswith(prefix) for term in epoch.loss) > 1 for epoch in run.events.epochs)
    for stage, epochs in _stages(run):
        terms = dict.fromkeys(term for epoch in epochs for term in epoch.loss if term.startswith(prefix))
        if not terms:
            continue
        values = [epoch.loss[term] for epoch in epochs for term in terms if term in epoch.loss]
        with Plot(SMALL, 152, f"{title} in stage {stage}") as plot:
            for term in terms:
                # One line a panel needs no colour of its own; its task stands above it.
                index = _index(run, term.removeprefix(prefix)) if several else 0
                shown.add((index, term.removeprefix(prefix)))
                _line(plot.axes, [(x, epoch.loss[term]) for x, epoch in enumerate(epochs) if term in epoch.loss], index)
            if min(values) > 0 and max(values) > 30 * min(values):
                plot.axes.set_yscale("log")
                # the default writes powers as mathematical markup, which stands in the page as it is
                plot.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                plot.axes.yaxis.set_minor_formatter(lambda *_: "")
            _epoch_axis(plot.axes, epochs)
            panels.append(plot.panel(stage_title(run, stage)))
    legend = tuple(series_key(task, index) for index, task in sorted(shown)) if several else ()
    return Figure(name, title, caption, tuple(panels), legend, wide=True) if panels else None


def _line(axes: Axes, points: Sequence[tuple[float, float]], index: int) -> None:
    stride = -(-len(points) // MAX_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    marker = "o" if len(kept) <= 2 else ""
    axes.plot(*zip(*kept, strict=True), color=series_colour(index), linestyle=series_dash(index), marker=marker, markersize=4)


def _stages(run: RunData) -> list[tuple[int, list[Epoch]]]:
    return [(stage, run.events.epochs_of(stage)) for stage in dict.fromkeys(epoch.stage for epoch in run.events.epochs)]


def stage_title(run: RunData, stage: int) -> str:
    """Return a stage's number and task."""
    place = run.tasks[stage - 1] if 0 < stage <= len(run.tasks) else ""
    return f"{stage} · {run.events.stages.get(stage) or place}"


def _index(run: RunData, name: str) -> int:
    return run.tasks.index(name) if name in run.tasks else len(run.tasks)


def _epoch_axis(axes: Axes, epochs: list[Epoch]) -> None:
    """Label an axis of consecutive epochs; a stage with several phases counts through."""
    from matplotlib.ticker import MaxNLocator

    first = epochs[0].epoch
    several = len({epoch.phase for epoch in epochs}) > 1
    if not several and first:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value + first:.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=4)
    axes.set_xlabel("epoch" + (" through all phases" if several else ""), loc="right")


def _task_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _matrix_axes(axes: Axes, rows: list[str], columns: list[str]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(top=False, labeltop=True, labelbottom=False, labelcolor=INK, labelsize=10)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(plot: Plot, row: int, column: int, *, colour: str, shade: float, tip: str, outlined: bool) -> None:
    """Draw a matrix's cell; the shade stays below 0.6 so that numbers on it can be read on a light and on a dark page."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    edge = MUTED if outlined else LINE
    cell = Rectangle(
        (column - 0.47, row - 0.46),
        0.94,
        0.92,
        facecolor=to_rgba(colour, 0.58 * min(shade, 1)),
        edgecolor=edge,
        linewidth=1.2 if outlined else 0.7,
    )
    plot.axes.add_patch(cell)
    plot.tip(cell, tip)
