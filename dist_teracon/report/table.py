"""The table at the end of a run: R, further metrics, single-task scores, transfer and baselines.

Where R does not fit, a task is a row: what it scored when learned and at the end, transfer, and the best baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from dist_teracon.evaluate.metrics import is_metric, parse_metric
from dist_teracon.report.run_data import Column, RunData
from dist_teracon.report.summary import backward_verdicts, forward_verdicts, headline
from dist_teracon.report.values import (
    NO_BREAK,
    count_text,
    difference_text,
    error_text,
    number_text,
    percent_text,
    relative,
    score_text,
    seconds_text,
    signed_text,
)
from dist_teracon.text import cells as width_of
from dist_teracon.text import folded, padded, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Makes a text fit for where it is printed.
Convert = Callable[[str], str]

# Elsewhere than on a terminal, lines may be this long.
PLAIN_WIDTH = 160
_GAP = "  "
_COLOURS = {"better": "green", "worse": "red"}
_NARROWEST_NAME = 8
_NOTHING = ("", score_text(None))


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, one text a task, and the group of rows that it stands in.

    `verdicts` are, one a task, `better` or `worse` for a change beyond its standard error.
    """

    name: str
    cells: tuple[str, ...]
    group: str
    strong: bool = False
    verdicts: tuple[str, ...] = ()


def score_rows(run: RunData) -> list[Row]:
    """Return the rows that the terminal and the page show, in their order; groups are `stages`, `metrics`, `transfer`, `baselines`,
    `examples`.

    Tasks that a stage did not evaluate have a blank cell in R, a dash elsewhere.
    """
    last = len(run.scores) - 1
    rows = [
        Row(f"after {name}", _blank_where_none(row), "stages", j == last)
        for j, (name, row) in enumerate(zip(run.stage_names, run.scores, strict=True))
    ]
    for name in run.further_metrics:
        rows.append(Row(f"final {metric_title(name)}", _blank_where_none(run.final_by(name)), "metrics"))
    rows += _transfer_rows(run)
    if run.baselines:
        svd = tuple(entry.score if entry else None for entry in run.baselines.svd_logistic_regression)
        for name, column in (("popularity", run.baselines.popularity), ("majority", run.baselines.majority), ("SVD + LR", svd)):
            rows.append(Row(name, tuple(map(score_text, column)), "baselines"))
    rows.append(Row("test examples", tuple(map(count_text, run.test_examples)), "examples"))
    return [row for row in rows if row.group == "stages" or any(cell not in _NOTHING for cell in row.cells)]


def _transfer_rows(run: RunData) -> list[Row]:
    forward, backward = tuple(forward_verdicts(run)), tuple(backward_verdicts(run))
    fwt_error = tuple(map(relative, run.fwt_error, run.single_task))
    bwt_error = tuple(map(relative, run.bwt_error, run.learned))
    return [
        Row("learned alone", tuple(map(score_text, run.single_task)), "transfer"),
        Row("FWT", tuple(map(percent_text, run.fwt)), "transfer", verdicts=forward),
        Row("FWT, standard error", tuple(map(error_text, fwt_error)), "transfer"),
        Row("FWT, absolute", tuple(map(difference_text, run.fwt_absolute)), "transfer", verdicts=forward),
        Row("BWT", tuple(map(percent_text, run.bwt)), "transfer", verdicts=backward),
        Row("BWT, standard error", tuple(map(error_text, bwt_error)), "transfer"),
        Row("BWT, absolute", tuple(map(difference_text, run.bwt_absolute)), "transfer", verdicts=backward),
    ]


def metric_title(name: str) -> str:
    """Return a metric's name, with its direction where lower is better."""
    lower = is_metric(name) and not parse_metric(name).higher_is_better
    return f"{name} (lower is better)" if lower else name


def _blank_where_none(column: Column) -> tuple[str, ...]:
    return tuple("" if value is None else score_text(value) for value in column)


