"""Item vectors that a user hands in, as from a text encoder: a Parquet file with an id and a vector an item, or a folder of such files
that `dist-teracon item-vectors` wrote.

Legend: n items, D the vectors' width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.raw.parquet import read_ids
from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.errors import DataError

# What is written last into a folder of vectors; it names the others.
MANIFEST = "item-vectors.json"
_HINT = "expected the columns item (its id, as in the raw data) and vector (a list of numbers, equally long in every row)"


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of items of a data set.

    Attributes:
        items: int64 [n], item indices, ascending.
        vectors: float32 [n, D].
        unknown: Rows of the file whose item the data set does not have; they are left out.
    """

    items: NDArray[np.int64]
    vectors: NDArray[np.float32]
    unknown: int


def check_item_vectors(uri: str) -> None:
    """Check that there are vectors to read, before anything heavy starts; their numbers are not read.

    Raises:
        DataError: as of `read_item_vectors`, of what can be seen without reading them.
    """
    for file in _files(uri):
        _open(file)


def checksum_of(uri: str) -> str:
    """Return the SHA-256 that names the vectors of a file or folder."""
    return io.sha256(io.join(uri, MANIFEST) if io.is_folder(uri) else uri)


def read_item_vectors(uri: str, dataset: Dataset) -> ItemVectors:
    """Read the vectors of a data set's items from a Parquet file with the columns `item` and `vector`, or a folder of them.

    Raises:
        DataError: no such file, an unfinished folder, a part that was damaged, not Parquet, other columns, an id twice, vectors of several
            lengths or with numbers that are not finite.
    """
    files = _files(uri)
    for file, sha256 in files.items():
        if sha256 is not None and io.sha256(file) != sha256:
            raise DataError(f"{file}: was damaged since it was written (its checksum is not that of {MANIFEST}); make the vectors anew")
    tables = [_open(file, read=True) for file in files]
    table = pa.concat_tables([part for part in tables if part is not None])
    ids = _ids(table["item"], uri)
    vectors = _matrix(table["vector"], ids, uri)
    vocabulary = dataset.vocabulary("items")
    place = pc.index_in(ids, value_set=vocabulary["item"].combine_chunks().cast(pa.string()))
    known = np.asarray(pc.is_valid(place))
    items = vocabulary["index"].to_numpy()[np.asarray(pc.fill_null(place, 0))[known]].astype(np.int64)
    kept, rows = items >= FIRST_ITEM, np.flatnonzero(known)
    order = np.argsort(items[kept], kind="stable")
    return ItemVectors(items[kept][order], vectors[rows[kept][order]], int((~known).sum()))


def _files(uri: str) -> dict[str, str | None]:
    """Return the Parquet files of a file or folder of vectors, and the SHA-256 that a folder's manifest has of each."""
    if not io.is_folder(uri):
        return {uri: None}
    if not io.exists(io.join(uri, MANIFEST)):
        raise DataError(
            f"{uri}: is a folder without {MANIFEST}; expected a Parquet file, or a folder that `dist-teracon item-vectors` has finished"
        )
    return {io.join(uri, name): entry["sha256"] for name, entry in io.read_json(io.join(uri, MANIFEST))["files"].items()}


def _open(uri: str, *, read: bool = False) -> pa.Table | None:
    """Check the columns of a Parquet file, and return them where they are to be read."""
    try:
        with io.open_binary(uri) as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in ("item", "vector") if name not in parquet.schema_arrow.names]
            table = parquet.read(columns=["item", "vector"]).replace_schema_metadata(None) if read and not missing else None
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{uri}: cannot be read as Parquet ({error}); {_HINT}") from None
    if missing:
        raise DataError(f"{uri}: has no column '{missing[0]}'; {_HINT}")
    return table


def _ids(column: pa.ChunkedArray, uri: str) -> pa.Array:
    ids = read_ids(uri, "item", column)
    if ids.null_count:
        raise DataError(f"{uri}: row {np.flatnonzero(np.asarray(ids.is_null()))[0] + 1}: no item id")
    counted = pc.value_counts(ids)
    if (twice := np.flatnonzero(np.asarray(counted.field("counts")) > 1)).size:
        raise DataError(f"{uri}: item '{counted.field('values')[int(twice[0])]}': expected one vector an item, got several")
    return ids


def _matrix(column: pa.ChunkedArray, ids: pa.Array, uri: str) -> NDArray[np.float32]:
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"{uri}: column 'vector': expected a list of numbers, got {kind}")
    lists = column.combine_chunks()
    if not len(lists):
        raise DataError(f"{uri}: has no rows")
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    width = int(lengths[0])
    if (bad := np.flatnonzero((lengths != width) | (lengths == 0))).size:
        raise DataError(f"{uri}: item '{ids[int(bad[0])]}' has a vector of {lengths[bad[0]]} numbers, the first of {width}; {_HINT}")
    values = pc.list_flatten(lists)
    matrix = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(lists), width)
    if (bad := np.flatnonzero(~np.isfinite(matrix).all(axis=1))).size:
        raise DataError(f"{uri}: item '{ids[int(bad[0])]}' has a number that is not finite in its vector")
    return matrix
