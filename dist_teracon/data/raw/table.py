"""Raw tables: delimited text and Parquet read by column, malformed rows counted and dropped.

Well-formed text is parsed by Arrow at once. Only where that fails are the columns read as text and looked at value by value, so
that an error can name its line.
"""

from __future__ import annotations

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
from dist_teracon.data.raw.bad_rows import BadRows, column_missing
from dist_teracon.data.raw.categorical import CategoricalBuilder
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import LineBlock, LineBlocks
from dist_teracon.errors import DataError

_NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?)?(Z|[-+][0-9]{2}:?[0-9]{2})?$"
_REPORTED = 100  # rows of a kind that are reported one by one
_SEPARATOR = "\x1f"
_LEAST_BLOCK = 1 << 12  # Arrow has some work a block
_BATCH = 1 << 17


@dataclass(frozen=True)
class ColumnSpec:
    """How a column is read.

    Attributes:
        dtype: `token` (a text), `name` (a text of which there are few, kept as codes), `number`, or `time` (seconds since 1970,
            or an ISO date and time, read as UTC).
        required: Rows where it is empty are malformed.
        per_second: Of a time that is written as a number, 1000 for milliseconds.
    """

    dtype: Literal["token", "name", "number", "time"]
    required: bool = False
    per_second: float = 1.0


