"""What the figures share: sizes, labels of tasks, lines, axes of epochs, cells of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_teracon.report.events import Epoch
from dist_teracon.report.plot import INK, LINE, MUTED, Plot, series_colour, series_dash
from dist_teracon.report.run_data import RunData
from dist_teracon.report.values import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

TINY, SMALL, MEDIUM = 230, 270, 360
MAX_POINTS = 400
# Matrices of more tasks have smaller cells without numbers, which are in the tooltips and in the tables.
NUMBERED_CELLS = 8


def task_label(number: int, name: str, width: int = 14) -> str:
    """Return a task's number, counted from 1, and as much of its name as an axis has room for; the page lists the whole names."""
    return f"{number} {short(name, width)}"


def line(axes: Axes, points: Sequence[tuple[float, float]], colour: str, dash: object = "solid") -> Line2D:
    """Draw a line through at most `MAX_POINTS` of the points, the last one among them."""
    stride = -(-len(points) // MAX_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    marker = "o" if len(kept) <= 2 else ""
    (drawn,) = axes.plot(*zip(*kept, strict=True), color=colour, linestyle=dash, marker=marker, markersize=4)
    return drawn


def series_line(axes: Axes, points: Sequence[tuple[float, float]], index: int) -> Line2D:
    """Draw the line of the index-th series."""
    return line(axes, points, series_colour(index), series_dash(index))


def stage_epochs(run: RunData) -> list[tuple[int, list[Epoch]]]:
    """Return the stages with their epochs."""
    return [(stage, run.events.epochs_of(stage)) for stage in dict.fromkeys(epoch.stage for epoch in run.events.epochs)]


def stage_title(run: RunData, stage: int) -> str:
    """Return a stage's number and task."""
    place = run.tasks[stage - 1] if 0 < stage <= len(run.tasks) else ""
    return f"{stage} {run.events.stages.get(stage) or place}"


def index_of(run: RunData, name: str) -> int:
    """Return a task's place, which is its series; that after the last for one of another run."""
    return run.tasks.index(name) if name in run.tasks else len(run.tasks)


def epoch_axis(axes: Axes, epochs: list[Epoch]) -> None:
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


def name_rows(plot: Plot, names: Sequence[str]) -> None:
    """Name the rows of horizontal bars."""
    plot.rows(names)
    plot.axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
    plot.axes.set_ylim(len(names) - 0.5, -0.5)
    plot.axes.grid(visible=False, axis="y")
    plot.axes.spines["left"].set_visible(False)


def matrix_axes(plot: Plot, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns of a matrix, whose cell (j, i) has its centre at (i, j)."""
    plot.axes.set_xlim(-0.5, len(columns) - 0.5)
    plot.axes.set_ylim(len(rows) - 0.5, -0.5)
    plot.rows(rows)
    plot.columns(columns)
    plot.axes.tick_params(top=False, labeltop=True, labelbottom=False, labelcolor=INK, labelsize=10)
    plot.axes.grid(visible=False)
    for spine in plot.axes.spines.values():
        spine.set_visible(False)


def cell(plot: Plot, row: int, column: int, *, colour: str, shade: float, tip: str, outlined: bool) -> None:
    """Draw a matrix's cell; the shade stays below 0.6 so that numbers on it can be read on a light and on a dark page."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    drawn = Rectangle(
        (column - 0.47, row - 0.46),
        0.94,
        0.92,
        facecolor=to_rgba(colour, 0.58 * min(shade, 1)),
        edgecolor=MUTED if outlined else LINE,
        linewidth=1.2 if outlined else 0.7,
    )
    plot.axes.add_patch(drawn)
    plot.tip(drawn, tip)
