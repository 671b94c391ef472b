"""The figures of training: learning curves, losses, what is replayed, and the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from dist_teracon.report.axes import (
    NUMBERED_CELLS,
    SMALL,
    TINY,
    cell,
    epoch_axis,
    index_of,
    matrix_axes,
    series_line,
    stage_epochs,
    stage_title,
)
from dist_teracon.report.axes import line as draw_line
from dist_teracon.report.events import Step
from dist_teracon.report.plot import ACCENT, INK, MUTED, Figure, Key, Panel, Plot, series_colour, series_key
from dist_teracon.report.run_data import RunData
from dist_teracon.report.values import as_mapping, as_whole, score_text, share_text


def learning_curves(run: RunData) -> Figure | None:
    """Validation score an epoch with its standard error, a panel a stage."""
    panels, bands = [], False
    for stage, epochs in stage_epochs(run):
        points = [(x, epoch.validation) for x, epoch in enumerate(epochs) if epoch.validation is not None]
        if not points:
            continue
        metric = next((epoch.metric for epoch in epochs if epoch.metric), "score")
        with Plot(SMALL, 152, f"Validation score in stage {stage}") as plot:
            band = [
                (x, epoch.validation - epoch.error, epoch.validation + epoch.error)
                for x, epoch in enumerate(epochs)
                if epoch.validation is not None and epoch.error is not None
            ]
            if len(band) > 1:
                bands = True
                places, low, high = zip(*band, strict=True)
                plot.axes.fill_between(places, low, high, color=ACCENT, alpha=0.16, linewidth=0)
            draw_line(plot.axes, points, series_colour(0))
            best = [(x, epoch.validation, epoch.error) for x, epoch in enumerate(epochs) if epoch.best and epoch.validation is not None]
            if best:
                x, y, error = best[-1]
                (mark,) = plot.axes.plot([x], [y], "o", markersize=6, color=ACCENT)
                around = "" if error is None else f" ± {error:.4f}"
                plot.tip(mark, f"best: epoch {epochs[x].epoch}, {metric} {score_text(y)}{around}")
            epoch_axis(plot.axes, epochs)
            panels.append(plot.panel(f"{stage_title(run, stage)} · {metric}"))
    caption = "Epoch 0 is before training. The dot marks the epoch that was kept."
    caption += " Band: ± one standard error over validation users." if bands else ""
    return Figure("learning", "Validation score an epoch", caption, tuple(panels), wide=True) if panels else None


def training_loss(run: RunData) -> Figure | None:
    """Training loss of the new task an epoch, a panel a stage."""
    return _loss_figure(run, "class/", "loss", "Training loss an epoch", "Mean over an epoch's steps, of the task that the stage learns.")


def gradient_norms(run: RunData) -> Figure | None:
    """The gradient's length over the logged steps, a panel a stage."""
    panels: list[Panel] = []
    for stage in run.events.stages:
        steps = enumerate(run.events.steps_of(stage), start=1)
        points = [(float(place), step.gradient_norm) for place, step in steps if step.gradient_norm]
        if len(points) < 2:
            continue
        values = [value for _, value in points]
        with Plot(SMALL, 152, f"Length of the gradient in stage {stage}") as plot:
            draw_line(plot.axes, points, series_colour(0))
            if max(values) > 30 * min(values):
                plot.axes.set_yscale("log")
                plot.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                plot.axes.yaxis.set_minor_formatter(lambda *_: "")
            plot.axes.locator_params(axis="x", integer=True)
            plot.axes.set_xlabel("logged step", loc="right")
            panels.append(plot.panel(stage_title(run, stage)))
    caption = "Of the whole loss, before clipping. Where it jumps or grows without end, a lower learning rate or clipping helps."
    return Figure("gradient", "Length of the gradient", caption, tuple(panels), wide=True) if panels else None


def learning_rates(run: RunData) -> Figure | None:
    """The learning rate over the logged steps, a panel a stage in which it changes."""
    panels: list[Panel] = []
    for stage in run.events.stages:
        steps = enumerate(run.events.steps_of(stage), start=1)
        points = [(float(place), step.learning_rate) for place, step in steps if step.learning_rate is not None]
        if len({rate for _, rate in points}) < 2:
            continue
        with Plot(SMALL, 152, f"Learning rate in stage {stage}") as plot:
            draw_line(plot.axes, points, series_colour(0))
            plot.axes.set_ylim(bottom=0)
            plot.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            plot.axes.locator_params(axis="x", integer=True)
            plot.axes.set_xlabel("logged step", loc="right")
            panels.append(plot.panel(stage_title(run, stage)))
    caption = "Of what the stage learns anew; what earlier stages trained has its share of it (pretrained_lr_scale)."
    return Figure("rate", "Learning rate", caption, tuple(panels), wide=True) if panels else None


