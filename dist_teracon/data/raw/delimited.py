"""Delimited text read by column, a block of records at a time.

Well-formed text is parsed by Arrow at once. Only where that fails are columns read as text and looked at value by value, so that an
error can name its line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from dist_teracon.data.raw.bad_rows import BadRows, column_missing
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import LineBlocks
from dist_teracon.data.raw.records import RecordBlock, Reject, record_blocks
from dist_teracon.data.raw.table import Collected, ColumnSpec, RawTable
from dist_teracon.errors import DataError

_SEPARATOR = "\x1f"
_BOM = b"\xef\xbb\xbf"
_LEAST_BLOCK = 1 << 12  # Arrow has some work a block
_DELIMITERS = (",", "\t", ";", "|")


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
    place, content = _first_record(uri, dialect) or (0, b"")
    if not content.strip():
        raise DataError(f"{uri}: is empty" + ("" if dialect.header is not None else "; expected a header line and rows"))
    if dialect.header is not None:
        return list(dialect.header)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise DataError(
            f"{uri}:{place}: the names of the columns are not {dialect.encoding} text; set `encoding` in the recipe (as cp949), "
            "or convert the file"
        ) from None
    try:
        names = [name.strip() or f"(column {number})" for number, name in enumerate(_fields(text, dialect), 1)]
    except csv.Error as error:
        raise DataError(f"{uri}:{place}: the names of the columns cannot be read ({error})") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{uri}:{place}: column '{twice[0]}' stands there more than once")
    return names


def is_blank(uri: str, dialect: Dialect) -> bool:
    """Return whether a text file has no line that is not blank."""
    return _first_record(uri, dialect) is None


def guess_delimiter(uri: str, dialect: Dialect) -> str:
    """Return which of the dialect's delimiter, comma, tab, semicolon and bar the header line has most often."""
    _, content = _first_record(uri, dialect) or (0, b"")
    bare = re.sub(r'"[^"]*"', "", content.decode(errors="replace"))
    return max((dialect.delimiter, *_DELIMITERS), key=bare.count)


def _fields(text: str, dialect: Dialect) -> list[str]:
    if dialect.quote is None:
        return text.split(dialect.delimiter)
    return next(csv.reader([text], delimiter=dialect.delimiter, quotechar=dialect.quote))


def _first_record(uri: str, dialect: Dialect) -> tuple[int, bytes] | None:
    """Return the line and content of the first record that is not blank."""
    blocks = LineBlocks(uri, size=_LEAST_BLOCK, encoding=dialect.encoding)
    for records in record_blocks(blocks, quote=dialect.quote, delimiter=dialect.delimiter, reject=lambda *_: None):
        if len(records):
            return int(records.lines[0]), records.content[int(records.starts[0]) : int(records.ends[0])]
    return None


def read_delimited(
    uri: str,
    specs: Mapping[str, ColumnSpec],
    *,
    dialect: Dialect,
    context: ReadContext,
    constants: Mapping[str, str | None] | None = None,
) -> RawTable:
    """Read columns of a text file, a block of records at a time; blank lines do not count.

    Args:
        uri: The file.
        specs: How columns are read.
        dialect: How the file is laid out.
        context: The preparation.
        constants: Columns that have one value in all rows, as those of Hive's folders.

    Raises:
        DataError: a missing or empty file, a missing column, implausible times, or too many malformed rows.
    """
    fixed = constants or {}
    header = read_header(uri, dialect)
    written = {name: spec for name, spec in specs.items() if name not in fixed}
    for name in written:
        if name not in header:
            raise column_missing(f"{uri}:1", name, header)
    collected = Collected(uri, specs, context, constants=fixed, place=lambda line: f"{uri}:{line}")
    rows = several = 0

    def reject(kind: str, line: int, text: str) -> None:
        nonlocal rows
        rows += 1
        context.bad.add(kind, f"{uri}:{line}", text=text)

    for records in _records(uri, dialect, context, reject):
        rows += len(records)
        readable = _without_unreadable(uri, records, dialect, context.bad)
        if len(readable):
            table, lines, extra = _parse(uri, readable, written, header, dialect, context.bad)
            collected.add(table, lines)
            rows += extra
            several += 0 if readable.lengths is None else int((readable.lengths > 1).sum())
    if several:
        context.note("records_of_several_lines", "count", several, f"{uri}: line ends within quoted cells in rows: {several}")
    return collected.finish(rows)


def _records(uri: str, dialect: Dialect, context: ReadContext, reject: Reject) -> Iterator[RecordBlock]:
    """Yield the records behind the header, and record what the file is."""
    blocks = LineBlocks(uri, size=max(context.block, _LEAST_BLOCK), encoding=dialect.encoding)
    titled = dialect.header is None
    for records in record_blocks(blocks, quote=dialect.quote, delimiter=dialect.delimiter, reject=reject):
        if titled and len(records):  # the first record is the header
            yield records.without_first()
            titled = False
        else:
            yield records
        context.report_position(uri, blocks.position)
    context.sha256[uri] = blocks.sha256


