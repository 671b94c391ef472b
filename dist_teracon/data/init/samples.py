"""Samples of the raw files in a folder: their tables, columns and first, middle and last rows."""

from __future__ import annotations

import csv
import io as text_io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_teracon import io
from dist_teracon.data.raw.files import open_raw, without_compression
from dist_teracon.data.raw.listing import Listing, list_source, named_kind, natural_key, table_kind
from dist_teracon.errors import DataError

_BYTES = 1 << 21
_ROWS = 20_000
_FILES = 8
_ATOMIC = (".inter", ".user", ".item")  # RecBole's
_ENCODINGS = ("utf-8", "cp949")
_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Sample:
    """Some rows of a table, which may lie in several files.

    Attributes:
        name: As a recipe's `files` names it: a file, a folder, or a pattern.
        files: URIs in natural order.
        columns: Texts of each column, None for nothing; all of one length.
        times: Columns that Parquet knows to be times.
        encoding, delimiter: Of text.
        whole: Whether these are all rows.
        unread: Columns of lists and the like, which no recipe can use.
    """

    name: str
    files: tuple[str, ...]
    columns: dict[str, list[str | None]]
    times: frozenset[str] = frozenset()
    encoding: str = "utf-8"
    delimiter: str = ","
    whole: bool = True
    unread: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return len(next(iter(self.columns.values()), []))


@dataclass
class Folder:
    """What a folder holds.

    Attributes:
        uri: The folder.
        names: Of everything directly in it that is not hidden.
        tables: Its tables by name, of those that can be sampled.
        not_read: Files that are no table, and why.
        sequences: Files without a header, of numbers between commas alone, as of sequences and their targets.
    """

    uri: str
    names: list[str]
    tables: dict[str, Sample] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    sequences: list[str] = field(default_factory=list)


class _NoHeaderError(DataError):
    """A text file whose first line holds numbers alone."""


