"""A table of a comparison: Markdown in `tables.md`, and a card on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dist_teracon.compare.statistics import Estimate

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with a sentence above it.

    Attributes:
        title: The sentence.
        columns: Heads; the first is that of the rows' names.
        rows: Cells, the row's name first.
        marks: What the page shows of a cell by its row and column: `best`, `better` or `worse`.
        heading: A short name on the page, where the sentence is long.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    heading: str = ""

    def markdown(self) -> str:
        """Return the sentence and the table; a `|` in a name does not end its cell."""
        head, *rows = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (self.columns, *self.rows))
        lines = [f"| {head} |", "|" + "---|" * len(self.columns), *(f"| {row} |" for row in rows)]
        return "\n".join([self.title, "", *lines])


def made(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Sequence[str]],
    marks: Mapping[tuple[int, int], str] | None = None,
    *,
    heading: str = "",
) -> Table:
    """Return a table of any sequences."""
    return Table(title, tuple(columns), tuple(map(tuple, rows)), marks or {}, heading)


def score_cell(value: Estimate) -> str:
    """Write a score with its deviation over seeds and its interval."""
    if math.isnan(value.value):
        return NONE
    deviation = "" if value.deviation is None else f" ± {value.deviation:.4f}"
    return f"{value.value:.4f}{deviation} [{value.low:.4f}, {value.high:.4f}]"


def difference_cell(value: Estimate) -> str:
    """Write a difference of scores with its interval."""
    return NONE if math.isnan(value.value) else _with_interval(value, 4)


def percent_cell(value: Estimate) -> str:
    """Write a change in percent with its interval."""
    return NONE if math.isnan(value.value) else _with_interval(value, 1)


def signed(value: float, decimals: int) -> str:
    """Write a signed number with so many decimals; nothing is `+0.0`, from whichever side it is rounded."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def _with_interval(value: Estimate, decimals: int) -> str:
    found, low, high = (signed(number, decimals) for number in (value.value, value.low, value.high))
    return f"{found} [{low}, {high}]"


def p_cell(value: float) -> str:
    """Write a p-value."""
    return NONE if math.isnan(value) else f"{value:.3f}"
