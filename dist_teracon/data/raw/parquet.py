"""Parquet read by column, a batch of rows at a time; of any type that holds texts, numbers or times."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon.data.raw.bad_rows import column_missing
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import compression, open_raw
from dist_teracon.data.raw.table import Collected, ColumnSpec, RawTable, joined, one_array
from dist_teracon.data.raw.values import clean_texts, whole_texts
from dist_teracon.errors import DataError
from dist_teracon.io import open_binary

_BATCH = 1 << 17
_EXACT_BITS = {16: 11, 32: 24, 64: 53}  # by a float's bits: whole numbers up to 2^… are exact
_OTHER_TIMES = "a time of day or a span without a date"


def parquet_header(uri: str) -> list[str]:
    """Return the column names of a Parquet file.

    Raises:
        DataError: no such file, not Parquet, or two columns of one name.
    """
    with _opened(uri) as parquet:
        names: list[str] = parquet.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{uri}: column '{twice[0]}' stands there more than once")
    return names


def parquet_rows(uri: str) -> int:
    """Return how many rows a Parquet file has."""
    with _opened(uri) as parquet:
        return int(parquet.metadata.num_rows)


def read_parquet(
    uri: str, specs: Mapping[str, ColumnSpec], *, context: ReadContext, constants: Mapping[str, str | None] | None = None
) -> RawTable:
    """Read columns of a Parquet file; arguments as of `read_delimited`.

    Raises:
        DataError: a missing file, one that is not Parquet, a missing column or one of a type that is not wanted, implausible times, or too
            many malformed rows.
    """
    fixed = constants or {}
    header = parquet_header(uri)
    written = {name: spec for name, spec in specs.items() if name not in fixed}
    for name in written:
        if name not in header:
            raise column_missing(uri, name, header)
    collected, rows = Collected(uri, specs, context, constants=fixed, place=lambda row: f"{uri}: row {row + 1}"), 0
    with _opened(uri) as parquet:
        for batch in parquet.iter_batches(batch_size=_BATCH, columns=list(written)):
            rows = _add_batch(collected, uri, batch, written, rows)
    return collected.finish(rows)


def read_ids(uri: str, name: str, column: Any) -> Any:
    """Return a column of ids as a string array in the one form that tables of events are read in: blanks cut off, 1.0 as 1, null for none.

    Raises:
        DataError: the column holds neither text nor whole numbers.
    """
    spec = ColumnSpec("token", required=True)
    texts, wrong = _cast(uri, name, one_array(column), spec)
    if wrong is not None:
        raise DataError(f"{uri}: row {int(np.argmax(wrong)) + 1}: column '{name}': expected UTF-8 text, got other bytes")
    cleaned = clean_texts(texts, nan_is_missing=False).values
    found = whole_texts(cleaned)
    return cleaned if found is None else found[0]


def attribute_texts(column: Any) -> Any:
    """Return a column of attributes as a string array in the form in which a table of attributes is read: null for nothing, 1.0 as 1.

    Raises:
        TypeError: the column holds lists, bytes that are no text, or other things that are no text.
    """
    try:
        texts, wrong = _cast("", "", column, ColumnSpec("token"))
    except DataError:
        raise TypeError(str(column.type)) from None
    if wrong is not None and wrong.any():
        raise TypeError(f"{column.type} that is no UTF-8 text")
    return clean_texts(texts, nan_is_missing=True).values


def read_arrow(table: Any, specs: Mapping[str, ColumnSpec], *, where: str, context: ReadContext) -> RawTable:
    """Read columns of an Arrow table as those of a Parquet file; `where` is what messages call it.

    Raises:
        DataError: no rows, a missing column or one of a type that is not wanted, implausible times, or too many malformed rows.
    """
    for name in specs:
        if name not in table.column_names:
            raise column_missing(where, name, table.column_names)
    if not len(table):
        raise DataError(f"{where}: has no rows")
    collected, rows = Collected(where, specs, context, constants={}, place=lambda row: f"{where}: row {row + 1}"), 0
    for batch in table.select(list(specs)).to_batches(max_chunksize=_BATCH):
        rows = _add_batch(collected, where, batch, specs, rows)
    return joined([collected.finish(rows)], context)


def _add_batch(collected: Collected, uri: str, batch: Any, specs: Mapping[str, ColumnSpec], rows: int) -> int:
    """Add a batch that `rows` rows come before; returns how many there are now."""
    columns, faulty = {}, {}
    for name, spec in specs.items():
        columns[name], wrong = _cast(uri, name, batch.column(name), spec)
        if wrong is not None:
            faulty[f"{name} is not UTF-8 text"] = wrong
    collected.add(pa.table(columns), np.arange(rows, rows + batch.num_rows), faulty=faulty)
    return rows + int(batch.num_rows)


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    with _stream(uri) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{uri}: cannot be read as Parquet ({error}); was the file cut off?") from None


@contextmanager
def _stream(uri: str) -> Iterator[IO[bytes]]:
    if compression(uri):  # Parquet is read from its end, so what is compressed as a whole is taken into memory
        with open_raw(uri) as (stream, _):
            yield io.BytesIO(stream.read())
    else:
        with open_binary(uri) as file:
            yield file


def _cast(uri: str, name: str, column: Any, spec: ColumnSpec) -> tuple[Any, NDArray[np.bool_] | None]:
    """Return a column as text, number or time, and which rows are bytes that are no text."""
    column = plain(column)
    if _is_binary(column.type):
        return _decoded(column)
    try:
        return _converted(uri, name, column, spec), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise _unwanted(uri, name, column.type, spec) from None


def _converted(uri: str, name: str, column: Any, spec: ColumnSpec) -> Any:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if spec.dtype == "time":
        if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind) or _is_number(kind)):
            raise _unwanted(uri, name, kind, spec)
        return column.cast(pa.string()) if pa.types.is_decimal(kind) else column
    if spec.dtype == "number":
        if pa.types.is_temporal(kind):
            raise _unwanted(uri, name, kind, spec)
        return _doubles(column)
    return _float_texts(uri, name, column, spec) if pa.types.is_floating(kind) else column.cast(pa.string())


def _doubles(column: Any) -> Any:
    """Return numbers as float64, those of other widths by their digits: 3.7 of 32 bits, or of a decimal, is 3.7 and not its neighbour."""
    kind = column.type
    if not (pa.types.is_decimal(kind) or pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_float16(kind):  # its texts are those of 32 bits otherwise, as 3.69921875 for 3.7
        return pa.array([None if value is None else float(str(np.float16(value))) for value in column.to_pylist()], pa.float64())
    return column.cast(pa.string()).cast(pa.float64())


def _unwanted(uri: str, name: str, kind: Any, spec: ColumnSpec) -> DataError:
    wanted = {"number": "numbers", "time": "a date with a time, or a number"}.get(spec.dtype, "text or whole numbers")
    what = f"{kind} ({_OTHER_TIMES})" if pa.types.is_time(kind) or pa.types.is_duration(kind) else f"{kind}"
    return DataError(f"{uri}: column '{name}': expected {wanted}, got {what}; name another column in `columns:`")


def plain(column: Any) -> Any:
    """Return a column without its wrapping: the values of a dictionary, the storage of an extension, text as `string`."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _is_binary(kind: Any) -> bool:
    is_view = pa.types.is_binary_view(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or is_view)


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _decoded(column: Any) -> tuple[Any, NDArray[np.bool_] | None]:
    try:
        return column.cast(pa.binary()).cast(pa.string()), None
    except pa.ArrowInvalid:
        texts, wrong = [], np.zeros(len(column), dtype=bool)
        for row, value in enumerate(column.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(value.decode(errors="replace"))
                wrong[row] = True
        return pa.array(texts, pa.string()), wrong


def _float_texts(uri: str, name: str, column: Any, spec: ColumnSpec) -> Any:
    """Return floats as text: whole numbers without a point or an exponent, NaN as nothing."""
    bits = _EXACT_BITS[column.type.bit_width]
    values = column.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    there = ~np.isnan(values)
    if spec.required and (np.abs(values[there]) >= 2.0**bits).any():  # 2^53 + 1 is read as 2^53
        raise DataError(
            f"{uri}: column '{name}': expected ids as text or whole numbers, got {column.type} from 2^{bits} on, which holds no exact ids; "
            "write them as text or int64"
        )
    whole = there & (np.abs(np.where(there, values, 0)) <= 2.0**53) & (np.floor(values) == values)
    if spec.required and not whole[there].all():
        example = float(values[there & ~whole][0])
        raise DataError(f"{uri}: column '{name}': expected ids as text or whole numbers, got {example:g} ({column.type})")
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    numbers = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    texts = pc.if_else(pa.array(whole), numbers, column.cast(pa.string()))
    return pc.if_else(pa.array(there), texts, pa.scalar(None, pa.string()))