@dataclass(frozen=True)
class Grid:
    """A table as it is printed: a head, rows of texts, which columns stand at the left, and how rows and cells look.

    Attributes:
        head: Lines of the head, each a text a column.
        rows: A text a column.
        left: Columns that stand at the left; the others hold numbers.
        styles: Of each row.
        marks: Of single cells: (row, column) to style.
        ends: Rows after which a group ends.
    """

    head: list[list[str]]
    rows: list[list[str]]
    left: frozenset[int]
    styles: list[str]
    marks: dict[tuple[int, int], str]
    ends: frozenset[int] = frozenset()

    @property
    def widths(self) -> list[int]:
        """Cells of each column."""
        return [max(map(width_of, column)) for column in zip(*self.head, *self.rows, strict=True)]

    @property
    def width(self) -> int:
        """Cells of the whole."""
        return sum(self.widths) + len(_GAP) * (len(self.widths) - 1)


def print_scores(run: RunData, console: Console | None = None) -> None:
    """Print a run's scores: coloured on a terminal and no wider than it is, in ASCII signs elsewhere.

    Args:
        run: The run, finished or not.
        console: Where to print; standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    width = console.width if console.is_terminal else PLAIN_WIDTH
    signs = console.is_terminal and console.encoding.startswith("utf")
    convert = printable if signs else partial(_plain, encoding=console.encoding)
    title = convert(_title(run))
    lines = [Text(line, style="bold") for line in (wrapped(title, width) if console.is_terminal else [title])]
    if run.scores:
        grid = fitting_grid(run, width, convert)
        lines += _styled(grid, signs=signs) if grid.width <= width else map(Text, task_blocks(run, width, convert))
    lines += map(Text, wrapped(convert(headline(run)), width) if console.is_terminal else [convert(headline(run))])
    for line in lines:
        if console.is_terminal:
            console.print(line, soft_wrap=True)
        else:  # rich ends the process by itself where a pipe is closed
            print(line.plain, file=console.file)


def fitting_grid(run: RunData, width: int, convert: Convert = str) -> Grid:
    """Return R with all that stands below it where that fits into `width` cells, else the table with a task a row."""
    grid = matrix(run, convert)
    return grid if grid.width <= width else task_rows(run, width, convert)


def matrix(run: RunData, convert: Convert = str) -> Grid:
    """Return the table with a task a column."""
    rows = score_rows(run)
    metrics = [metric or "score" for metric in run.metrics]
    head = [["", *(convert(task) for task in run.tasks)], ["", *map(convert, metrics)]]
    marks = {
        (k, i + 1): _COLOURS[word] for k, row in enumerate(rows) for i, word in enumerate(row.verdicts) if word
    }  # fmt: skip
    return Grid(
        head,
        [[convert(row.name), *map(convert, row.cells)] for row in rows],
        frozenset({0}),
        ["bold" if row.strong else ("dim" if row.group in ("baselines", "examples") else "") for row in rows],
        marks,
        frozenset(k for k, (row, after) in enumerate(pairwise(rows)) if row.group != after.group),
    )


def task_rows(run: RunData, width: int, convert: Convert = str) -> Grid:
    """Return the table with a task a row, and below it a row for each further metric; long names take several lines.

    Columns that no task has a value for are left out. Where even the shortest names do not fit, the lines are wider than `width`.
    """
    columns, rows, words = by_task(run)
    grid = Grid(
        [[convert(above) for above, _ in columns], [convert(name) for _, name in columns]],
        [list(map(convert, row)) for row in rows],
        frozenset({1, 2}),
        ["" if row[0] else "dim" for row in rows],
        {place: _COLOURS[word] for place, word in words.items()},
    )
    return _with_folded_names(grid, max(_NARROWEST_NAME, grid.widths[1] - max(0, grid.width - width)))


def task_blocks(run: RunData, width: int, convert: Convert = str) -> list[str]:
    """Return the same as a few lines a task, for a terminal that is too narrow for any table."""
    columns, rows, _ = by_task(run)
    lines: list[str] = []
    for number, task, metric, *numbers in rows:
        lines += wrapped(convert(f"{number} {task}"), width) if number else []
        known = [
            f"{' '.join(filter(None, column))} {text}".replace(" ", NO_BREAK)
            for column, text in zip(columns[3:], numbers, strict=True)
            if text not in _NOTHING
        ]
        lines += wrapped(f"  {convert(metric)}: {', '.join(known)}", width, indent="    ")
    return [line.replace(NO_BREAK, " ") for line in map(convert, lines)]


def by_task(run: RunData) -> tuple[list[tuple[str, str]], list[list[str]], dict[tuple[int, int], str]]:
    """Return the table with a task a row, and a row for each of its further metrics.

    Returns:
        Columns (two lines of a head each), rows, and the cells, by row and column, that are `better` or `worse` than nothing.
    """
    columns = [("", ""), ("", "task"), ("", "metric"), ("when", "learned"), ("", "final")]
    columns += [("", "FWT %"), ("", "±"), ("", "BWT %"), ("", "±"), ("best", "baseline")]
    rows: list[list[str]] = []
    words: dict[tuple[int, int], str] = {}
    verdicts = {5: forward_verdicts(run), 7: backward_verdicts(run)}
    for i, task in enumerate(run.tasks):
        words |= {(len(rows), column): judged[i] for column, judged in verdicts.items() if judged[i]}
        best = max((value for _, value in run.baselines.named(i)), default=None) if run.baselines else None
        forward = [signed_text(run.fwt[i], 1), number_text(relative(run.fwt_error[i], run.single_task[i]), 1)]
        backward = [signed_text(run.bwt[i], 1), number_text(relative(run.bwt_error[i], run.learned[i]), 1)]
        scores = [score_text(run.learned[i]), score_text(run.final[i])]
        rows.append([str(i + 1), task, run.metrics[i] or "score", *scores, *forward, *backward, score_text(best)])
        for name, by_stage in run.further_metrics.items():
            first, final = next((row[i] for row in by_stage if row[i] is not None), None), run.final_by(name)[i]
            if final is not None:
                rows.append(["", "", name, score_text(first), score_text(final), *[""] * 5])
    kept = [k for k in range(len(columns)) if k < 5 or any(row[k] not in _NOTHING for row in rows)]
    words = {(row, kept.index(column)): word for (row, column), word in words.items() if column in kept}
    return [columns[k] for k in kept], [[row[k] for k in kept] for row in rows], words


def _with_folded_names(grid: Grid, width: int) -> Grid:
    """Break the names in the second column into pieces of at most `width` cells, which go on in the lines of a task's further metrics."""
    rows: list[list[str]] = []
    styles: list[str] = []
    places: dict[int, int] = {}
    pieces: list[str] = []

    def finish() -> None:
        for piece in pieces:
            rows.append(["", piece, *[""] * (len(rows[-1]) - 2)])
            styles.append("")
        pieces.clear()

    for k, (row, style) in enumerate(zip(grid.rows, grid.styles, strict=True)):
        if row[0]:
            finish()
            pieces += folded(row[1], width)
        places[k] = len(rows)
        rows.append([row[0], pieces.pop(0) if pieces else "", *row[2:]])
        styles.append(style)
    finish()
    return Grid(grid.head, rows, grid.left, styles, {(places[k], column): style for (k, column), style in grid.marks.items()})


