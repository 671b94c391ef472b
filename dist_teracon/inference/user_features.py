"""Side features of users in use: read beside histories where the model was trained with them, missing where they are not given.

Legend: B users, F features that the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data.input_features import MISSING, InputFeature, bin_of
from dist_teracon.data.prepare.input_values import number_of
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.parquet import attribute_texts
from dist_teracon.data.raw.table import one_array
from dist_teracon.data.raw.values import whole_name
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.sources.base import Attributes
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.vocabulary import Vocabulary

_EXAMPLE = '[{"region": "north", "age": 33}, {}]'


@dataclass(frozen=True)
class FeaturesRead:
    """What was read.

    Attributes:
        values: int32 [B, F]; None for a model that reads none.
        strange: int64 [B], values that the model does not know, which are read as missing; None where none are given.
        told: What a person should hear.
    """

    values: NDArray[np.int32] | None = None
    strange: NDArray[np.int64] | None = None
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of users that a model reads.

    Attributes:
        features: Which they are.
        names: By feature of categories, the names of its values.
        declared: All features of users that the data set has.
        recipe: By which it was prepared, with the codes of unknown.
    """

    features: tuple[InputFeature, ...] = ()
    names: Mapping[str, Vocabulary] = field(default_factory=dict)
    declared: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    def read(self, given: Any, users: int, names: pa.Array | None) -> FeaturesRead:
        """Return features, and what a person should hear of them.

        Args:
            given: A mapping for each user in their order; such mappings by user's id, or an Arrow table or pandas DataFrame with the
                column of users, where the histories came with ids; None where nothing is known.
            users: B.
            names: The users' ids, where the histories came with them.

        Raises:
            ConfigError: the model reads none, and some are given.
            DataError: they are of another form, number or name, or a binned one is no number.
        """
        if not self.features:
            if given is not None:
                raise ConfigError("features: the model reads no features of users (model.input_features); leave them out")
            return FeaturesRead()
        values = np.full((users, len(self.features)), MISSING, dtype=np.int32)
        shown = ", ".join(feature.name for feature in self.features)
        if given is None:
            return FeaturesRead(values, told=(f"features of users ({shown}) are not given; all are read as missing",) if users else ())
        rows, told = self._rows(given, users, names)
        strange = np.zeros(users, dtype=np.int64)
        for place, feature in enumerate(self.features):
            texts = _texts(feature.name, [row.get(feature.name) for row in rows], names)
            texts = [None if self._is_missing(feature.name, text) else text for text in texts]
            if feature.edges:
                numbers = [_number(feature.name, text, row, names) for row, text in enumerate(texts)]
                values[:, place] = bin_of(np.array(numbers), feature.edges)
            else:
                found = [self._category(feature, text) for text in texts]
                values[:, place] = [number for number, _ in found]
                strange += [unknown for _, unknown in found]
        if strange.any():
            told = (*told, f"{strange.sum()} values of features ({shown}) are not known to the model; it reads them as missing")
        return FeaturesRead(values, strange, told)

    def of_table(self, table: Attributes | None, told: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]] | None, tuple[str, ...]]:
        """Return the features of a table of users by their ids, None for no table, and what a person should hear of them.

        A cell that is no number where numbers are read is missing, as in preparation.

        Args:
            table: The table.
            told: What a person should hear already.

        Raises:
            DataError: more cells are none than preparation passes over.
        """
        if table is None:
            return None, told
        columns = {feature.name: table.columns[feature.name].to_pylist() for feature in self.features}
        for feature in (feature for feature in self.features if feature.edges):
            cells = columns[feature.name]
            strange = [row for row, cell in enumerate(cells) if cell is not None and not np.isfinite(number_of(cell))]
            if not strange:
                continue
            first = f"first at {table.where(strange[0])}: {cells[strange[0]]!r}"
            if len(strange) > BadRows.limit * len(cells):
                raise DataError(
                    f"{table.file}: {len(strange)} of {len(cells)} users have a '{feature.name}' that is no number, {first}; write a "
                    "number there, or leave the cell empty, which is read as missing"
                )
            told = (*told, f"{table.file}: {len(strange)} users have a '{feature.name}' that is no number, {first}; it is read as missing")
            for row in strange:
                cells[row] = None
        return {user: {name: cells[row] for name, cells in columns.items()} for user, row in table.rows.items()}, told

    def numbers(self, feature: InputFeature, theirs: Sequence[str | None]) -> NDArray[np.int32]:
        """Return the model's number of each of another data set's values of a feature of categories."""
        return np.array([self._category(feature, name)[0] for name in theirs], dtype=np.int32)

    def _rows(self, given: Any, users: int, names: pa.Array | None) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
        told: tuple[str, ...] = ()
        if (pairs := self._pairs(given)) is not None:
            if names is None:
                raise DataError(f"features: the histories have no ids of users; give a mapping for each of them, as {_EXAMPLE}")
            given, told = self._by_user(pairs, names.to_pylist())
        if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not all(isinstance(row, Mapping) for row in given):
            raise DataError(f"features: expected a mapping for each user, as {_EXAMPLE}, got {type(given).__name__}")
        if len(given) != users:
            raise DataError(f"features: expected a mapping for each of {users} users, got {len(given)}")
        for name in dict.fromkeys(name for row in given for name in row):
            if name not in self.declared:
                raise DataError(f"features: the data set has no feature '{name}' of users{nearest(name, self.declared)} (it has: "
                                f"{', '.join(self.declared)})")  # fmt: skip
        return list(given), told

    def _pairs(self, given: Any) -> list[tuple[Any, Mapping[str, Any]]] | None:
        """Return users with their features, of what names them; None for a row a user."""
        if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a pandas DataFrame
            given = pa.Table.from_pandas(given, preserve_index=False)
        if isinstance(given, pa.Table):
            key = self.recipe.columns.user or "user"
            if key not in given.column_names:
                raise DataError(f"features: the table has no column '{key}' of users (it has: {', '.join(given.column_names)})")
            return [(row.pop(key), row) for row in _with_texts(given, but=key).to_pylist()]
        if not isinstance(given, Mapping):
            return None
        if not all(isinstance(row, Mapping) for row in given.values()):
            raise DataError('features: expected the features of each user by name, as {"u1": {"region": "north"}}')
        return list(given.items())

    def _by_user(
        self, given: Sequence[tuple[Any, Mapping[str, Any]]], names: Sequence[str]
    ) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:  # fmt: skip
        """Return the row of each user, by the rule of preparation the first value that is not missing; and what does not match."""
        found: dict[str, dict[str, Any]] = {}
        several = set()
        for user, row in given:
            name_of_user = id_text(user)
            several.update([name_of_user] if name_of_user in found else [])
            own = found.setdefault(name_of_user, {})
            for name, cell in row.items():
                if name not in own or self._is_missing(name, own[name]):
                    own[name] = cell
        absent, strangers = sum(name not in found for name in names), sorted(found.keys() - set(names))
        told = []
        if several:
            told.append(f"{len(several)} users have several rows of features; their first value that is not missing counts")
        if absent:
            told.append(f"{absent} of {len(names)} users have no features given; theirs are read as missing")
        if absent and strangers:  # else the table is merely larger than the events
            told.append(f"features are given of {len(strangers)} users who have no history here, as '{strangers[0]}'; histories are of "
                        f"users as '{names[0]}'")  # fmt: skip
        return [found.get(name, {}) for name in names], tuple(told)

    def _is_missing(self, feature: str, text: str | None) -> bool:
        """Return whether a cell stands for nothing, as preparation reads it: empty, or one of the recipe's codes."""
        return text is None or bool({text, whole_name(text)} & self._codes.get(feature, set()))

    @cached_property
    def _codes(self) -> dict[str, set[str | None]]:
        """By feature the codes of unknown, in every form in which a whole number may be written."""
        codes = {name: self.recipe.missing_in(name) for name in self.declared}
        return {name: {form for code in given for form in (code, whole_name(code)) if form} for name, given in codes.items()}

    def _category(self, feature: InputFeature, text: str | None) -> tuple[int, bool]:
        if not text:
            return MISSING, False
        number = self.names[feature.name].index(text)
        known = 0 <= number < feature.values
        return (number if known else MISSING), not known


