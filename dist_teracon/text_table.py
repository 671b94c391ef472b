"""Tables and paragraphs for a terminal of 80 columns: names fold where they are long, numbers are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

WIDTH = 80


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], *, names: Sequence[str] = ()) -> list[str]:
    """Return a table as lines; columns that are not `names` hold numbers, and stand to the right."""
    from rich.console import Console as Terminal
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for head in heads:
        table.add_column(Text(head), justify="left" if head in names else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=head not in names) for head, cell in zip(heads, row, strict=True)))
    text = StringIO()
    Terminal(file=text, width=WIDTH, highlight=False, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def folded(text: str, *, indent: str = "") -> list[str]:
    """Return a paragraph as lines, those after the first indented.

    Full-width letters count twice, a word longer than a line is cut, and a blank that does not break (U+00A0) becomes a plain one.
    """
    from rich.cells import cell_len, chop_cells

    lines: list[str] = []
    start = text[: len(text) - len(text.lstrip(" "))]
    line, empty = start, True
    for word in text.strip(" ").split(" "):
        longer = f"{line}{word}" if empty else f"{line} {word}"
        if not empty and cell_len(longer) > WIDTH:
            lines.append(line)
            longer = f"{indent}{word}"
        while cell_len(longer) > WIDTH:
            piece = chop_cells(longer, WIDTH)[0]
            lines.append(piece)
            longer = f"{indent}{longer[len(piece) :]}"
        line, empty = longer, False
    return [part.replace("\u00a0", " ") for part in (*lines, line)]
