"""Raw ids in the form of preparation; floats that stand for two ids are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dist_teracon.errors import DataError
from dist_teracon.inference.histories import _texts
from dist_teracon.inference.ids import id_text


@pytest.mark.parametrize(("kind", "bits"), [(float, 53), (np.float64, 53), (np.float32, 24), (np.float16, 11)])
def test_floats_are_ids_up_to_the_first_that_stands_for_two(kind: type, bits: int) -> None:
    assert id_text(kind(2**bits - 1)) == str(2**bits - 1)
    for beyond in (kind(2**bits), kind(-(2**bits))):
        with pytest.raises(DataError, match=rf"holds no exact ids from 2\^{bits} on; give them as texts or integers"):
            id_text(beyond)


def test_a_column_of_32_bits_has_the_bound_of_its_own_width() -> None:
    assert _texts(pa.array([2.0**24 - 1], pa.float32())).to_pylist() == ["16777215"]
    with pytest.raises(DataError, match=r"float32 holds no exact ids from 2\^24 on"):
        _texts(pa.array([2.0**24], pa.float32()))
    assert _texts(pa.array([2**53 + 1])).to_pylist() == ["9007199254740993"]