def _styled(grid: Grid, *, signs: bool) -> list[Text]:
    """Return the grid's lines; names come from users and may hold what rich reads as markup, so all is `Text`."""
    from rich.text import Text

    widths = grid.widths

    def line(texts: Sequence[str], style: str, marks: dict[int, str]) -> Text:
        parts = [padded(text, width, right=k not in grid.left) for k, (text, width) in enumerate(zip(texts, widths, strict=True))]
        whole = Text(style=style)
        for k, part in enumerate(parts):
            whole.append(part if k == len(parts) - 1 else part + _GAP, style=marks.get(k))
        whole.rstrip()
        return whole

    lines = [line(texts, "bold", {}) for texts in grid.head if any(texts)]
    rule = [Text(("─" if signs else "-") * grid.width, style="dim")]
    lines += rule
    for k, (texts, style) in enumerate(zip(grid.rows, grid.styles, strict=True)):
        lines.append(line(texts, style, {column: mark for (row, column), mark in grid.marks.items() if row == k}))
        lines += rule if k in grid.ends else []
    return [*lines, *rule]


def _title(run: RunData) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    time = "" if run.seconds is None else f", {seconds_text(run.seconds)} in its stages"
    return f"{run.method} on {run.dataset_name}{seed}{time}"


def printable(text: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() or sign == NO_BREAK else "?" for sign in text)


def _plain(text: str, *, encoding: str) -> str:
    """Return a text in signs that any log can hold; of names, those that the encoding has."""
    for sign, plain in ((f"±{NO_BREAK}", "+-"), ("±", "+-"), ("−", "-"), ("–", "-"), (NO_BREAK, " ")):
        text = text.replace(sign, plain)
    return printable(text).encode(encoding, "replace").decode(encoding)
