"""Times of events as whole nanoseconds since 1970, and whether they can be times of events at all.

Numbers are read in a stated unit, exactly, so that events within a microsecond keep their order. Dates are ISO 8601 (`T` or a blank
between date and time; `Z`, `UTC`, `+09`, `+0900` or `+09:00` behind it); those without a zone are in a stated one, UTC by default.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_teracon.errors import DataError

TimeUnit = Literal["s", "ms", "us", "ns", "date"]

# Decimal places of a unit's numbers that a nanosecond holds.
_PLACES = {"s": 9, "ms": 6, "us": 3, "ns": 0}
_LIMIT = 2**63 - 1
_NONE = -(2**63)
_COARSE_FROM = 10**15  # nanoseconds since 1970, from which doubles tell no single ones apart
_MINUTE_S = 60  # time zones change at whole minutes, some of them not at the hour

_NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_DATE = (
    r"^(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ Tt](?P<clock>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,](?P<part>[0-9]+))?)?"
    r" ?(?P<zone>[Zz]|UTC|GMT|[-+][0-9]{2}(?::?[0-9]{2})?)?$"
)
_DIGITS = r"^(?:[0-9]{8}|[0-9]{12}|[0-9]{14})(?:\.0*)?$"

# Events of a platform lie between these years, unless a recipe has others; the numbers of another unit do not.
YEARS = (1990, 2100)
_SHARE = 0.01  # of times that may lie outside

Int = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
        nanoseconds: int64 [R], 0 where there is none.
        missing: bool [R], rows where nothing stands.
        unreadable: bool [R], rows that are no time.
        beyond: bool [R], rows of a time that 64 bits do not hold, before 1678 or after 2261.
    """

    nanoseconds: Int
    missing: Mask
    unreadable: Mask
    beyond: Mask


@dataclass
class Plausibility:
    """Counts how many of a file's times can be times of events, in each unit that they might be in.

    Attributes:
        unit: The unit that numbers are read in.
        years: The first and the last year of events; 1990 and 2100 below stand for them.
        numbers: How many times are numbers.
        fitting: Of the numbers, how many lie between 1990 and 2100 by unit; `date` for 20200131 and the like.
        dates: How many times are dates, or of a type that has its own unit.
        outside: How many of the dates do not lie between 1990 and 2100.
        example: A number that does not fit.
    """

    unit: TimeUnit
    years: tuple[int, int] = YEARS
    numbers: int = 0
    fitting: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_PLACES, "date"), 0))
    dates: int = 0
    outside: int = 0
    example: float | None = None

    def add_numbers(self, values: NDArray[Any]) -> None:
        """Count numbers as they stand in the file."""
        self.numbers += len(values)
        if values.dtype.kind == "f":
            values = np.clip(values, -1e30, 1e30)
        own = self._fit(values, self.unit)
        self.fitting[self.unit] += int(own.sum())
        if own.all():
            return
        others = values[~own]  # a number fits one unit at most
        if self.example is None:
            self.example = float(others[0])
        for unit in self.fitting:
            if unit != self.unit:
                self.fitting[unit] += int(self._fit(others, unit).sum())

    @functools.cached_property
    def _seconds(self) -> tuple[int, int]:
        """When the first year begins and the last one has ended."""
        first, last = self.years
        return int(datetime(first, 1, 1, tzinfo=UTC).timestamp()), int(datetime(last + 1, 1, 1, tzinfo=UTC).timestamp())

    def _fit(self, values: NDArray[Any], unit: str) -> Mask:
        if unit != "date":
            scale, (first, end) = 10 ** (9 - _PLACES[unit]), self._seconds
            fit: Mask = (values >= first * scale) & (values < end * scale)
            return fit
        day = values // np.where(values >= 10**13, 10**6, np.where(values >= 10**11, 10**4, 1))
        month, of_month = day // 100 % 100, day % 100
        years = (day >= self.years[0] * 10_000) & (day < (self.years[1] + 1) * 10_000)
        dated: Mask = years & (month >= 1) & (month <= 12) & (of_month >= 1) & (of_month <= 31)
        return dated

    def add_dates(self, nanoseconds: Int, beyond: Mask | None = None) -> None:
        """Count times whose unit is certain."""
        seconds, (first, end) = nanoseconds // 10**9, self._seconds
        fit = (seconds >= first) & (seconds < end)
        if beyond is not None:
            fit &= ~beyond
        self.dates += len(fit)
        self.outside += int((~fit).sum())

    @property
    def strange(self) -> int:
        """How many times lie outside of 1990 to 2100."""
        return self.numbers - self.fitting[self.unit] + self.outside

    @property
    def implausible(self) -> bool:
        """Whether so many do that the unit may be another one."""
        return self.strange > _SHARE * (self.numbers + self.dates)

    def check(self, uri: str, column: str, *, dates_matter: bool) -> str | None:
        """Judge a file's times; returns a line for the reader where a few are no dates, or all of them and need not be.

        Args:
            uri: The file.
            column: Its column of times.
            dates_matter: Whether a date decides on events; otherwise times only order them.

        Raises:
            DataError: more than one in a hundred lies outside of 1990 to 2100, and another unit fits or dates matter.
        """
        outside, total = self.numbers - self.fitting[self.unit], self.numbers + self.dates
        if not self.strange:
            return None
        told = f"{uri}: column '{column}': {outside + self.outside} of {total} times lie outside of {self.years[0]} to {self.years[1]}"
        if outside and self.example is not None:
            told += f", as {self.example:.15g}, which read in {self.unit} is in the year {_year(self.example, self.unit)}"
        if not self.implausible:
            return f"{told}; events at these times are kept as they are"
        fits = {name: count for name, count in self.fitting.items() if name != self.unit}
        unit = max(fits, key=lambda name: fits[name])
        if fits[unit] > outside / 2:
            written = "dates of digits, as 20200131" if unit == "date" else unit
            if fits[unit] < self.numbers - _SHARE * total:
                raise DataError(f"{told}; {fits[unit]} of them are {written}, the others are not: write all in one unit")
            raise DataError(f"{told}; they are {written}: set columns.timestamp_unit: {unit} in the recipe")
        if dates_matter:
            raise DataError(
                f"{told}, and the recipe chooses events by date or keeps their times; columns.timestamp_unit (s, ms, us, ns, date) sets "
                "the unit of numbers, columns.timestamp the column, and columns.timestamp_years what is plausible, as [1970, 2030]"
            )
        return f"{told}; only their order is used"


