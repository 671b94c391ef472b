"""Reading loosely typed JSON values, and writing numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
NO_BREAK = "\u00a0"


def as_mapping(value: object) -> dict[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a JSON array, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def as_number(value: object) -> float | None:
    """Return a finite number, or `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def as_whole(value: object) -> int | None:
    """Return a whole number, or `None` for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def score_text(value: float | None) -> str:
    """Write a score with four decimals."""
    return NONE if value is None else f"{value:.4f}"


def percent_text(value: float | None) -> str:
    """Write a signed percentage with one decimal; a value that rounds to nothing has no sign."""
    return NONE if value is None else _signed(value, 1) + NO_BREAK + "%"


def difference_text(value: float | None) -> str:
    """Write a signed difference of scores with four decimals."""
    return NONE if value is None else _signed(value, 4)


def count_text(value: int | None) -> str:
    """Write a count in groups of three digits."""
    return NONE if value is None else f"{value:,}".replace(",", NO_BREAK)


def seconds_text(value: float | None) -> str:
    """Write a duration: `0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return NONE
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


def short(name: str, length: int = 18) -> str:
    """Cut the middle of a name that would crowd out a figure, as names often differ at their ends; tables hold it whole."""
    if len(name) <= length:
        return name
    tail = length // 3
    return f"{name[: length - 1 - tail].rstrip()}…{name[-tail:].lstrip()}"


def _signed(value: float, decimals: int) -> str:
    text = f"{abs(value):.{decimals}f}"
    if not text.strip("0."):
        return text
    return ("−" if value < 0 else "+") + text
