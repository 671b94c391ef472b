"""Hashes that are the same in every process, on every machine and in every release."""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of `text` that is the same in every process and release (BLAKE2b, 8 bytes, little-endian)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def plain_name(text: str) -> str:
    """Return a short name of plain characters for a text of any script: `_`, what is plain of it, and a hash.

    Names that begin with a letter or a digit are never among them.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:24].rstrip("-")
    digest = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
    return f"_{slug}-{digest}" if slug else f"_{digest}"


def mix64(values: NDArray[np.uint64], *, key: int) -> NDArray[np.uint64]:
    """Return keyed 64-bit hashes of 64-bit hashes: the finaliser of SplitMix64 over `values` xor a mixed `key`, vectorised."""
    with np.errstate(over="ignore"):
        mixed = (values ^ np.uint64((key * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