def _year(value: float, unit: str) -> str:
    if unit == "date":
        return f"{value:.0f}"[:4]
    years = value / 10.0 ** (9 - _PLACES[unit]) / (365.2425 * 86400)
    return f"{1970 + years:.0f}" if abs(years) < 1e7 else f"{years:.0e}"


def read_times(column: Any, *, unit: TimeUnit, zone: ZoneInfo | None, seen: Plausibility) -> Times:
    """Read a column: text, numbers, or Arrow's dates and timestamps.

    Args:
        column: An Arrow array of R rows.
        unit: Of numbers.
        zone: Of dates without one; None for UTC.
        seen: Counts what is read.
    """
    kind = column.type
    missing = np.array(column.is_null())
    if pa.types.is_temporal(kind):
        return _typed(column, missing, zone, seen)
    if pa.types.is_integer(kind) and unit != "date" and not pa.types.is_uint64(kind):
        values = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        seen.add_numbers(values[~missing])
        return _scaled(values, missing, unit)
    if pa.types.is_floating(kind) and unit != "date":
        return _floats(column.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False), unit, seen)
    text = column if pa.types.is_string(kind) else _plain(column)
    return _texts(text, unit, zone, seen)


def _plain(column: Any) -> Any:
    """Return numbers as text without an exponent; a float that is not a number is missing."""
    if pa.types.is_floating(column.type):
        values = column.to_pylist()
        return pa.array([None if value is None or math.isnan(value) else format(Decimal(value), "f") for value in values], pa.string())
    return column.cast(pa.string())


def _scaled(values: Int, missing: Mask, unit: TimeUnit) -> Times:
    scale = int(10 ** _PLACES[unit])
    beyond = np.abs(values) > _LIMIT // scale
    beyond |= values == _NONE
    return Times(np.where(beyond | missing, 0, values) * scale, missing, np.zeros_like(missing), beyond)


