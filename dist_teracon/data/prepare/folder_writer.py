"""Writing the files of a data set: Parquet tables with their checksums.

Legend: U users, F features, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.input_features import MISSING, FeatureColumn, InputFeature, InputTables
from dist_teracon.data.schema import (
    EARLIER_FILE,
    FIRST_ITEM,
    INPUT_COLUMN,
    ITEM_INPUTS_FILE,
    TYPES_FILE,
    FileEntry,
    earlier_file,
    input_file,
    task_file,
    users_file,
    vocabulary_file,
)
from dist_teracon.data.shard_source import ShardLabels


def by_name(columns: Sequence[FeatureColumn | InputFeature], values: NDArray[np.int32] | None) -> dict[str, NDArray[np.int32]]:
    """Return features int32 [rows, F] column by column."""
    return {} if values is None else {column.name: values[:, place] for place, column in enumerate(columns)}


def names_column(reserved: list[None], names: Any) -> Any:
    strings = names if isinstance(names, pa.Array) else pa.array(list(names), pa.string())
    return pa.concat_arrays([pa.array(reserved, pa.string()), strings.cast(pa.string())]) if reserved else strings


def _list_column(values: NDArray[Any], offsets: NDArray[np.int64]) -> Any:
    """Return a ragged column as an Arrow list array."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


class FolderWriter:
    """Writes the files of a data set into a local folder.

    Attributes:
        files: Rows, bytes and checksums of what was written, by path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}

    def table(self, path: str, columns: dict[str, Any]) -> None:
        """Write columns as a file of the data set."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        # without dictionaries: users and their items hardly repeat, so those cost half of the time and a seventh of the size
        pq.write_table(table, target, compression="zstd", version="2.6", use_dictionary=False)
        self.files[path] = FileEntry(len(table), target.stat().st_size, io.sha256(str(target)))

    def users(
        self, shard: int, ids: Any, hashes: NDArray[np.uint64], indices: NDArray[np.int32], offsets: NDArray[np.int64], *,
        columns: EventColumns = NO_COLUMNS, features: Mapping[str, NDArray[np.int32]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Write a shard's users: ids (an Arrow string array), hashes, sequences of item indices and what is beside these, features."""
        table = {"user_id": ids, "user_hash": pa.array(hashes, pa.uint64()), "sequence": _list_column(indices, offsets)}
        table |= {name: _list_column(getattr(columns, name), offsets) for name in columns.names}
        table |= {f"{INPUT_COLUMN}{name}": pa.array(values, pa.int32()) for name, values in features.items()}
        self.table(users_file(shard), table)

    def earlier(self, shard: int, indices: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        """Write the item indices of what a shard's users took before their sequences begin."""
        rows = np.flatnonzero(np.diff(offsets))
        lists = _list_column(indices, np.append(offsets[rows], len(indices)))
        self.table(earlier_file(shard), {"row": pa.array(rows, pa.int32()), "items": lists})

    def earlier_items(self, names: Sequence[str], *, first: int) -> None:
        """Write the names of items that no sequence holds, numbered from `first` on; none are no file."""
        if names:
            index = pa.array(np.arange(first, first + len(names)), pa.int32())
            self.table(EARLIER_FILE, {"item": pa.array(list(names), pa.string()), "index": index})

    def labels(self, task: str, shard: int, labels: ShardLabels, split: NDArray[np.int8]) -> None:
        """Write a shard's labels of a task with their splits, int8 [E]."""
        columns = {
            "row": pa.array(labels.rows, pa.int32()),
            "labels": _list_column(labels.values, labels.offsets),
            "split": _list_column(split, labels.offsets),
        }
        self.table(task_file(task, shard), columns)

    def copy(self, path: str, content: bytes, entry: FileEntry) -> None:
        """Write a file of another data set as it is."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self.files[path] = entry

    def vocabulary(self, name: str, column: str, names: Any, counts: NDArray[np.int64]) -> None:
        """Write names with their index and count."""
        self._names(vocabulary_file(name), column, names, counts)

    def types(self, names: Sequence[str], counts: NDArray[np.int64]) -> None:
        """Write the names of the events' types, the unknown one's before them, with their index and count."""
        self._names(TYPES_FILE, "type", names_column([None], names), counts)

    def inputs(self, inputs: InputTables, user_counts: Sequence[NDArray[np.int64]]) -> list[str]:
        """Write the names of features' values with their counts, and the items' values; returns the paths.

        Args:
            inputs: The features.
            user_counts: Of each feature of users int64 [values].
        """
        columns, counts = [*inputs.user, *inputs.item], list(user_counts)
        values = np.pad(inputs.item_values, ((FIRST_ITEM, 0), (0, 0)), constant_values=MISSING)
        for place, column in enumerate(inputs.item):
            counts.append(np.bincount(inputs.item_values[:, place], minlength=len(column.names) + 1))
        for column, of_values in zip(columns, counts, strict=True):
            self._names(input_file(column.name), "value", names_column([None], column.names), of_values)
        if inputs.item:
            index = {"index": pa.array(np.arange(len(values)), pa.int32())}
            self.table(
                ITEM_INPUTS_FILE,
                {**index, **{f"{INPUT_COLUMN}{n}": pa.array(v, pa.int32()) for n, v in by_name(inputs.item, values).items()}},
            )
        return [*(input_file(column.name) for column in columns), *([ITEM_INPUTS_FILE] if inputs.item else [])]

    def _names(self, path: str, column: str, names: Any, counts: NDArray[np.int64]) -> None:
        index = pa.array(np.arange(len(names)), pa.int32())
        self.table(path, {column: names, "index": index, "count": pa.array(counts, pa.int64())})
