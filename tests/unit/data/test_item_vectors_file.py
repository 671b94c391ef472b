"""Ids in a file of item vectors are read as those of events are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.data.item_vectors_file import read_item_vectors
from dist_teracon.errors import DataError

NAMES = ["10", "20", "30"]


def dataset() -> Any:
    table = pa.table({"item": [None, None, *NAMES], "index": pa.array(range(5), pa.int32())})
    return SimpleNamespace(vocabulary=lambda _name: table)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["30", "10", "7"], kind) if kind != pa.binary() else pa.array([b"30", b"10", b"7"], kind)
        for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary())
    ]
    + [
        pa.array(["30", "10", "7"]).dictionary_encode(),
        pa.array([30, 10, 7], pa.uint16()),
        pa.array([30.0, 10.0, 7.0]),
        pa.array(["30.0", "10.0", "7.0"]),
        pa.array([" 30", "10 ", "7"]),
    ],
)
def test_ids_of_any_type(ids, tmp_path):
    pq.write_table(pa.table({"item": ids, "vector": [[1.0], [2.0], [3.0]]}), tmp_path / "v.parquet")
    read = read_item_vectors(str(tmp_path / "v.parquet"), dataset())
    assert read.items.tolist() == [2, 4]
    np.testing.assert_array_equal(read.vectors, [[2.0], [1.0]])
    assert read.unknown == 1


@pytest.mark.parametrize(
    ("ids", "said"),
    [([1.5], "expected ids as text or whole numbers, got 1.5"), ([b"\xff"], "row 1: .*expected UTF-8 text"), ([""], "row 1: no item id")],
)
def test_ids_that_are_none(ids, said, tmp_path):
    pq.write_table(pa.table({"item": ids, "vector": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=said):
        read_item_vectors(str(tmp_path / "v.parquet"), dataset())