def retention_loss(run: RunData) -> Figure | None:
    """Retention loss of each past task an epoch, a panel a stage."""
    caption = "Mean squared distance to the frozen model's pseudo-labels, for each past task while a new one is learned."
    return _loss_figure(run, "retention/", "retention", "Knowledge-retention loss an epoch", caption)


def _loss_figure(run: RunData, prefix: str, name: str, title: str, caption: str) -> Figure | None:
    panels: list[Panel] = []
    shown: set[tuple[int, str]] = set()
    several = any(sum(term.startswith(prefix) for term in epoch.loss) > 1 for epoch in run.events.epochs)
    for stage, epochs in stage_epochs(run):
        terms = dict.fromkeys(term for epoch in epochs for term in epoch.loss if term.startswith(prefix))
        if not terms:
            continue
        values = [epoch.loss[term] for epoch in epochs for term in terms if term in epoch.loss]
        with Plot(SMALL, 152, f"{title} in stage {stage}") as plot:
            for term in terms:
                # One line a panel needs no colour of its own; its task stands above it.
                index = index_of(run, term.removeprefix(prefix)) if several else 0
                shown.add((index, term.removeprefix(prefix)))
                drawn = series_line(plot.axes, [(x, epoch.loss[term]) for x, epoch in enumerate(epochs) if term in epoch.loss], index)
                plot.tip(drawn, term.removeprefix(prefix))
            if min(values) > 0 and max(values) > 30 * min(values):
                plot.axes.set_yscale("log")
                # the default writes powers as mathematical markup, which stands in the page as it is
                plot.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                plot.axes.yaxis.set_minor_formatter(lambda *_: "")
            epoch_axis(plot.axes, epochs)
            panels.append(plot.panel(stage_title(run, stage)))
    legend = _task_keys(run, shown) if several else ()
    return Figure(name, title, caption, tuple(panels), legend, wide=True) if panels else None


def replayed_shares(run: RunData) -> Figure | None:
    """The share of a batch that is replayed for each past task over the steps of each stage, a line a task, one where all are alike."""
    panels: list[Panel] = []
    shown: set[tuple[int, str]] = set()
    formula: list[float] = []
    differs = alike = turns = False
    for stage in run.events.stages:
        steps, batch = [step for step in run.events.steps_of(stage) if step.rho or step.rows], run.batch_of(stage)
        if not steps:
            continue
        drawn_rows = [[step.rows[name] for step in steps if name in step.rows] for name in {name for step in steps for name in step.rows}]
        turns |= any(0 in rows and any(rows) for rows in drawn_rows)  # a task without users to replay has none in any step
        # A step may be counted within its epoch; a line needs one axis.
        rising = all(a.step < b.step for a, b in pairwise(steps))
        names = list(dict.fromkeys(name for step in steps for name in (*step.rho, *step.rows)))
        lines = {name: points for name in names if (points := _shares(steps, name, batch, rising=rising))}
        names = list(lines)
        if not names:
            continue
        formula += [rho for step in steps for rho in step.rho.values()]
        differs |= any(abs(y - step.rho.get(name, y)) > 5e-4 for name in names for step, (_, y) in zip(steps, lines[name], strict=False))
        same = len(names) > 1 and len({tuple(points) for points in lines.values()}) == 1
        alike |= same
        with Plot(SMALL, 152, f"Replayed share in stage {stage}") as plot:
            for name in names[:1] if same else names:
                drawn = draw_line(plot.axes, lines[name], INK) if same else series_line(plot.axes, lines[name], index_of(run, name))
                plot.tip(drawn, _share_tip("each past task" if same else name, steps, lines[name], name, batch))
            if same or len(names) == 1:
                x, y = lines[names[0]][-1]
                plot.axes.annotate(share_text(y), (x, y), (0, 4), textcoords="offset points", ha="right", size=9.5, color=INK)
            shown |= set() if same else {(index_of(run, name), name) for name in names}
            plot.axes.set_ylim(bottom=0, top=1.25 * max(1e-6, *(y for points in lines.values() for _, y in points)))
            plot.axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            plot.axes.set_xlabel("step" if rising else "logged step", loc="right")
            plot.axes.locator_params(axis="x", nbins=4, integer=True)
            plot.axes.locator_params(axis="y", nbins=4)
            panels.append(plot.panel(stage_title(run, stage)))
    legend = (*((Key("each past task alike", "ink"),) if alike else ()), *_task_keys(run, shown))
    caption = _replay_caption(run, formula, differs=differs, turns=turns)
    title = "Share of a batch that is replayed for each past task"
    return Figure("rho", title, caption, tuple(panels), legend, wide=True) if panels else None


