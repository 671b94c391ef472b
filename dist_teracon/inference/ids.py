"""Raw ids in the form that preparation gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dist_teracon.errors import DataError


def id_text(value: Any) -> str:
    """Return an id as preparation reads it: a text without blanks around it, a whole number by its digits.

    Raises:
        DataError: it is neither, or a float so large that its neighbours are read as the same id.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        bits = np.finfo(type(value)).nmant + 1
        if abs(float(value)) >= 2.0**bits:
            raise DataError(f"expected ids that are texts or whole numbers, got {value!r}: {_kind(value)} holds no exact ids from 2^{bits} "
                            "on; give them as texts or integers")  # fmt: skip
        return str(int(value))
    raise DataError(f"expected ids that are texts or whole numbers, got {value!r} ({_kind(value)})")


def _kind(value: Any) -> str:
    return type(value).__name__