def _floats(values: NDArray[np.float64], unit: TimeUnit, seen: Plausibility) -> Times:
    missing, unreadable = np.isnan(values), np.isinf(values)
    seen.add_numbers(values[~missing & ~unreadable])
    scale = 10.0 ** _PLACES[unit]
    beyond = ~missing & ~unreadable & (np.abs(values) >= _LIMIT / scale)
    values = np.where(missing | unreadable | beyond, 0.0, values)
    whole = np.floor(values)  # apart from the rest, so that the product is exact
    nanoseconds = whole.astype(np.int64) * int(scale) + np.rint((values - whole) * scale).astype(np.int64)
    # a double of today's seconds lies up to a tenth of a microsecond beside the number that it stands for
    coarse = np.abs(nanoseconds) >= _COARSE_FROM
    nanoseconds[coarse] = (nanoseconds[coarse] + 500) // 1000 * 1000
    return Times(nanoseconds, missing, unreadable, beyond)


def _typed(column: Any, missing: Mask, zone: ZoneInfo | None, seen: Plausibility) -> Times:
    kind = column.type
    local = getattr(kind, "tz", None) is None
    if pa.types.is_date32(kind):
        values, scale = column.cast(pa.int32()).cast(pa.int64()), 86_400 * 10**9
    elif pa.types.is_date64(kind):
        values, scale = column.cast(pa.int64()), 10**6
    else:
        values, scale = column.cast(pa.int64()), 10 ** _PLACES[kind.unit]
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    beyond = np.abs(numbers) > _LIMIT // scale
    nanoseconds = np.where(beyond, 0, numbers) * scale
    if local and zone is not None:
        nanoseconds = _to_utc(nanoseconds, zone)
    seen.add_dates(nanoseconds[~missing], beyond[~missing])
    return Times(nanoseconds, missing, np.zeros_like(missing), beyond)


