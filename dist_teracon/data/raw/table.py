"""Raw tables: how columns are read, and columns that grow block by block while malformed rows are counted and dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data.raw.categorical import Categorical, CategoricalBuilder
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.times import YEARS, Plausibility, TimeUnit, read_times
from dist_teracon.data.raw.values import clean_names, clean_texts, read_numbers, whole_names, whole_texts

_REPORTED = 100  # rows of a kind that are reported one by one

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ColumnSpec:
    """How a column is read.

    Attributes:
        dtype: `token` (a text), `name` (a text of which there are few, kept as codes), `number`, or `time` (a number in `unit` since
            1970, an ISO date and time, or a type of Parquet that is one).
        required: Rows where it is empty are malformed; of a token, whether it is an id.
        unit: Of a time that is a number; `date` for digits as 20200131.
        zone: Of a time that is a date without a zone; None for UTC.
        years: Of a time, the first and the last year in which it is plausible.
        dates_matter: Of a time, whether something is chosen by date, and not by order alone.
    """

    dtype: Literal["token", "name", "number", "time"]
    required: bool = False
    unit: TimeUnit = "s"
    zone: ZoneInfo | None = None
    dates_matter: bool = False
    years: tuple[int, int] = YEARS


@dataclass(frozen=True)
class RawTable:
    """Columns of one or several raw files without their malformed rows.

    Attributes:
        columns: By name, all of the same length: a string array for a token, `Categorical` for a name, float64 with NaN for nothing for
            a number, int64 nanoseconds since 1970 for a time.
        rows: Rows of the file, malformed ones included.
        where: From a position in the columns to the row's place in the file (`file:line`, or `file: row n` for Parquet).
        file: The file, for messages.
    """

    columns: dict[str, Any]
    rows: int
    where: Callable[[int], str]
    file: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class Collected:
    """Columns that grow block by block: numbers and times as arrays, names as codes, other tokens as Arrow strings.

    Args:
        uri: The file.
        specs: How its columns are read.
        context: Where malformed rows are counted.
        constants: Columns that have one value in all rows.
        place: Names a line or row by its number.
    """

    def __init__(
        self,
        uri: str,
        specs: Mapping[str, ColumnSpec],
        context: ReadContext,
        *,
        constants: Mapping[str, str | None],
        place: Callable[[int], str],
    ) -> None:
        self._uri, self._specs, self._context, self._constants, self._place = uri, specs, context, constants, place
        self._parts: dict[str, list[Any]] = {name: [] for name in specs}
        self._names = {name: CategoricalBuilder() for name, spec in specs.items() if spec.dtype == "name"}
        self._times = {name: Plausibility(spec.unit, spec.years) for name, spec in specs.items() if spec.dtype == "time"}
        self._trimmed = dict.fromkeys(specs, 0)
        self._lines: list[NDArray[np.int64]] = []

    def add(self, table: Any, lines: NDArray[np.int64], *, faulty: Mapping[str, Mask] | None = None) -> None:
        """Add a block's rows that are well-formed; `faulty` are rows that are malformed already, by kind."""
        keep = np.ones(len(table), dtype=bool)

        def reject(kind: str, mask: Mask, text: Any = None) -> None:
            mask = mask & keep
            if mask.any():
                found = np.flatnonzero(mask).tolist()
                for row in found[:_REPORTED]:
                    self._context.bad.add(kind, self._place(int(lines[row])), text=None if text is None else str(text[row]))
                if len(found) > _REPORTED:
                    self._context.bad.add(kind, self._place(int(lines[found[_REPORTED]])), count=len(found) - _REPORTED)
                keep[mask] = False

        for kind, mask in (faulty or {}).items():
            reject(kind, mask)
        columns = {}
        for name, spec in self._specs.items():
            columns[name] = self._read(name, spec, self._column(name, table), reject)
        rows = None if keep.all() else np.flatnonzero(keep)
        for name, column in columns.items():
            self._parts[name].append(self._chosen(name, column, rows))
        if not self._names:  # places are asked for attributes alone
            self._lines.append(lines if rows is None else lines[rows])

    def _column(self, name: str, table: Any) -> Any:
        if name in self._constants:
            return pa.array([self._constants[name]] * len(table), pa.string())
        return one_array(table.column(name))

    def _read(self, name: str, spec: ColumnSpec, column: Any, reject: Callable[..., None]) -> Any:
        if spec.dtype in ("name", "token"):
            clean = clean_names if spec.dtype == "name" else clean_texts
            cleaned = clean(column, nan_is_missing=not spec.required)
            self._trimmed[name] += cleaned.trimmed
            values = cleaned.values
            if spec.required:
                reject(f"empty {name}", values.codes < 0 if spec.dtype == "name" else np.asarray(values.is_null()))
            return values
        if spec.dtype == "number":
            numbers, unreadable = read_numbers(column)
            if spec.required:
                reject(f"empty {name}", np.isnan(numbers) & ~unreadable)
            reject(f"{name} is not a number", unreadable, column)
            return numbers
        times = read_times(column, unit=spec.unit, zone=spec.zone, seen=self._times[name])
        if spec.required:
            reject(f"empty {name}", times.missing)
        reject(f"{name} is not a time", times.unreadable, column)
        reject(f"{name} lies before 1678 or after 2261", times.beyond, column)
        return times.nanoseconds

    def _chosen(self, name: str, column: Any, rows: NDArray[np.int64] | None) -> Any:
        if isinstance(column, Categorical):
            return self._names[name].add(column if rows is None else column.take(rows))
        if rows is None:
            return column
        return column[rows] if isinstance(column, np.ndarray) else column.take(pa.array(rows))

    def finish(self, rows: int) -> RawTable:
        """Return the whole file of so many rows, malformed ones included; its texts as written, which `joined` brings into one form.

        Raises:
            DataError: times that cannot be times of events, or too many malformed rows.
        """
        for name, times in self._times.items():
            line = times.check(self._uri, name, dates_matter=self._specs[name].dates_matter)
            if line is not None:
                key, fact = ("implausible", True) if times.implausible else ("outside_1990_to_2100", times.strange)
                self._context.note("times", key, fact, line)
        self._context.bad.check(self._uri, rows)
        columns = {}
        for name, spec in self._specs.items():
            parts, self._parts[name] = self._parts[name], []
            columns[name] = self._whole(name, spec, parts)
            if self._trimmed[name]:
                told = f"{self._uri}: cut off the blanks around {self._trimmed[name]} cells of column '{name}'"
                self._context.note("trimmed", name, self._trimmed[name], told)
        lines = np.concatenate(self._lines) if self._lines else None
        return RawTable(columns, rows, lambda row: self._uri if lines is None else self._place(int(lines[row])), self._uri)

    def _whole(self, name: str, spec: ColumnSpec, parts: list[Any]) -> Any:
        if spec.dtype in ("number", "time"):
            dtype = np.float64 if spec.dtype == "number" else np.int64
            return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
        if spec.dtype == "name":
            return self._names[name].build(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32))
        return pa.concat_arrays(parts) if parts else pa.array([], pa.string())