def sample_folder(uri: str) -> Folder:
    """Sample every table directly in a folder; a folder in it is a table in parts, and so are files whose names differ in digits alone.

    Raises:
        DataError: there is no such folder, or nothing in it; it is a file.
    """
    listing = list_source(uri)
    if listing.is_file:
        raise DataError(f"{uri}: is a file; name the folder that holds it")
    if not listing.files and not listing.folders:
        raise DataError(f"{uri}: no files there")
    folder = Folder(uri, sorted([*listing.files, *listing.folders], key=natural_key))
    for name, files in _grouped(listing, folder):
        try:
            sample = _sample(name, files)
        except (DataError, pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
            folder.not_read[name] = str(error).removeprefix(f"{files[0]}: ")
            folder.sequences += [name] if isinstance(error, _NoHeaderError) else []
            continue
        folder.tables[name] = sample
    return folder


def _is_table(name: str) -> bool:
    return named_kind(name) is not None or without_compression(name).lower().endswith(_ATOMIC)


def _grouped(listing: Listing, folder: Folder) -> Iterator[tuple[str, list[str]]]:
    """Yield tables with their files, in the order of their names."""
    tables = []
    for name in listing.files:
        if _is_table(name):
            tables.append(name)
        else:
            folder.not_read[name] = "neither CSV nor Parquet by its name"
    for name in listing.folders:
        if parts := listing.parts(name):
            yield name, [listing.uri(part) for part in parts]
        else:
            folder.not_read[name] = "a folder without tables"
    for pattern, names in _patterns(tables):
        yield (names[0] if len(names) == 1 else pattern), [listing.uri(name) for name in names]


def _patterns(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield patterns of names that differ in digits alone, and in whether they are compressed: some of a log's files may be by now.

    Where a file lies there twice, plain and compressed, names with different endings are different tables.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_without_digits(without_compression(name)), []).append(name)
    for pattern, alike in groups.items():
        by_ending: dict[str, list[str]] = {}
        for name in alike:
            by_ending.setdefault(_without_digits(name), []).append(name)
        if len(by_ending) > 1 and len(set(map(without_compression, alike))) == len(alike):
            yield f"{pattern}*", alike
        else:
            yield from by_ending.items()


def _without_digits(name: str) -> str:
    return re.sub(r"[0-9]+([-_.][0-9]+)*", "*", name)


def _sample(name: str, files: Sequence[str]) -> Sample:
    """Sample a table: all of a few files, which may be of a service each; of many the first, the one in the middle and the last."""
    chosen = range(len(files)) if len(files) <= _FILES else (0, len(files) // 2, len(files) - 1)
    parts = [_sample_part(name, files[place]) for place in chosen]
    first = parts[0]
    for place, part in zip(chosen, parts, strict=True):
        if list(part.columns) != list(first.columns):
            raise DataError(f"{files[place]}: its columns are others than those of {files[0]}")
    columns = {column: [value for part in parts for value in part.columns[column]] for column in first.columns}
    whole = all(part.whole for part in parts) and len(chosen) == len(files)
    times = frozenset(column for column in columns if all(column in part.times for part in parts))
    encoding = next((part.encoding for part in parts if part.encoding != "utf-8"), "utf-8")
    return Sample(name, tuple(files), columns, times, encoding, first.delimiter, whole, first.unread)


def _sample_part(name: str, uri: str) -> Sample:
    is_atomic = without_compression(uri).lower().endswith(_ATOMIC)
    return _sample_parquet(name, uri) if not is_atomic and table_kind(uri) == "parquet" else _sample_text(name, uri)


def _sample_parquet(name: str, uri: str) -> Sample:
    with io.open_binary(uri) as file:
        table = pq.ParquetFile(file)
        groups, kept = table.num_row_groups, []
        for group in sorted({0, max(0, groups // 2), groups - 1}) if groups else ():
            kept.append(next(table.iter_batches(batch_size=_ROWS, row_groups=[group]), None))
        batches = [pa.Table.from_batches([batch]) for batch in kept if batch is not None]
        schema = table.schema_arrow
        whole = sum(len(batch) for batch in batches) == table.metadata.num_rows
    rows = pa.concat_tables(batches) if batches else schema.empty_table()
    columns: dict[str, list[str | None]] = {}
    unread = []
    for field_ in schema:
        try:
            columns[field_.name] = [None if text in (None, "", "nan") else text for text in rows[field_.name].cast(pa.string()).to_pylist()]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            unread.append(field_.name)
    times = frozenset(field_.name for field_ in schema if pa.types.is_timestamp(field_.type) or pa.types.is_date(field_.type))
    return Sample(name, (uri,), columns, times, whole=whole, unread=tuple(unread))


def _sample_text(name: str, uri: str) -> Sample:
    with open_raw(uri) as (stream, _):
        head = _read(stream, _BYTES)
        whole = not stream.read(1)
    encoding = _encoding(uri, head, whole=whole)
    texts = [_whole_lines(head, encoding, whole=whole), *([] if whole else _later(uri, encoding))]
    delimiter = _delimiter(texts[0])
    header, *rows = list(csv.reader(text_io.StringIO(texts[0], newline=""), delimiter=delimiter))[: _ROWS + 1] or [[]]
    for text in texts[1:]:
        rows += list(csv.reader(text_io.StringIO(text, newline=""), delimiter=delimiter))[:_ROWS]
    if not header:
        raise DataError(f"{uri}: is empty")
    names = [column.strip() for column in header]
    if len(names) > 3 and delimiter == "," and all(re.fullmatch(r"\d*", name) for name in names):
        raise _NoHeaderError(f"{uri}: has no header line, only numbers")
    rows = [row for row in rows if len(row) == len(names)]
    whole = whole and len(rows) <= _ROWS
    columns = {column: [row[place].strip() or None for row in rows] for place, column in enumerate(names)}
    if len(columns) < len(names):
        raise DataError(f"{uri}: two columns have one name ({', '.join(names)})")
    return Sample(name, (uri,), columns, encoding=encoding, delimiter=delimiter, whole=whole)


def _read(stream: Any, size: int) -> bytes:
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _encoding(uri: str, head: bytes, *, whole: bool) -> str:
    """Return the encoding of a text, by its byte-order mark or by what it can be."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    checked = head if whole else head[: head.rfind(b"\n") + 1]
    for encoding in _ENCODINGS:
        try:
            checked.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise DataError(f"{uri}: is text in none of {', '.join(_ENCODINGS)}, utf-16; give its `encoding` in a recipe")


def _whole_lines(content: bytes, encoding: str, *, whole: bool) -> str:
    text = content.decode(encoding, errors="replace").removeprefix("\ufeff")
    return text if whole else text[: text.rfind("\n") + 1]


def _later(uri: str, encoding: str) -> Iterator[str]:
    """Yield pieces of the middle and of the end of a plain file, whole lines; nothing of a compressed one."""
    if without_compression(uri) != uri or encoding == "utf-16":
        return
    with io.open_binary(uri) as file:
        size = file.seek(0, 2)
        for start in (size // 2, size - _BYTES // 2):
            if start > _BYTES:
                file.seek(start)
                content = file.read(_BYTES // 2)
                yield _whole_lines(content[content.find(b"\n") + 1 :], encoding, whole=False)


def _delimiter(text: str) -> str:
    """Return the delimiter that the first line has most of."""
    line = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    return max(_DELIMITERS, key=lambda delimiter: (line.count(delimiter), delimiter == ","))


def attributes_within(events: Sample, key: str, columns: Sequence[str]) -> Sample | None:
    """Return those of a table of events' columns that are attributes of its users or items, as a table with a row each; None for none.

    Args:
        events: The events.
        key: The column of users or items.
        columns: Which columns may be attributes: those that have one value for nearly every name that comes more than once.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(events.columns[key]):
        if name is not None:
            rows.setdefault(name, []).append(row)
    several = [places for places in rows.values() if len(places) > 1]
    if 2 * sum(map(len, several)) < events.rows:
        return None
    found: dict[str, list[str | None]] = {key: list(rows)}
    for column in columns:
        values = events.columns[column]
        changing = sum(len({values[row] for row in places} - {None}) > 1 for places in several)
        if changing <= 0.02 * len(several) and len(set(values) - {None}) > 1:
            found[column] = [next((values[row] for row in places if values[row] is not None), None) for places in rows.values()]
    return replace(events, columns=found) if len(found) > 1 else None