def _texts(column: Any, unit: TimeUnit, zone: ZoneInfo | None, seen: Plausibility) -> Times:
    text = pc.utf8_trim_whitespace(column)
    missing = np.array(pc.fill_null(pc.is_in(text, pa.array(["", "NaN", "nan"])), False)) | np.array(column.is_null())
    nanoseconds, beyond = np.zeros(len(column), dtype=np.int64), np.zeros(len(column), dtype=bool)
    numeric = np.array(pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
    read = numeric.copy()
    if numeric.any():
        found = text.filter(pa.array(numeric))
        seen.add_numbers(found.cast(pa.float64()).to_numpy(zero_copy_only=False))
        if unit == "date":
            nanoseconds[numeric], read[numeric] = _digits(found, zone)
        else:
            nanoseconds[numeric], beyond[numeric] = _decimals(found, _PLACES[unit])
    dated = ~numeric & ~missing
    if dated.any():
        dated[dated] = np.asarray(pc.match_substring_regex(text.filter(pa.array(dated)), _DATE))
    if dated.any():
        nanoseconds[dated], read[dated], beyond[dated] = _dates(text.filter(pa.array(dated)), zone)
        good = dated & read
        seen.add_dates(nanoseconds[good], beyond[good])
    return Times(nanoseconds, missing, ~read & ~missing, beyond)


def _decimals(text: Any, places: int) -> tuple[Int, Mask]:
    """Return numbers times 10^`places`, rounded down, and which of them 64 bits do not hold."""
    try:
        words = np.frombuffer(text.cast(pa.decimal128(38, places)).buffers()[1], dtype=np.int64)[: 2 * len(text)].reshape(-1, 2)
        fits = words[:, 1] == words[:, 0] >> 63
        return np.where(fits, words[:, 0], 0), ~fits
    except pa.ArrowInvalid:  # too many digits
        values = [_decimal(value, places) for value in text.to_pylist()]
        return np.array([value or 0 for value in values], dtype=np.int64), np.array([value is None for value in values], dtype=bool)


def _decimal(text: str, places: int) -> int | None:
    """Return a number times 10^`places`, rounded down, None where 64 bits do not hold it."""
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent of more than 18 digits
        return None if float(text) else 0
    if not value or value.adjusted() + places < -1:
        return -1 if value < 0 else 0
    if value.adjusted() + places > 18:
        return None
    sign, digits, exponent = value.as_tuple()
    number, power = int("".join(map(str, digits))) * (-1 if sign else 1), int(exponent) + places
    scaled = int(number * 10**power) if power >= 0 else number // 10**-power
    return scaled if abs(scaled) <= _LIMIT else None


def _digits(text: Any, zone: ZoneInfo | None) -> tuple[Int, Mask]:
    """Return the nanoseconds of dates of digits (20200131, with hour and minute, with second), and which are dates."""
    shaped = pc.match_substring_regex(text, _DIGITS)
    digits = pc.utf8_slice_codeunits(pc.replace_substring_regex(text, r"\..*$", ""), 0, 14)
    pieces = [pc.utf8_slice_codeunits(digits, start, start + size) for start, size in ((0, 4), (4, 2), (6, 2), (8, 2), (10, 2), (12, 2))]
    pieces = pieces[:3] + [pc.if_else(pc.equal(piece, ""), "00", piece) for piece in pieces[3:]]
    iso = pc.binary_join_element_wise(pc.binary_join_element_wise(*pieces[:3], "-"), pc.binary_join_element_wise(*pieces[3:], ":"), " ")
    nanoseconds, read, _ = _dates(pc.if_else(shaped, iso, "0000-00-00"), zone)
    return nanoseconds, read


def _dates(text: Any, zone: ZoneInfo | None) -> tuple[Int, Mask, Mask]:
    """Return the nanoseconds of ISO dates, which are days and hours of the calendar, and which 64 bits do not hold."""
    fields = pc.extract_regex(text, _DATE)
    day, clock, part, written = (fields.field(number) for number in range(4))
    local = pc.binary_join_element_wise(day, pc.if_else(pc.equal(clock, ""), "00:00", clock), " ")
    try:
        seconds = local.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy(zero_copy_only=False)
        read = np.ones(len(text), dtype=bool)
    except pa.ArrowInvalid:  # a day that is not in the calendar
        found = [_seconds(value) for value in local.to_pylist()]
        read = np.array([value is not None for value in found], dtype=bool)
        seconds = np.array([value or 0 for value in found], dtype=np.int64)
    zones = written.dictionary_encode()
    offsets = [_offset(name) for name in zones.dictionary.to_pylist()]
    codes = zones.indices.to_numpy(zero_copy_only=False)
    read &= np.array([offset is not False for offset in offsets], dtype=bool)[codes]
    beyond = np.abs(seconds) > _LIMIT // 10**9 - 86_400
    padded = pc.utf8_slice_codeunits(pc.utf8_rpad(part, 9, "0"), 0, 9)
    nanoseconds = np.where(beyond, 0, seconds) * 10**9 + padded.cast(pa.int64()).to_numpy(zero_copy_only=False)
    shift = np.array([offset or 0 for offset in offsets], dtype=np.int64)[codes]
    nanoseconds -= shift * 10**9
    bare = np.array([offset is None for offset in offsets], dtype=bool)[codes]
    if zone is not None and bare.any():
        nanoseconds[bare] = _to_utc(nanoseconds[bare], zone)
    return nanoseconds, read, beyond & read


def _offset(zone: str) -> int | Literal[False] | None:
    """Return the seconds that a zone is ahead of UTC, None for no zone, False for one that there is not."""
    if not zone:
        return None
    if zone[0] not in "+-":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        return False
    return (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)


def _seconds(text: str) -> int | None:
    """Return a date's seconds since 1970, None where there is no such day or hour."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((moment - datetime(1970, 1, 1)) / timedelta(seconds=1))


def _to_utc(nanoseconds: Int, zone: ZoneInfo) -> Int:
    """Return the UTC of a zone's local times; an hour that comes twice is the first of the two."""
    minutes, place = np.unique(nanoseconds // (_MINUTE_S * 10**9), return_inverse=True)
    starts = (datetime(1970, 1, 1) + timedelta(seconds=_MINUTE_S * minute) for minute in minutes.tolist())
    offsets = np.array([_ahead(start, zone) for start in starts], dtype=np.int64)
    shifted: Int = nanoseconds - offsets[place.reshape(-1)] * 10**9
    return shifted


def _ahead(moment: datetime, zone: ZoneInfo) -> int:
    ahead = moment.replace(tzinfo=zone).utcoffset()
    assert ahead is not None
    return round(ahead / timedelta(seconds=1))