def _without_unreadable(uri: str, records: RecordBlock, dialect: Dialect, bad: BadRows) -> RecordBlock:
    """Reject records whose bytes are no text."""
    if _is_text(records.content):
        return records
    kind = f"bytes that are not {dialect.encoding.upper()} text"

    def reject(place: int, text: bytes) -> None:
        bad.add(kind, f"{uri}:{records.lines[place]}", text=text.decode(errors="replace"))

    return records.without(lambda text: not _is_text(text), reject)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse(
    uri: str, records: RecordBlock, specs: Mapping[str, ColumnSpec], header: Sequence[str], dialect: Dialect, bad: BadRows
) -> tuple[Any, NDArray[np.int64], int]:
    """Return a block's table, the lines of its rows, and how many rows more were rejected than there are records."""
    content, delimiter = records.content, dialect.delimiter
    if len(delimiter) > 1:  # Arrow takes delimiters of one character only
        content, delimiter = content.replace(delimiter.encode(), _SEPARATOR.encode()), _SEPARATOR
    try:
        table, skipped = _typed(content, specs, header, delimiter, dialect)
    except pa.ArrowInvalid as error:
        raise DataError(f"{uri}: cannot be read as delimited text ({error})") from None
    wrong = np.array([ordinal - 1 for ordinal, _ in skipped], dtype=np.int64)
    extra = 0
    for place, (_, text) in zip(wrong.tolist(), skipped, strict=True):
        # a quote that stands there by mistake may have taken in the rows behind it, so each line counts
        lines = text.replace(_SEPARATOR, dialect.delimiter).split("\n") if records.lines_of(place) > 1 else [text]
        extra += len(lines) - 1
        for number, line in enumerate(lines, int(records.lines[place])):
            bad.add("wrong number of columns", f"{uri}:{number}", text=line.replace(_SEPARATOR, dialect.delimiter))
    kept = np.delete(records.lines, wrong)
    if len(kept) != len(table):
        first, last = records.lines[0], records.lines[-1]
        raise DataError(f"{uri}: cannot be read as delimited text (lines {first} to {last} hold {len(table)} rows)")
    return table, kept, extra


def _typed(
    content: bytes, specs: Mapping[str, ColumnSpec], header: Sequence[str], delimiter: str, dialect: Dialect
) -> tuple[Any, list[tuple[int, str]]]:
    """Return the table with numbers parsed where all are plain ones, else as text."""
    types = {name: _TYPES[spec.dtype] for name, spec in specs.items()}
    if b"0x" in content or b"0X" in content:  # Arrow reads such numbers, which nothing else takes for one
        types = {name: pa.string() if spec.dtype == "time" else types[name] for name, spec in specs.items()}
    as_text = {name: pa.string() if spec.dtype == "time" else types[name] for name, spec in specs.items()}
    for tried in (types, as_text):
        try:
            table, skipped = _table(content, tried, header, delimiter, dialect)
        except pa.ArrowInvalid:
            continue
        if not any(spec.dtype == "number" and _has_nan(table.column(name)) for name, spec in specs.items()):
            return table, skipped
        break
    return _table(content, dict.fromkeys(specs, pa.string()), header, delimiter, dialect)


_TYPES = {"token": pa.string(), "name": pa.string(), "number": pa.float64(), "time": pa.int64()}


def _has_nan(column: Any) -> bool:
    """Return whether something was read as NaN, which Arrow does of more texts than are meant."""
    return bool(pc.any(pc.is_nan(column)).as_py())


def _table(
    content: bytes, types: Mapping[str, Any], header: Sequence[str], delimiter: str, dialect: Dialect
) -> tuple[Any, list[tuple[int, str]]]:
    """Return the table and, of rows with a wrong number of fields, the ordinal among filled lines and the text."""
    skipped: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        skipped.append((row.number, row.text))
        return "skip"

    if content.startswith(_BOM):  # Arrow takes one off, wherever in the file the block begins
        content = _BOM + content
    table = pa_csv.read_csv(
        pa.BufferReader(content),
        read_options=pa_csv.ReadOptions(use_threads=False, column_names=list(header), block_size=max(len(content) + 1, 1024)),
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter,
            quote_char=dialect.quote or False,
            newlines_in_values=dialect.quote is not None and dialect.quote.encode() in content,
            invalid_row_handler=skip,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=types, include_columns=list(types), strings_can_be_null=True, null_values=[""], check_utf8=True
        ),
    )
    return table, skipped
