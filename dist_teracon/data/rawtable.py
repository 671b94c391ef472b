"""Raw tables: delimited text and Parquet read by column, malformed rows counted and dropped.

Well-formed text is parsed by Arrow at once. Only where that fails are the columns read as text and looked at value by value, so
that an error can name its line.
"""

from __future__ import annotations

import io as std_io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.badrows import BadRows, column_missing
from dist_teracon.errors import DataError, nearest

_NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?)?(Z|[-+][0-9]{2}:?[0-9]{2})?$"
_TOLD = 100  # rows of a kind that are told one by one
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Wanted:
    """A column that is to be read.

    Attributes:
        kind: `token` (a name), `number`, or `time` (seconds since 1970, or an ISO date and time, read as UTC).
        required: Rows where it is empty are malformed.
        per_second: Of a time that is written as a number, 1000 for milliseconds.
    """

    kind: Literal["token", "number", "time"]
    required: bool = False
    per_second: float = 1.0


@dataclass(frozen=True)
class RawTable:
    """Columns of a raw file without its malformed rows.

    Attributes:
        columns: By name: a string array for a token, float64 with NaN for nothing otherwise; all of the same length.
        rows: Rows of the file, malformed ones included.
        where: From a position in the columns to the row's place in the file (`file:line`, or `file: row n` for Parquet).
    """

    columns: dict[str, Any]
    rows: int
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a number or time column."""
        values: NDArray[np.float64] = self.columns[name]
        return values


@dataclass(frozen=True)
class Dialect:
    """How a text file is laid out.

    Attributes:
        delimiter: One or more characters between the fields.
        quote: Quote character, or None where quotes are ordinary characters.
        encoding: Its encoding.
        header: Names of the columns where the file has no header line.
    """

    delimiter: str = "\t"
    quote: str | None = None
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None


def read_header(uri: str, dialect: Dialect) -> list[str]:
    """Return the column names of a text file.

    Raises:
        DataError: the file is empty, or two columns have one name.
    """
    if dialect.header is not None:
        names = list(dialect.header)
        if next(_filled_lines(uri, dialect), None) is None:
            raise DataError(f"{uri}: is empty")
    else:
        _, line = next(_filled_lines(uri, dialect), (0, ""))
        if not line.strip():
            raise DataError(f"{uri}: is empty; a header line and rows are wanted")
        names = [name.strip(dialect.quote or "") for name in line.split(dialect.delimiter)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{uri}:1: column '{twice[0]}' stands there more than once")
    return names


def read_delimited(uri: str, wanted: Mapping[str, Wanted], *, dialect: Dialect, bad: BadRows) -> RawTable:
    """Read columns of a text file; blank lines do not count.

    Raises:
        DataError: a missing or empty file, a missing column, bytes that are not text, no rows, or too many malformed rows.
    """
    header = read_header(uri, dialect)
    for name in wanted:
        if name not in header:
            raise column_missing(f"{uri}:1", name, header, nearest(name, header))
    try:
        fast = {name: pa.string() if want.kind == "token" else pa.float64() for name, want in wanted.items()}
        table, skipped = _parse(uri, fast, header, dialect)
    except pa.ArrowInvalid:
        for _ in _filled_lines(uri, dialect):  # raises for bytes that are not text, with their line
            pass
        try:
            table, skipped = _parse(uri, dict.fromkeys(wanted, pa.string()), header, dialect)
        except pa.ArrowInvalid as error:
            raise DataError(f"{uri}: cannot be read as delimited text ({error})") from None
    locate = _Locator(uri, dialect, [ordinal for ordinal, _ in skipped])
    for ordinal, message in skipped:
        bad.add("wrong number of columns", locate.place(ordinal), text=message)
    return _finish(uri, table, wanted, bad=bad, where=locate, malformed=len(skipped))


def read_parquet(uri: str, wanted: Mapping[str, Wanted], *, bad: BadRows) -> RawTable:
    """Read columns of a Parquet file.

    Raises:
        DataError: a missing file, one that is not Parquet, a missing column, no rows, or too many malformed rows.
    """
    with io.open_binary(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            header = parquet.schema_arrow.names
            for name in wanted:
                if name not in header:
                    raise column_missing(uri, name, header, nearest(name, header))
            table = parquet.read(columns=list(wanted))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{uri}: cannot be read as Parquet ({error}); was the file cut off?") from None
    columns = {}
    for name, want in wanted.items():
        column = table.column(name)
        try:
            if want.kind == "time" and pa.types.is_temporal(column.type):
                columns[name] = column
            elif want.kind != "token" and not pa.types.is_string(column.type):
                columns[name] = column.cast(pa.float64(), safe=False)
            else:
                columns[name] = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{uri}: column '{name}' is {column.type}, a {want.kind} is wanted") from None
    return _finish(uri, pa.table(columns), wanted, bad=bad, where=lambda row: f"{uri}: row {row + 1}", malformed=0)


def _parse(uri: str, types: Mapping[str, Any], header: Sequence[str], dialect: Dialect) -> tuple[Any, list[tuple[int, str]]]:
    """Return the table and, of rows with a wrong number of fields, the ordinal among filled lines and the text."""
    skipped: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        skipped.append((row.number, row.text))
        return "skip"

    delimiter = dialect.delimiter
    with io.open_binary(uri) as file:
        source: Any = file
        try:
            if len(delimiter) > 1:  # Arrow knows delimiters of one character only
                source = std_io.BytesIO(file.read().replace(delimiter.encode(), _SEPARATOR.encode()))
                delimiter = _SEPARATOR
            table = pa_csv.read_csv(
                source,
                read_options=pa_csv.ReadOptions(
                    use_threads=False, encoding=dialect.encoding, column_names=list(header), skip_rows=0, skip_rows_after_names=0
                )
                if dialect.header is not None
                else pa_csv.ReadOptions(use_threads=False, encoding=dialect.encoding),
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, quote_char=dialect.quote or False, invalid_row_handler=skip),
                convert_options=pa_csv.ConvertOptions(
                    column_types=types, include_columns=list(types), strings_can_be_null=True, null_values=[""], check_utf8=True
                ),
            )
        except (EOFError, OSError) as error:
            raise DataError(f"{uri}: cannot be read on ({error}); was the file cut off?") from None
        except UnicodeDecodeError:
            raise pa.ArrowInvalid("not text") from None
    return table, skipped


def _finish(uri: str, table: Any, wanted: Mapping[str, Wanted], *, bad: BadRows, where: Callable[[int], str], malformed: int) -> RawTable:
    """Turn text into numbers, drop and count the rows where that fails, and check the file's share of malformed rows."""
    rows = len(table) + malformed
    keep = np.ones(len(table), dtype=bool)
    columns: dict[str, Any] = {}

    def reject(kind: str, mask: NDArray[np.bool_], text: Any = None) -> None:
        mask &= keep
        if mask.any():
            found = np.flatnonzero(mask).tolist()
            for row in found[:_TOLD]:
                bad.add(kind, where(row), text=None if text is None else str(text[row]))
            if len(found) > _TOLD:
                bad.add(kind, where(found[_TOLD]), count=len(found) - _TOLD)
            keep[mask] = False

    for name, want in wanted.items():
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # of no or several chunks, by Arrow's version and size
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if want.required:
            reject(f"empty {name}", np.asarray(column.is_null()))
        if want.kind != "token":
            column, unreadable = _numbers(column, want)
            reject(f"{name} is not a {want.kind}", unreadable, table.column(name))
        columns[name] = column
    bad.check(uri, rows)
    if not keep.any():
        raise DataError(f"{uri}: has no rows")
    if keep.all():
        return RawTable(columns, rows, where)
    kept = np.flatnonzero(keep)
    columns = {name: column[kept] if isinstance(column, np.ndarray) else column.take(pa.array(kept)) for name, column in columns.items()}
    return RawTable(columns, rows, lambda row: where(int(kept[row])))


