"""Values of a recipe: comparisons, moments, names. Each is taken exactly as it is written, or refused with what to write instead."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(rf"\s*(<=|>=|==|!=|<|>|=)\s*({_NUMBER})\s*", re.ASCII)
# Values are read as float64, in which whole numbers from here on are rounded.
_EXACT_BELOW = 2**53

_MOMENT = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})(?:(?:[Tt]|[ \t]+)(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?)?"
    r"[ \t]*(Z|z|UTC|GMT|[-+]\d{1,2}(?::?\d{2})?)?",
    re.ASCII,
)
_COMPACT = re.compile(r"\d{8}", re.ASCII)
_FURTHEST_ZONE_H = 18
# Larger numbers are no seconds of this or the next thousand years, but milliseconds and less.
_MOST_SECONDS = 1e11


def parse_comparisons(text: str) -> list[tuple[Callable[[Any, Any], Any], float]]:
    """Parse `<= 3` or `> 1, < 4` (all must hold) into (operator, number) pairs.

    Raises:
        ValueError: anything else, or a number that float64 does not hold exactly.
    """
    pairs = []
    for part in text.split(","):
        if (match := _COMPARISON.fullmatch(part)) is None:
            raise ValueError("expected comparisons such as '<= 3' or '> 1, < 4' (<, <=, ==, !=, >=, > and a number)")
        pairs.append((_OPERATORS[match.group(1)], exact(float(match.group(2)))))
    return pairs


def exact(number: float) -> float:
    """Return a number that values can be compared with.

    Raises:
        ValueError: it lies where neighbouring whole numbers are the same to float64.
    """
    if not abs(number) < _EXACT_BELOW:
        raise ValueError(
            "numbers are compared exactly up to 2^53 (about 9e15); use names, as a column of types or classes, for larger ones"
        )
    return number


def number_text(number: float) -> str:
    """Write a number so that it is read back as it is: whole ones without a point."""
    return str(int(number)) if float(number).is_integer() and abs(number) < _EXACT_BELOW else repr(float(number))


def bin_names(edges: Sequence[float]) -> list[str]:
    """Name the classes between edges: `<18`, `18-24`, …, `56+`, as intervals where the edges are not whole numbers."""
    if all(float(edge).is_integer() for edge in edges):
        whole = [int(edge) for edge in edges]
        between = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(whole)]
        return [f"<{whole[0]}", *between, f"{whole[-1]}+"]
    texts = [number_text(edge) for edge in edges]
    between = [f"[{low}, {high})" for low, high in pairwise(texts)]
    return [f"<{texts[0]}", *between, f"{texts[-1]}+"]


def _comparisons(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"== {value if isinstance(value, int) else number_text(value)}"
    elif isinstance(value, str) and re.fullmatch(_NUMBER, value.strip(), re.ASCII):
        value = f"== {value.strip()}"  # YAML reads 1e6 as text
    if isinstance(value, str):
        parse_comparisons(value)
    return value


def _edge(value: Any) -> Any:
    return exact(value) if isinstance(value, int | float) else value


def _seconds(value: Any, info: ValidationInfo) -> Any:
    """Return a moment's seconds since 1970; one without a time zone is in the recipe's, which is UTC by default."""
    zone = (info.context or {}).get("timezone", UTC)
    if isinstance(value, int | float):
        return _checked_number(value)
    if isinstance(value, str):
        return _parsed(value.strip(), zone)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=zone)).timestamp()
    return value


def _checked_number(value: float) -> float:
    """Return seconds since 1970.

    Raises:
        ValueError: the number is rather a date without its hyphens, or counts something else than seconds.
    """
    digits = str(value)
    if isinstance(value, int) and len(digits) in (6, 8, 12, 14) and (day := _compact_date(digits)):
        raise ValueError(
            f"a bare number counts seconds since 1970, and this one looks like a date: write '{day}' (or {value}.0 where seconds are meant)"
        )
    if abs(value) >= _MOST_SECONDS:
        for unit, per_second in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
            if abs(value) / per_second < _MOST_SECONDS / 10:
                moment = datetime(1970, 1, 1) + timedelta(seconds=value / per_second)
                raise ValueError(f"expected seconds since 1970; in {unit} it is {moment:%Y-%m-%d %H:%M:%S} UTC: write that date")
        raise ValueError("expected seconds since 1970, or a date (2026-01-31)")
    return value


def _compact_date(digits: str) -> str:
    """Return the date that digits write without hyphens (YYYYMM, YYYYMMDD, and with a time), or nothing."""
    try:
        moment = datetime.strptime(digits, {6: "%Y%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}[len(digits)])
    except ValueError:
        return ""
    if not 1900 <= moment.year <= 2100:
        return ""
    return f"{moment:%Y-%m-%d}" + (f"T{moment:%H:%M:%S}" if len(digits) > 8 else "")


def _parsed(text: str, zone: tzinfo) -> float:
    if _COMPACT.fullmatch(text):
        text = f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if (match := _MOMENT.fullmatch(text)) is None:
        raise ValueError("expected a date (2026-01-31), a date with a time (2026-01-31T18:00:00+09:00), or seconds since 1970")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        raise ValueError("no such day in the calendar") from None
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        raise ValueError("no such day and time: hours run from 00 to 23; midnight at a day's end is 00:00 of the next day")
    moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    moment += timedelta(microseconds=int((fraction or "").ljust(6, "0")[:6] or 0))
    try:
        return moment.replace(tzinfo=_zone(offset) if offset else zone).timestamp()
    except OverflowError:
        raise ValueError("lies outside of the calendar") from None


def _zone(text: str) -> tzinfo:
    if text.upper() in ("Z", "UTC", "GMT"):
        return UTC
    hours, _, minutes = text[1:].partition(":")
    if not minutes and len(hours) > 2:
        hours, minutes = hours[:-2], hours[-2:]
    if int(hours) >= _FURTHEST_ZONE_H or int(minutes or 0) > 59:
        raise ValueError(f"no such day and time: offsets from UTC lie between -{_FURTHEST_ZONE_H}:00 and +{_FURTHEST_ZONE_H}:00")
    offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
    return timezone(-offset if text[0] == "-" else offset)


def zone_of(name: Any) -> tzinfo:
    """Return the time zone of a recipe's `columns.timezone`; UTC for none, and for what its own check refuses."""
    try:
        return ZoneInfo(name) if isinstance(name, str) and name else UTC
    except (KeyError, ValueError, OSError):
        return UTC


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is a truth value to YAML, as yes, no, on, off, true and false are; write the name in quotes")  # noqa: TRY004 (of a validator)
    return repr(value) if isinstance(value, float) else value


def _texts(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else (value,) if isinstance(value, str | int | float) else None
    return value if values is None else tuple(map(_text, values))


def clean_name(name: str) -> str:
    """Return a task's name in one form of Unicode.

    Raises:
        ValueError: it cannot name a task.
    """
    name = unicodedata.normalize("NFC", name)
    if name == "items":
        raise ValueError("'items' cannot name a task: it is reserved for the items' own vocabulary")
    if not name or name != name.strip() or any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError(f"{name!r} cannot name a task: expected text of any script without line breaks and without blanks at its ends")
    return name


Comparisons = Annotated[str, BeforeValidator(_comparisons)]
Edge = Annotated[float, BeforeValidator(_edge), Field(allow_inf_nan=False)]
Moment = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class RecipePart(BaseModel):
    """A part of a recipe: frozen, without unknown fields, names as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        truths = [key for key, entry in value.items() if isinstance(entry, bool) and key != "repeats"] if isinstance(value, dict) else []
        if found := next(iter(truths), None):
            raise ValueError(f"{found} is a truth value to YAML, as yes, no, on, off, true and false are; write names in quotes")
        return value
