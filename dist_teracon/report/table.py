"""The table at the end of a run: R, further metrics, single-task scores, transfer and baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_teracon.evaluate.metrics import is_metric, parse_metric
from dist_teracon.report.run_data import Column, RunData
from dist_teracon.report.summary import headline
from dist_teracon.report.values import NO_BREAK, difference_text, percent_text, score_text, seconds_text

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, one text a task, and the group of rows that it stands in."""

    name: str
    cells: tuple[str, ...]
    group: str
    strong: bool = False


def score_rows(run: RunData) -> list[Row]:
    """Return the rows that the terminal and the page show, in their order; groups are `stages`, `metrics`, `transfer`, `baselines`.

    Tasks that a stage did not evaluate have a blank cell in R, a dash elsewhere.
    """
    last = len(run.scores) - 1
    rows = [
        Row(f"after {name}", _blank_where_none(row), "stages", j == last)
        for j, (name, row) in enumerate(zip(run.stage_names, run.scores, strict=True))
    ]
    optional: list[tuple[str, tuple[str, ...], str, Column]] = [
        (f"final {metric_title(name)}", _blank_where_none(run.final_by(name)), "metrics", run.final_by(name))
        for name in run.further_metrics
    ]
    optional += [
        ("learned alone", tuple(map(score_text, run.single_task)), "transfer", run.single_task),
        ("FWT", tuple(map(percent_text, run.fwt)), "transfer", run.fwt),
        ("FWT, absolute", tuple(map(difference_text, run.fwt_absolute)), "transfer", run.fwt_absolute),
        ("BWT", tuple(map(percent_text, run.bwt)), "transfer", run.bwt),
        ("BWT, absolute", tuple(map(difference_text, run.bwt_absolute)), "transfer", run.bwt_absolute),
    ]
    if run.baselines:
        svd = tuple(entry.score if entry else None for entry in run.baselines.svd_logistic_regression)
        for name, column in (("popularity", run.baselines.popularity), ("majority", run.baselines.majority), ("SVD + LR", svd)):
            optional.append((name, tuple(map(score_text, column)), "baselines", column))
    return rows + [Row(name, cells, group) for name, cells, group, values in optional if any(value is not None for value in values)]


def metric_title(name: str) -> str:
    """Return a metric's name, with its direction where lower is better."""
    lower = is_metric(name) and not parse_metric(name).higher_is_better
    return f"{name} (lower is better)" if lower else name


def _blank_where_none(column: Column) -> tuple[str, ...]:
    return tuple("" if value is None else score_text(value) for value in column)


def print_scores(run: RunData, console: Console | None = None) -> None:
    """Print a run's scores: a table on a terminal, aligned plain text elsewhere.

    Args:
        run: The run, finished or not.
        console: Where to print; standard output by default.
    """
    from rich.console import Console

    console = console or Console()
    rows = score_rows(run)
    if not console.is_terminal:
        for line in plain_lines(run, rows):
            console.out(line, highlight=False)
        return
    _print_rich(run, rows, console)


def plain_lines(run: RunData, rows: list[Row]) -> list[str]:
    """Return the table as aligned lines in ASCII signs, whatever their width."""
    names = ["", *(printable(row.name) for row in rows)]
    columns = [
        [f"{printable(task)} ({metric or 'score'})", *(_ascii(row.cells[i]) for row in rows)]
        for i, (task, metric) in enumerate(zip(run.tasks, run.metrics, strict=True))
    ]
    first = max(map(len, names))
    widths = [max(map(len, column)) for column in columns]
    table = [
        "  ".join([name.ljust(first), *(column[k].rjust(width) for column, width in zip(columns, widths, strict=True))]).rstrip()
        for k, name in enumerate(names)
    ]
    return [_title(run), *(table if rows else []), _ascii(printable(headline(run)))]


def _print_rich(run: RunData, rows: list[Row], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if rows:
        # Text, not str: names come from users and may hold what rich reads as markup.
        table = Table(title=Text(_title(run)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("", no_wrap=True)
        for task, metric in zip(run.tasks, run.metrics, strict=True):
            table.add_column(Text.assemble((printable(task), "bold"), "\n", (metric or "score", "dim")), justify="right", no_wrap=True)
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            style = "bold" if row.strong else ("dim" if row.group == "baselines" else "")
            cells = [Text(cell, style=_sign_style(cell, row.group)) for cell in row.cells]
            table.add_row(
                Text(printable(row.name)), *cells, style=style, end_section=following is not None and following.group != row.group
            )
        console.print(table)
    else:
        console.print(Text(_title(run), style="bold"))
    console.print(Text(printable(headline(run))))


def _title(run: RunData) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    time = "" if run.seconds is None else f", {seconds_text(run.seconds)}"
    return printable(f"{run.method} on {run.dataset_name}{seed}{time}")


def _sign_style(cell: str, group: str) -> str:
    if group != "transfer":
        return ""
    return {"−": "red", "+": "green"}.get(cell[:1], "")


def printable(text: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() or sign == NO_BREAK else "?" for sign in text)


def _ascii(text: str) -> str:
    return text.replace("−", "-").replace("–", "-").replace(NO_BREAK, " ")
