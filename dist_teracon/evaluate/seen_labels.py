"""Which labels of a task training has seen, as a finished stage keeps it: later versions of the data set have other training examples."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed_labels(seen_Y: NDArray[np.bool_]) -> dict[str, Any]:
    """Return JSON values of a mask of labels: a bit a label, compressed, some hundred kilobytes of half a million labels at most."""
    return {"labels": len(seen_Y), "bits": base64.b64encode(zlib.compress(np.packbits(seen_Y).tobytes())).decode()}


def unpacked_labels(value: dict[str, Any] | None, labels: int) -> NDArray[np.bool_] | None:
    """Return the mask of so many labels, those that came later unseen; None where a stage of before has not kept it.

    Raises:
        ValueError: what is kept is none.
    """
    if value is None:
        return None
    seen = np.zeros(labels, dtype=np.bool_)
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(value["bits"], validate=True)), dtype=np.uint8)
        kept = np.unpackbits(bits, count=int(value["labels"])).astype(np.bool_)[:labels]
    except (KeyError, TypeError, ValueError, zlib.error) as error:  # of base64, too
        raise ValueError(f"no mask of labels ({error})") from None
    seen[: len(kept)] = kept
    return seen