def _shares(steps: Sequence[Step], name: str, batch: int | None, *, rising: bool) -> list[tuple[float, float]]:
    """Return the replayed share at each step that knows it: rows by the batch, else what the formula gives.

    Of a task that has no row in some steps, as past tasks take turns on a budget, it is the mean of the steps so far.
    """
    points: list[tuple[float, float]] = []
    known = [step.rows[name] for step in steps if name in step.rows]
    drawn = iter([total / count for count, total in enumerate(accumulate(known), 1)] if 0 in known else known)
    for x, step in enumerate(steps):
        rows = next(drawn) if name in step.rows else None
        share = rows / batch if rows is not None and batch else step.rho.get(name)
        if share is not None:
            points.append((float(step.step if rising else x), share))
    return points


def _share_tip(title: str, steps: Sequence[Step], points: Sequence[tuple[float, float]], name: str, batch: int | None) -> str:
    rows, rates = [step.rows[name] for step in steps if name in step.rows], [step.rho[name] for step in steps if name in step.rho]
    tip = f"{title}: {_range([y for _, y in points])} of a batch"
    tip += f", {min(rows):.0f} to {max(rows):.0f} rows beside {batch}" if rows and batch else ""
    return f"{tip}\nby the formula {_range(rates)}" if rates else tip


def _range(shares: Sequence[float]) -> str:
    low, high = share_text(min(shares)), share_text(max(shares))
    return low if low == high else f"{low} to {high}"


def _replay_caption(run: RunData, formula: Sequence[float], *, differs: bool, turns: bool) -> str:
    caption = "Replayed rows of a past task, divided by the rows of a batch of the new one."
    if turns:
        caption += " Past tasks take turns on a budget (method.retention.budget), so a line is the mean of the logged steps so far."
    if not formula:
        return caption
    if not differs:
        return f"{caption} It follows ρ, the formula's sampling rate: the more alike the masks of two tasks, the fewer."
    minimum = as_whole(as_mapping(as_mapping(run.config.get("method")).get("retention")).get("minimum"))
    reason = "" if minimum is None or turns else f"; at least {minimum} rows are replayed (method.retention.minimum)"
    return f"{caption} The formula alone would give ρ = {_range(formula)}{reason}."


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
    numbers = [index_of(run, name) + 1 for name in names]
    full = len(names) <= NUMBERED_CELLS
    size = (max(300, 44 + 52 * len(names)), 30 + 36 * len(names)) if full else (36 + 17 * len(names), 24 + 17 * len(names))
    with Plot(*size, "Similarity of task masks") as plot:
        matrix_axes(plot, list(map(str, numbers)), list(map(str, numbers)))
        for j, row in enumerate(cells[: len(names)]):
            for i, value in enumerate(row[: len(names)]):
                if value is None:
                    continue
                tip = f"{numbers[j]} {names[j]} and {numbers[i]} {names[i]}: {value:.4f}"
                cell(plot, j, i, colour=ACCENT, shade=0 if i == j else 0.1 + 0.9 * (value - low) / span, tip=tip, outlined=i == j)
                if full:
                    plot.axes.text(i, j, f"{value:.3f}", ha="center", va="center", size=10.5, color=MUTED if i == j else INK)
        panel = plot.panel("")
    caption = f"Mean cosine over the masked layers after stage {masks.stage}, by task. Shade: {low:.3f} to {high:.3f}."
    return Figure("similarity", "Similarity of task masks", caption, (panel,))


def mask_histograms(run: RunData) -> Figure | None:
    """Histogram of mask values, a panel a task."""
    masks = run.events.masks[-1] if run.events.masks else None
    panels = []
    for name, counts in masks.histograms.items() if masks else ():
        total = sum(counts)
        if total <= 0:
            continue
        width = 1 / len(counts)
        with Plot(TINY, 104, f"Mask values of task {index_of(run, name) + 1}") as plot:
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
            panels.append(plot.panel(f"{index_of(run, name) + 1} {name}"))
    caption = f"Share of channels by mask value after stage {masks.stage}: 0 blocks a channel, 1 lets it through." if masks else ""
    return Figure("histograms", "Mask values of each task", caption, tuple(panels), wide=len(panels) > 6) if panels else None


def _task_keys(run: RunData, shown: set[tuple[int, str]]) -> tuple[Key, ...]:
    return tuple(series_key(f"{index + 1} {name}" if index < len(run.tasks) else name, index) for index, name in sorted(shown))


TRAINING_BUILDERS: tuple[Callable[[RunData], Figure | None], ...] = (
    learning_curves,
    training_loss,
    gradient_norms,
    learning_rates,
    replayed_shares,
    retention_loss,
    mask_similarity,
    mask_histograms,
)