def _with_texts(table: pa.Table, *, but: str) -> pa.Table:
    """Return a table with its columns but one as texts, so that a value of 32 bits is the one that preparation reads."""
    for place, name in enumerate(table.column_names):
        if name == but:
            continue
        try:
            table = table.set_column(place, name, attribute_texts(one_array(table[name])))
        except TypeError as error:
            raise DataError(f"features: expected texts, numbers or dates in column '{name}', got {error}") from None
    return table


def _texts(name: str, cells: Sequence[Any], users: pa.Array | None) -> list[str | None]:
    """Return cells as preparation reads them, None for nothing; raises DataError for one that is no text, number or date."""
    texts: list[str | None] = [None] * len(cells)
    for kind in dict.fromkeys(map(type, cells)):
        rows = [row for row, cell in enumerate(cells) if type(cell) is kind]
        # among others, a decimal's text would have the digits of the longest of them
        column = [str(cells[row]) if kind is Decimal else cells[row] for row in rows]
        try:
            found = attribute_texts(pa.array(column)).to_pylist()
        except (TypeError, ValueError, OverflowError, pa.ArrowException):
            raise DataError(f"features: expected a text, a number or a date for '{name}' of {_whose(rows[0], users)}, got "
                            f"{cells[rows[0]]!r} ({kind.__name__})") from None  # fmt: skip
        for row, text in zip(rows, found, strict=True):
            texts[row] = text
    return texts


def _number(name: str, text: str | None, row: int, users: pa.Array | None) -> float:
    """Return the number of a cell of a binned feature, NaN for none; raises DataError where it is something else."""
    number = number_of(text)
    if text is not None and not np.isfinite(number):
        raise DataError(
            f"features: expected a number for '{name}' of {_whose(row, users)}, got {text!r}; leave it out where it is not known"
        )
    return number


def _whose(row: int, users: pa.Array | None) -> str:
    return f"history {row}" if users is None else f"user '{users[row].as_py()}'"
