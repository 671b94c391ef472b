"""The tables of a comparison on a terminal: in columns where they fit, else a variant a paragraph, so that no number is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from dist_teracon.text import cells, padded, wrapped

_GAP = "  "


def fitted(markdown: str, width: int) -> list[str]:
    """Return a page of tables as lines of at most `width` cells, unless a single word is longer."""
    lines: list[str] = []
    for is_table, block in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block)
            lines += _table(head, rows, width)
        else:
            lines += [piece for line in block for piece in wrapped(line, width)]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    widths = [max(map(cells, column)) for column in zip(head, *rows, strict=True)]
    if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        return [
            _GAP.join(padded(cell, column, right=k > 0) for k, (cell, column) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in (head, *rows)
        ]
    return [line for row in rows for line in _paragraph(head, row, width)]


def _paragraph(head: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """Yield a row's name, and below it a line a column."""
    yield from wrapped(row[0], width)
    names = max(map(cells, head[1:]), default=0)
    for name, cell in zip(head[1:], row[1:], strict=True):
        yield from wrapped(f"{_GAP}{padded(name, names)}{_GAP}{cell}", width, indent=3 * _GAP)
