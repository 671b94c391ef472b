"""Raw ids in the form that preparation gives them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dist_teracon.errors import DataError


def id_text(value: Any) -> str:
    """Return an id as preparation reads it: a text without blanks around it, a whole number by its digits.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    raise DataError(f"expected ids that are texts or whole numbers, got {value!r} ({type(value).__name__})")
