"""Cells of a raw column in their one form: blanks around them cut off, nothing where nothing stands.

Missing are, in every format, null, an empty cell and, outside of ids that are written as text, NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_teracon.data.raw.categorical import Categorical

NAN_TEXTS = ("NaN", "nan")
_NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_WHOLE = r"^[-+]?[0-9]+(\.0+)?$"
_TRUTH = {"true", "false"}
_WHOLE_NAME = re.compile(r"([-+]?[0-9]+)(\.0+)?")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cleaned:
    """A column of texts: `values` (a `Categorical` for names, else a string array), and how many had blanks around them."""

    values: Any
    trimmed: int


def clean_names(column: Any, *, nan_is_missing: bool) -> Cleaned:
    """Return names as codes; blanks around them are cut off, and −1 stands where nothing is left."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    none = ("", *NAN_TEXTS) if nan_is_missing else ("",)
    written = encoded.dictionary.fill_null("")
    cut = pc.utf8_trim_whitespace(written)
    trimmed = np.append(np.asarray(pc.not_equal(cut, written)), False)
    names: list[str] = cut.to_pylist()
    if not trimmed.any() and not pc.any(pc.is_in(cut, pa.array(none))).as_py():
        return Cleaned(Categorical(codes, names), 0)
    index: dict[str, int] = {}
    own = [-1 if name in none else index.setdefault(name, len(index)) for name in names]
    return Cleaned(Categorical(np.array([*own, -1], dtype=np.int32)[codes], list(index)), int(trimmed[codes].sum()))


def clean_texts(column: Any, *, nan_is_missing: bool) -> Cleaned:
    """Return a string array; blanks around the texts are cut off, and null stands where nothing is left."""
    texts = pc.utf8_trim_whitespace(column)
    trimmed = int(pc.sum(pc.not_equal(texts, column)).as_py() or 0)
    none = pc.is_in(texts, pa.array(["", *(NAN_TEXTS if nan_is_missing else ())]))
    return Cleaned(pc.if_else(none, pa.scalar(None, pa.string()), texts), trimmed)


def read_numbers(column: Any) -> tuple[NDArray[np.float64], Mask]:
    """Return float64 values (NaN for nothing) and a mask of those that are there and no numbers."""
    if not pa.types.is_string(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return values, np.isinf(values)
    text = pc.utf8_trim_whitespace(column)
    numeric = np.asarray(pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
    missing = np.asarray(pc.fill_null(pc.is_in(text, pa.array(["", *NAN_TEXTS])), False)) | np.asarray(column.is_null())
    values = np.full(len(column), np.nan)
    values[numeric] = np.asarray(text.filter(pa.array(numeric)).cast(pa.float64()))
    return values, ~missing & ~np.isfinite(values)


def whole_name(name: str) -> str | None:
    """Return a whole number's text without a point and zeros behind it, None for another text."""
    match = _WHOLE_NAME.fullmatch(name)
    if match is None:
        return None
    return "0" if match.group(1) in ("-0", "+0") else match.group(1)


def whole_names(column: Categorical) -> tuple[Categorical, str] | None:
    """Return names that are all whole numbers, some as 1.0, as a table's numbers are where some are missing, as 1; with one as written.

    None where there is another name, or none with a point.
    """
    example = next((name for name in column.names if "." in name), None)
    if example is None:
        return None
    found = [whole_name(name) for name in column.names]
    index: dict[str, int] = {}
    own = []
    for name in found:
        if name is None:
            return None
        own.append(index.setdefault(name, len(index)))
    return Categorical(np.array([*own, -1], dtype=np.int32)[column.codes], list(index)), example


def truth_names(column: Categorical) -> Categorical | None:
    """Return names that are all truth values, of which one is written in two ways (`True` of a CSV, `true` of Parquet), in small letters.

    None where there is another name, or each has one spelling.
    """
    small = [name.lower() for name in column.names]
    names = list(dict.fromkeys(small))
    if not set(names) <= _TRUTH or len(names) == len(small):
        return None
    return Categorical(np.array([*map(names.index, small), -1], dtype=np.int32)[column.codes], names)


def with_truth_forms(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return names' numbers; where all names are truth values, by their other spellings, too (`True`, `TRUE`, `true`)."""
    small = {name.lower(): number for name, number in numbers.items()}
    if not set(small) <= _TRUTH or len(small) < len(numbers):
        return dict(numbers)
    return {form: number for name, number in small.items() for form in (name, name.title(), name.upper())}


def whole_texts(column: Any) -> tuple[Any, str] | None:
    """Return a string array of texts that are all whole numbers, some as 1.0, as 1; as `whole_names`."""
    present = column.drop_null()
    pointed = pc.index(pc.match_substring(present, "."), True).as_py()
    if pointed < 0 or not pc.all(pc.match_substring_regex(present, _WHOLE)).as_py():
        return None
    texts = pc.replace_substring_regex(pc.replace_substring_regex(column, r"\.0+$", ""), r"^[-+]0$", "0")
    return texts, present[pointed].as_py()
