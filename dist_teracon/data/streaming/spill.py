"""Rows on their way from raw files to shards: Arrow files in a temporary folder, one a partition and kind of row.

A partition holds whole users: it is a function of their hash, and partitions and shards divide into one another, so a shard is made
from the rows of one or a few partitions alone. Rows keep the order in which they came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged

# A power of two that every number of partitions divides: shards that nobody asked for by number come in powers of two.
_WHOLE = 1 << 20
_MOST_PARTITIONS = 256
_PARTITION_BYTES = 32 << 20
_PENDING = 1 << 21  # numbers; of 32 MB and more the C library would ask the system anew each time
_LIST = "items"

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Partitioning:
    """From a user's hash to a partition.

    Attributes:
        partitions: How many there are.
        modulus: The number of shards where it is known, else 2²⁰.
    """

    partitions: int
    modulus: int = _WHOLE

    @classmethod
    def for_size(cls, stored_bytes: int, shards: int | None) -> Partitioning:
        """Return partitions of about 32 MiB of raw text."""
        count = 1 << (stored_bytes // _PARTITION_BYTES).bit_length()
        if shards is not None and shards & (shards - 1):
            return cls(min(shards, _MOST_PARTITIONS), shards)
        return cls(min(count, _MOST_PARTITIONS))

    def of(self, hashes: Hashes) -> NDArray[np.uint16]:
        """Return each hash's partition."""
        return (hashes % np.uint64(self.modulus) % np.uint64(self.partitions)).astype(np.uint16)

    def groups(self, shards: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield partitions and the shards that are made of them, each once."""
        if self.modulus != _WHOLE:
            assert shards == self.modulus
        if shards >= self.partitions:
            for partition in range(self.partitions):
                yield [partition], list(range(partition, shards, self.partitions))
        else:
            for shard in range(shards):
                yield list(range(shard, self.partitions, shards)), [shard]


class Spill:
    """Rows of one kind, written partition by partition.

    Args:
        folder: Where the files lie.
        kind: A name for these rows.
        partitioning: Where a row goes.

    Rows are columns of numbers and, where there is one, a ragged column `items` of int32.
    """

    def __init__(self, folder: Path, kind: str, partitioning: Partitioning) -> None:
        self.folder, self.kind, self.partitioning = folder, kind, partitioning
        self.rows = 0
        self._pending: list[tuple[dict[str, NDArray[Any]], tuple[NDArray[np.int32], NDArray[np.int64]] | None]] = []
        self._pending_numbers = 0
        self._files: dict[int, tuple[Any, Any]] = {}

    def add(self, columns: dict[str, NDArray[Any]], items: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None) -> None:
        """Add rows; the column `hash` decides their partition."""
        rows = len(columns["hash"])
        if rows == 0:
            return
        self._pending.append((columns, items))
        self._pending_numbers += rows * len(columns) + (0 if items is None else len(items[0]))
        self.rows += rows
        if self._pending_numbers >= _PENDING:
            self._flush()

    def close(self) -> None:
        """Write what is pending and end the files."""
        self._flush()
        for sink, writer in self._files.values():
            writer.close()
            sink.close()
        self._files.clear()

    def _flush(self) -> None:
        if not self._pending:
            return
        parts, self._pending, self._pending_numbers = self._pending, [], 0
        columns = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
        partition = self.partitioning.of(columns["hash"])
        order = np.argsort(partition, kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        ragged_parts = [items for _, items in parts if items is not None]
        items = ragged.take(*ragged.concatenate(ragged_parts), order) if ragged_parts else None
        bounds = ragged.offsets_of(np.bincount(partition, minlength=self.partitioning.partitions))
        for number, (start, end) in enumerate(pairwise(bounds.tolist())):
            if end > start:
                self._write(number, columns, items, start, end)

    def _write(self, number: int, columns: dict[str, NDArray[Any]], items: Any, start: int, end: int) -> None:
        arrays = {name: pa.array(values[start:end]) for name, values in columns.items()}
        if items is not None:
            values, offsets = items
            own = (offsets[start : end + 1] - offsets[start]).astype(np.int32)
            arrays[_LIST] = pa.ListArray.from_arrays(pa.array(own), pa.array(values[offsets[start] : offsets[end]]))
        batch = pa.record_batch(arrays)
        if number not in self._files:
            sink = pa.OSFile(str(self.folder / spill_name(self.kind, number)), "wb")
            self._files[number] = (sink, pa.ipc.new_stream(sink, batch.schema))
        self._files[number][1].write_batch(batch)


def spill_name(kind: str, partition: int) -> str:
    """Return the name of the file of a partition's rows of one kind."""
    return f"{kind}-{partition:03d}.arrow"


def read_spill(folder: Path, kind: str, partitions: list[int]) -> Any:
    """Return the rows of some partitions as an Arrow table, one partition behind the other; None where there are none."""
    tables = []
    for partition in partitions:
        path = folder / spill_name(kind, partition)
        if path.exists():
            with pa.OSFile(str(path), "rb") as source:
                tables.append(pa.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables) if tables else None


def numbers(table: Any, name: str) -> NDArray[Any]:
    """Return a column of numbers."""
    column = table.column(name)
    return np.concatenate([np.zeros(0, column.type.to_pandas_dtype()), *(chunk.to_numpy() for chunk in column.chunks)])


def lists(table: Any) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the ragged column."""
    chunks = table.column(_LIST).chunks
    values = [chunk.flatten().to_numpy() for chunk in chunks]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.int32), *values]), ragged.offsets_of(np.concatenate([np.zeros(0, np.int32), *lengths]))


def write_state(folder: Path, value: dict[str, Any]) -> None:
    """Mark the spilled rows as whole, with what else is known of them."""
    (folder / "state.json").write_text(json.dumps(value))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what is known of spilled rows that are whole."""
    try:
        value: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return value
