"""A table in one or several files: text and Parquet alike, parts whose columns agree, and Hive's folders as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect, guess_delimiter, is_blank, read_delimited, read_header
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import TableKind, partition_values, relative_name, table_kind
from dist_teracon.data.raw.parquet import parquet_header, read_parquet
from dist_teracon.data.raw.table import ColumnSpec, RawTable, joined
from dist_teracon.errors import DataError, nearest


@dataclass(frozen=True)
class Part:
    """A file of a table.

    Attributes:
        uri: The file.
        kind: `text` or `parquet`.
        dialect: How a text is laid out.
        header: The table's columns, those of Hive's folders among them.
        partition: Values of the Hive folders that it lies in.
    """

    uri: str
    kind: TableKind
    dialect: Dialect
    header: list[str]
    partition: Mapping[str, str | None]


def open_parts(uris: Sequence[str], *, dialect: Dialect, context: ReadContext, guess: bool = False) -> list[Part]:
    """Return a table's parts that are not blank, after a look at their columns.

    Args:
        uris: The files.
        dialect: Of those that are text.
        context: The preparation.
        guess: Whether a text may have another delimiter, and be Parquet; otherwise all are text of the dialect.

    Raises:
        DataError: a missing or damaged file, all of them blank, or parts whose columns differ; names both files and the difference.
    """
    parts: list[Part] = []
    for uri in uris:
        part = _open(uri, dialect, context) if guess else Part(uri, "text", dialect, [], {})
        if part.kind == "text" and len(uris) > 1 and is_blank(uri, part.dialect):
            name = relative_name(uri, context.bad.root)
            context.note("empty_parts", name, "no header", f"{uri}: is empty; it adds nothing")
            continue
        own = part.header or read_header(uri, part.dialect)
        partition = {name: value for name, value in part.partition.items() if name not in own}
        parts.append(replace(part, header=[*own, *partition], partition=partition))
    if not parts:
        raise DataError(f"{uris[0]}: is empty, as are all {len(uris)} files; expected a header line and rows")
    for part in parts[1:]:
        _check_agreement(parts[0], part)
    return parts


def _open(uri: str, dialect: Dialect, context: ReadContext) -> Part:
    kind = table_kind(uri)
    if kind is None:
        raise DataError(f"{uri}: expected CSV or Parquet, got a file that is neither by its name and content")
    partition = partition_values(relative_name(uri, context.bad.root))
    if kind == "parquet":
        return Part(uri, kind, dialect, parquet_header(uri), partition)
    if without_compression(uri).lower().endswith(".tsv"):
        dialect = replace(dialect, delimiter="\t")
    found = guess_delimiter(uri, dialect)
    if found != dialect.delimiter:
        context.log(f"{uri}: the columns are separated by {found!r}")
    return Part(uri, kind, replace(dialect, delimiter=found), [], partition)


def _check_agreement(first: Part, other: Part) -> None:
    lacks = [name for name in first.header if name not in other.header]
    more = [name for name in other.header if name not in first.header]
    if not lacks and not more:
        return
    missing = f"has no column '{lacks[0]}'{nearest(lacks[0], more)}" if lacks else ""
    new = f"has a column '{more[0]}' that the other has not" if more else ""
    raise DataError(
        f"{other.uri}: its columns differ from those of {first.uri}: it {' and '.join(filter(None, (missing, new)))}; "
        "all parts of a table must have the same columns"
    )


def read_parts(parts: Sequence[Part], specs: Mapping[str, ColumnSpec], context: ReadContext, *, may_be_empty: bool = False) -> RawTable:
    """Read columns of a table's parts, one after another.

    Raises:
        DataError: as `read_delimited` and `read_parquet`, or there are no rows where there must be.
    """
    tables = [_read(part, specs, context) for part in parts]
    if not may_be_empty and not any(map(len, tables)):
        raise DataError(f"{parts[0].uri}: has no rows" + (f", nor have the {len(parts) - 1} other parts" if len(parts) > 1 else ""))
    if len(tables) > 1:
        for part, table in zip(parts, tables, strict=True):
            if not table.rows:
                context.note("empty_parts", relative_name(part.uri, context.bad.root), "no rows")
    return joined(tables, context)


def _read(part: Part, specs: Mapping[str, ColumnSpec], context: ReadContext) -> RawTable:
    constants = {name: value for name, value in part.partition.items() if name in specs}
    if part.kind == "parquet":
        return read_parquet(part.uri, specs, context=context, constants=constants)
    return read_delimited(part.uri, specs, dialect=part.dialect, context=context, constants=constants)