def one_array(column: Any) -> Any:
    """Return a column's one array; of no or several chunks, by Arrow's version and size."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array


def joined(tables: Sequence[RawTable], context: ReadContext) -> RawTable:
    """Return the tables of several files as one, whose whole numbers are written in one way.

    Of a column all of whose texts are whole numbers, `1.0`, as programs write them where some are missing, is `1`. That is a matter of all
    files: where another one has a name, `1.0` and `1` are two names in each.
    """
    table = tables[0] if len(tables) == 1 else _behind_one_another(tables)
    return replace(table, columns={name: _without_zeros(name, column, table.file, context) for name, column in table.columns.items()})


def _without_zeros(name: str, column: Any, file: str, context: ReadContext) -> Any:
    if isinstance(column, np.ndarray):
        return column
    found = whole_names(column) if isinstance(column, Categorical) else whole_texts(column)
    if found is None:
        return column
    whole, example = found
    told = f"{file}: column '{name}' has whole numbers written as {example}; they are read without the zeros"
    context.note("whole_numbers", name, example, told)
    return whole


def _behind_one_another(tables: Sequence[RawTable]) -> RawTable:
    columns = {name: _concatenated([table.columns[name] for table in tables]) for name in tables[0].columns}
    behind = np.cumsum([len(table) for table in tables])

    def where(row: int) -> str:
        part = int(np.searchsorted(behind, row, side="right"))
        return tables[part].where(row - (int(behind[part - 1]) if part else 0))

    file = f"{tables[0].file.rsplit('/', 1)[0]}/"
    return RawTable(columns, sum(table.rows for table in tables), where, file)


def _concatenated(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Categorical):
        return Categorical.concatenate(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)
