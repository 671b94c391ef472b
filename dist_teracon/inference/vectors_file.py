"""Vectors in files: Parquet, npy or safetensors; fp32, fp16, or int8 with a scale a row.

Legend: B users, W numbers of a vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from dist_teracon.errors import DataError

Format = Literal["parquet", "npy", "safetensors"]
Dtype = Literal["float32", "float16", "int8"]
FORMATS: tuple[Format, ...] = ("parquet", "npy", "safetensors")
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8")

_ROW_GROUP = 8192


def converted(vectors_BW: NDArray[np.float32], dtype: Dtype) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return vectors in a type; for int8 also the scale of each row, by which its numbers are multiplied.

    Raises:
        DataError: a vector has a number that is not finite, or is too large for the type.
    """
    if not np.isfinite(vectors_BW).all():
        raise DataError("a vector holds numbers that are not finite; the model is broken, or its training diverged")
    if dtype == "float32":
        return vectors_BW, None
    if dtype == "float16":
        if vectors_BW.size and np.abs(vectors_BW).max() > np.finfo(np.float16).max:
            raise DataError("a vector holds a number that float16 cannot hold (above 65504); use --dtype float32")
        return vectors_BW.astype(np.float16), None
    largest = np.abs(vectors_BW).max(axis=1) if vectors_BW.shape[1] else np.zeros(len(vectors_BW))
    scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    return np.clip(np.rint(vectors_BW / scale[:, None]), -127, 127).astype(np.int8), scale


def restored(values_BW: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return vectors in fp32 as `converted` was given them, up to rounding."""
    wide = values_BW.astype(np.float32)
    return wide if scale is None else wide * scale[:, None]


def fixed_lists(values_BW: NDArray[Any]) -> pa.Array:
    """Return vectors as an Arrow array of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values_BW).reshape(-1)), values_BW.shape[1])


def vector_columns(vectors: dict[str, tuple[NDArray[Any], NDArray[np.float32] | None]]) -> dict[str, pa.Array]:
    """Return the Parquet columns of vectors: `vector_<name>`, and for int8 `scale_<name>`."""
    columns: dict[str, pa.Array] = {}
    for name, (values, scale) in vectors.items():
        columns[f"vector_{name}"] = fixed_lists(values)
        if scale is not None:
            columns[f"scale_{name}"] = pa.array(scale)
    return columns


def write_table(path: Path, columns: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write columns as a Parquet file with metadata."""
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=_ROW_GROUP)


def write_npy(path: Path, values: NDArray[Any]) -> None:
    """Write an array as an npy file."""
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(values), allow_pickle=False)


def write_safetensors(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write arrays as a safetensors file."""
    path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=metadata))
