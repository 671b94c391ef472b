"""Text on a terminal: how wide it is, where a line may break, and how a duration is written.

Widths are counted in cells, of which a sign of Korean, Chinese or Japanese takes two and a combining mark none.
"""

from __future__ import annotations

import os
import unicodedata
from typing import TextIO

NO_BREAK = "\u00a0"


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
