"""Reading loosely typed JSON values, and writing numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

from dist_teracon.text import NO_BREAK, cells, cropped, seconds_text

__all__ = ["NONE", "NO_BREAK", "seconds_text"]

NONE = "–"


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


def number_text(value: float | None, decimals: int) -> str:
    """Write a number with so many decimals."""
    return NONE if value is None else f"{value:.{decimals}f}"


def signed_text(value: float | None, decimals: int) -> str:
    """Write a signed number with so many decimals; a value that rounds to nothing has no sign."""
    return NONE if value is None else _signed(value, decimals)


def percent_text(value: float | None) -> str:
    """Write a signed percentage with one decimal; a value that rounds to nothing has no sign."""
    return NONE if value is None else _signed(value, 1) + NO_BREAK + "%"


def difference_text(value: float | None) -> str:
    """Write a signed difference of scores with four decimals."""
    return NONE if value is None else _signed(value, 4)


def count_text(value: int | None) -> str:
    """Write a count in groups of three digits."""
    return NONE if value is None else f"{value:,}".replace(",", NO_BREAK)


def error_text(value: float | None) -> str:
    """Write a standard error in percent, `± 4.1 %`."""
    return NONE if value is None else f"±{NO_BREAK}{value:.1f}{NO_BREAK}%"


def percent_error_text(value: float | None, error: float | None) -> str:
    """Write a signed percentage with its standard error, as `−9.2 ± 4.1 %`; without one the percentage alone."""
    if value is None or error is None:
        return percent_text(value)
    return NO_BREAK.join((_signed(value, 1), "±", f"{error:.1f}", "%"))


def share_text(value: float | None) -> str:
    """Write a share as a percentage with as many digits as tell it from nothing: `25 %`, `2.3 %`, `0.25 %`."""
    if value is None:
        return NONE
    percent = 100 * value
    decimals = 0 if percent >= 9.95 or percent == 0 else 1 if percent >= 0.995 else 2
    return f"{percent:.{decimals}f}{NO_BREAK}%"


def verdict(difference: float | None, error: float | None) -> str:
    """Return `better` or `worse` for a difference beyond its standard error; empty for one up to it, and where none is known."""
    # of few users, differences are often the error itself, up to rounding
    if difference is None or error is None or abs(difference) <= error * (1 + 1e-9):
        return ""
    return "better" if difference > 0 else "worse"


def relative(error: float | None, base: float | None) -> float | None:
    """Return an error of a score in percent of a score."""
    return 100 * error / base if error is not None and base else None


def short(name: str, width: int = 18) -> str:
    """Cut the middle of a name wider than `width` cells, as names often differ at their ends; tables hold it whole."""
    if cells(name) <= width:
        return name
    tail = ""
    for sign in reversed(name):
        if cells(sign + tail) > width // 3:
            break
        tail = sign + tail
    return f"{cropped(name, width - cells(tail.lstrip()))}{tail.lstrip()}"


def _signed(value: float, decimals: int) -> str:
    text = f"{abs(value):.{decimals}f}"
    if not text.strip("0."):
        return text
    return ("−" if value < 0 else "+") + text
