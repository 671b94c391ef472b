"""Text on a terminal: how wide it is, where a line may break, tables, and how a duration is written.

Widths are counted in cells, of which a sign of Korean, Chinese or Japanese takes two and a combining mark none.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from io import StringIO
from typing import TextIO

NO_BREAK = "\u00a0"
WIDTH = 80  # of what is written for any terminal


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return sum(_sign_cells(sign) for sign in text)


def _sign_cells(sign: str) -> int:
    if unicodedata.category(sign) in ("Mn", "Me", "Cf") or "\u1160" <= sign <= "\u11ff":
        return 0  # combining; also the vowels and final consonants of decomposed Hangul
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text filled with blanks to a width in cells, at its right side or, with `right`, at its left."""
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks


def cropped(text: str, width: int) -> str:
    """Return a text of at most so many cells; what is left out is at its end, and an ellipsis stands for it."""
    if cells(text) <= width:
        return text
    kept, used = "", 1
    for sign in text:
        used += _sign_cells(sign)
        if used > width:
            break
        kept += sign
    return f"{kept.rstrip()}…" if width > 0 else ""


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Break a line at its blanks, so that no piece is wider than `width` cells unless a single word is.

    Blanks that do not break (as in `4.0 %`) stay.

    Args:
        text: One line.
        width: In cells.
        indent: Before every piece but the first.
    """
    if cells(text) <= width:
        return [text]
    lines: list[str] = []
    line = text[: len(text) - len(text.lstrip(" "))]
    empty = True
    for word in filter(None, text.split(" ")):
        if not empty and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            line, empty = indent, True
        line += word if empty else f" {word}"
        empty = False
    return [*lines, line]


def folded(text: str, width: int = WIDTH, *, indent: str = "") -> list[str]:
    """Break a line as `wrapped` does, and a word that is too long behind a hyphen or within it, so that every piece fits.

    Args:
        text: One line.
        width: In cells, more than the indent has by two.
        indent: Before every piece but the first.
    """
    pieces: list[str] = []
    for piece in wrapped(text, width, indent=indent):
        rest = piece
        while cells(rest) > width:
            least = len(indent) + 1 if rest.startswith(indent) else 1
            end = next(k for k in range(len(rest), least - 1, -1) if cells(rest[:k]) <= width or k == least)
            hyphen = max(rest.rfind(sign, 0, end) for sign in "-_./") + 1
            end = hyphen if 2 * hyphen > end else end
            pieces.append(rest[:end])
            rest = indent + rest[end:]
        pieces.append(rest)
    return pieces


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


def terminal_width(stream: TextIO) -> int:
    """Return the columns of the terminal behind a stream: the variable COLUMNS where it is set, 80 where nothing is known."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def seconds_text(value: float | None) -> str:
    """Write a duration: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`; a dash for none. Its blanks do not break."""
    return "–" if value is None else _duration(value).replace(" ", NO_BREAK)


def _duration(value: float) -> str:
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