def _numbers(column: Any, want: Wanted) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return float64 values (NaN for nothing) and a mask of those that are there and cannot be read."""
    if pa.types.is_temporal(column.type):
        zone = getattr(column.type, "tz", None)
        micros = column.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64()).cast(pa.float64())
        return micros.to_numpy(zero_copy_only=False) / 1e6, np.zeros(len(column), dtype=bool)
    if not pa.types.is_string(column.type):
        values = column.to_numpy(zero_copy_only=False) / want.per_second
        return values, np.asarray(column.is_valid()) & ~np.isfinite(values)
    text = pc.utf8_trim_whitespace(column)
    numeric = np.asarray(pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
    values = np.full(len(column), np.nan)
    values[numeric] = np.asarray(text.filter(pa.array(numeric)).cast(pa.float64())) / want.per_second
    if want.kind == "time":
        dated = np.asarray(pc.fill_null(pc.match_substring_regex(text, _DATE), False))
        values[dated] = _dates(text.filter(pa.array(dated)))
    return values, np.asarray(column.is_valid()) & ~np.isfinite(values)


def _dates(column: Any) -> NDArray[np.float64]:
    """Return dates' seconds since 1970."""
    try:
        micros: NDArray[np.int64] = column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # a time zone, or a day that is not in the calendar
        return np.array([_seconds(value) for value in column.to_pylist()], dtype=np.float64)
    return micros / 1e6


def _seconds(text: str) -> float:
    """Return a date's seconds since 1970, NaN where there is no such day or hour."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _filled_lines(uri: str, dialect: Dialect) -> Any:
    """Yield (number, text) of the lines that are not blank, numbers from 1."""
    encoding = "utf-8-sig" if dialect.encoding == "utf-8" else dialect.encoding
    return ((number, line) for number, line in enumerate(io.text_lines(uri, encoding=encoding), 1) if line)


class _Locator:
    """From a row that was kept to its line; the file is read again only when an error asks for it."""

    def __init__(self, uri: str, dialect: Dialect, skipped: Sequence[int]) -> None:
        self.uri, self.dialect = uri, dialect
        self.skipped = np.array(skipped, dtype=np.int64)
        self._lines: NDArray[np.int64] | None = None

    def place(self, ordinal: int) -> str:
        """Return `file:line` of the line that is number `ordinal` (from 1) among those that are not blank."""
        if self._lines is None:
            self._lines = np.fromiter((number for number, _ in _filled_lines(self.uri, self.dialect)), dtype=np.int64)
        return f"{self.uri}:{self._lines[ordinal - 1]}"

    def __call__(self, row: int) -> str:
        ordinal = row + (1 if self.dialect.header is not None else 2)
        for gone in self.skipped:  # ascending, so each that lies before shifts the row by one
            ordinal += int(gone <= ordinal)
        return self.place(ordinal)