@dataclass(frozen=True)
class RawTable:
    """Columns of a raw file without its malformed rows.

    Attributes:
        columns: By name, all of the same length: a string array for a token, `Categorical` for a name, else float64 with NaN for nothing.
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
        DataError: the file is empty, its header is no text, or two columns have one name.
    """
    if dialect.header is not None:
        names = list(dialect.header)
        if _first_line(uri) is None:
            raise DataError(f"{uri}: is empty")
    else:
        place, content = _first_line(uri) or (0, b"")
        if not content.strip():
            raise DataError(f"{uri}: is empty; expected a header line and rows")
        try:
            line = content.decode(dialect.encoding)
        except UnicodeDecodeError:
            raise DataError(f"{uri}:{place}: the names of the columns are not {dialect.encoding} text; convert the file") from None
        names = [name.strip(dialect.quote or "") for name in line.split(dialect.delimiter)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{uri}:1: column '{twice[0]}' stands there more than once")
    return names


def read_delimited(uri: str, specs: Mapping[str, ColumnSpec], *, dialect: Dialect, context: ReadContext) -> RawTable:
    """Read columns of a text file, a block of lines at a time; blank lines do not count.

    Raises:
        DataError: a missing or empty file, a missing column, no rows, or too many malformed rows.
    """
    header = read_header(uri, dialect)
    for name in specs:
        if name not in header:
            raise column_missing(f"{uri}:1", name, header)
    collected = _Collected(specs)
    blocks = LineBlocks(uri, size=max(context.block, _LEAST_BLOCK))
    rows, titled = 0, dialect.header is None
    for block in blocks:
        lines = _filled(block)
        content = block.content
        if titled and len(lines):  # the first line that is not blank is the header
            cut = int(lines[0]) - block.first + 1
            content, titled = content.split(b"\n", cut)[cut], False
            lines = lines[1:]
        rows += len(lines)
        content, lines = _without_unreadable(uri, content, lines, dialect, context.bad)
        content, lines = _without_open_quotes(uri, content, lines, dialect, context.bad)
        if len(lines):
            table, lines = _parse(uri, content, lines, specs, header, dialect, context.bad)
            collected.add(table, lines, bad=context.bad, place=lambda line: f"{uri}:{line}")
        context.report_position(uri, blocks.position)
    context.sha256[uri] = blocks.sha256
    context.bad.check(uri, rows)
    return collected.finish(uri, rows, place=lambda line: f"{uri}:{line}")


def _first_line(uri: str) -> tuple[int, bytes] | None:
    """Return number and content of the first line that is not blank."""
    for block in LineBlocks(uri, size=_LEAST_BLOCK):
        for number, content in enumerate(block.content.split(b"\n"), block.first):
            if content:
                return number, content
    return None


def _filled(block: LineBlock) -> NDArray[np.int64]:
    """Return the numbers of a block's lines that are not blank."""
    return np.flatnonzero(np.diff(block.ends, prepend=-1) > 1) + block.first


Content = tuple[bytes, NDArray[np.int64]]


def _without_unreadable(uri: str, content: bytes, lines: NDArray[np.int64], dialect: Dialect, bad: BadRows) -> Content:
    """Reject lines whose bytes are no text."""
    if _is_text(content, dialect.encoding):
        return content, lines
    kind = f"bytes that are not {dialect.encoding.upper()} text"
    return _without(kind, lambda text: not _is_text(text, dialect.encoding), uri, content, lines, dialect, bad)


def _is_text(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _without_open_quotes(uri: str, content: bytes, lines: NDArray[np.int64], dialect: Dialect, bad: BadRows) -> Content:
    """Reject lines with a quote that is not closed, which else would swallow the lines behind them."""
    if dialect.quote is None or (quote := dialect.quote.encode()) not in content:
        return content, lines
    return _without("a quote that is not closed", lambda text: text.count(quote) % 2 == 1, uri, content, lines, dialect, bad)


def _without(
    kind: str, faulty: Callable[[bytes], bool], uri: str, content: bytes, lines: NDArray[np.int64], dialect: Dialect, bad: BadRows
) -> Content:
    """Reject the lines that are faulty; returns the others and their numbers."""
    texts = [text for text in content.split(b"\n") if text]
    whole = np.array([not faulty(text) for text in texts], dtype=bool)
    if whole.all():
        return content, lines
    for place in np.flatnonzero(~whole).tolist():
        bad.add(kind, f"{uri}:{lines[place]}", text=texts[place].decode(dialect.encoding, errors="replace"))
    return b"".join(text + b"\n" for text, kept in zip(texts, whole.tolist(), strict=True) if kept), lines[whole]


class _Collected:
    """Columns that grow block by block: numbers as arrays, names as codes, other tokens as Arrow strings."""

    def __init__(self, specs: Mapping[str, ColumnSpec]) -> None:
        self._specs = specs
        self._parts: dict[str, list[Any]] = {name: [] for name in specs}
        self._names = {name: CategoricalBuilder() for name, spec in specs.items() if spec.dtype == "name"}
        self._lines: list[NDArray[np.int64]] = []

    def add(self, table: Any, lines: NDArray[np.int64], *, bad: BadRows, place: Callable[[int], str]) -> None:
        """Add a block's rows that are well-formed; `place` names a line or row by its number."""
        columns, kept = _convert(table, self._specs, bad=bad, where=lambda row: place(int(lines[row])))
        for name, column in columns.items():
            self._parts[name].append(self._names[name].encode(column) if name in self._names else column)
        if not self._names:  # places are asked for attributes alone
            self._lines.append(lines if kept is None else lines[kept])

    def finish(self, uri: str, rows: int, *, place: Callable[[int], str]) -> RawTable:
        """Return the whole.

        Raises:
            DataError: there are no rows.
        """
        if sum(map(len, next(iter(self._parts.values())))) == 0:
            raise DataError(f"{uri}: has no rows")
        columns = {}
        for name, spec in self._specs.items():
            parts, self._parts[name] = self._parts[name], []
            if spec.dtype == "token":
                columns[name] = pa.concat_arrays(parts)
            else:
                joined = np.concatenate(parts)
                columns[name] = self._names[name].build(joined) if name in self._names else joined
        lines = np.concatenate(self._lines) if self._lines else None
        return RawTable(columns, rows, lambda row: uri if lines is None else place(int(lines[row])))


def read_parquet(uri: str, specs: Mapping[str, ColumnSpec], *, context: ReadContext) -> RawTable:
    """Read columns of a Parquet file, a batch of rows at a time.

    Raises:
        DataError: a missing file, one that is not Parquet, a missing column, no rows, or too many malformed rows.
    """
    collected, rows = _Collected(specs), 0
    with io.open_binary(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            header = parquet.schema_arrow.names
            for name in specs:
                if name not in header:
                    raise column_missing(uri, name, header)
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=list(specs)):
                rows = _add_batch(collected, uri, batch, specs, rows, context.bad)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{uri}: cannot be read as Parquet ({error}); was the file cut off?") from None
    context.bad.check(uri, rows)
    return collected.finish(uri, rows, place=lambda row: f"{uri}: row {row + 1}")


def read_arrow(table: Any, specs: Mapping[str, ColumnSpec], *, where: str, context: ReadContext) -> RawTable:
    """Read columns of an Arrow table as those of a Parquet file; `where` is what messages call it.

    Raises:
        DataError: a missing column, no rows, or too many malformed rows.
    """
    collected, rows = _Collected(specs), 0
    for name in specs:
        if name not in table.column_names:
            raise column_missing(where, name, table.column_names)
    for batch in table.select(list(specs)).to_batches(max_chunksize=_BATCH):
        rows = _add_batch(collected, where, batch, specs, rows, context.bad)
    context.bad.check(where, rows)
    return collected.finish(where, rows, place=lambda row: f"{where}: row {row + 1}")


def _add_batch(collected: _Collected, uri: str, batch: Any, specs: Mapping[str, ColumnSpec], rows: int, bad: BadRows) -> int:
    """Add a batch that `rows` rows come before; returns how many there are now."""
    table = pa.table({name: _cast(uri, name, pa.chunked_array([batch.column(name)]), spec) for name, spec in specs.items()})
    collected.add(table, np.arange(rows, rows + len(table)), bad=bad, place=lambda row: f"{uri}: row {row + 1}")
    return rows + len(table)


def _cast(uri: str, name: str, column: Any, spec: ColumnSpec) -> Any:
    try:
        if spec.dtype == "time" and pa.types.is_temporal(column.type):
            return column
        if spec.dtype in ("number", "time") and not pa.types.is_string(column.type):
            return column.cast(pa.float64(), safe=False)
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{uri}: column '{name}': expected a {spec.dtype}, got {column.type}") from None


def _parse(
    uri: str,
    content: bytes,
    lines: NDArray[np.int64],
    specs: Mapping[str, ColumnSpec],
    header: Sequence[str],
    dialect: Dialect,
    bad: BadRows,
) -> tuple[Any, NDArray[np.int64]]:
    """Return a block's table and the lines of its rows; rows with a wrong number of fields are rejected."""
    delimiter = dialect.delimiter
    if len(delimiter) > 1:  # Arrow takes delimiters of one character only
        content, delimiter = content.replace(delimiter.encode(), _SEPARATOR.encode()), _SEPARATOR
    fast = {name: pa.float64() if spec.dtype in ("number", "time") else pa.string() for name, spec in specs.items()}
    try:
        table, skipped = _table(content, fast, header, delimiter, dialect)
    except pa.ArrowInvalid:
        try:
            table, skipped = _table(content, dict.fromkeys(specs, pa.string()), header, delimiter, dialect)
        except pa.ArrowInvalid as error:
            raise DataError(f"{uri}: cannot be read as delimited text ({error})") from None
    wrong = np.array([ordinal - 1 for ordinal, _ in skipped], dtype=np.int64)
    for place, (_, text) in zip(wrong.tolist(), skipped, strict=True):
        bad.add("wrong number of columns", f"{uri}:{lines[place]}", text=text.replace(_SEPARATOR, dialect.delimiter))
    lines = np.delete(lines, wrong)
    if len(lines) != len(table):
        raise DataError(f"{uri}: cannot be read as delimited text (lines {lines[0]} to {lines[-1]} hold {len(table)} rows)")
    return table, lines


def _table(
    content: bytes, types: Mapping[str, Any], header: Sequence[str], delimiter: str, dialect: Dialect
) -> tuple[Any, list[tuple[int, str]]]:
    """Return the table and, of rows with a wrong number of fields, the ordinal among filled lines and the text."""
    skipped: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        skipped.append((row.number, row.text))
        return "skip"

    table = pa_csv.read_csv(
        pa.BufferReader(content),
        read_options=pa_csv.ReadOptions(
            use_threads=False, encoding=dialect.encoding, column_names=list(header), block_size=max(len(content) + 1, 1024)
        ),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, quote_char=dialect.quote or False, invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=types, include_columns=list(types), strings_can_be_null=True, null_values=[""], check_utf8=True
        ),
    )
    return table, skipped


def _convert(
    table: Any, specs: Mapping[str, ColumnSpec], *, bad: BadRows, where: Callable[[int], str]
) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """Turn text into numbers, drop and count the rows where that fails; also returns which rows were kept, None for all."""
    keep = np.ones(len(table), dtype=bool)
    columns: dict[str, Any] = {}

    def reject(kind: str, mask: NDArray[np.bool_], text: Any = None) -> None:
        mask &= keep
        if mask.any():
            found = np.flatnonzero(mask).tolist()
            for row in found[:_REPORTED]:
                bad.add(kind, where(row), text=None if text is None else str(text[row]))
            if len(found) > _REPORTED:
                bad.add(kind, where(found[_REPORTED]), count=len(found) - _REPORTED)
            keep[mask] = False

    for name, spec in specs.items():
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # of no or several chunks, by Arrow's version and size
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if spec.required:
            reject(f"empty {name}", np.asarray(column.is_null()))
        if spec.dtype in ("number", "time"):
            column, unreadable = _numbers(column, spec)
            reject(f"{name} is not a {spec.dtype}", unreadable, table.column(name))
        columns[name] = column
    if keep.all():
        return columns, None
    kept = np.flatnonzero(keep)
    columns = {name: column[kept] if isinstance(column, np.ndarray) else column.take(pa.array(kept)) for name, column in columns.items()}
    return columns, kept


def _numbers(column: Any, spec: ColumnSpec) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return float64 values (NaN for nothing) and a mask of those that are there and cannot be read."""
    if pa.types.is_temporal(column.type):
        zone = getattr(column.type, "tz", None)
        micros = column.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64()).cast(pa.float64())
        return micros.to_numpy(zero_copy_only=False) / 1e6, np.zeros(len(column), dtype=bool)
    if not pa.types.is_string(column.type):
        values = column.to_numpy(zero_copy_only=False) / spec.per_second
        return values, np.asarray(column.is_valid()) & ~np.isfinite(values)
    text = pc.utf8_trim_whitespace(column)
    numeric = np.asarray(pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
    values = np.full(len(column), np.nan)
    values[numeric] = np.asarray(text.filter(pa.array(numeric)).cast(pa.float64())) / spec.per_second
    if spec.dtype == "time":
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
