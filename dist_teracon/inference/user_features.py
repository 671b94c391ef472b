"""Side features of users in use: read beside histories where the model was trained with them, missing where they are not given.

Legend: B users, F features that the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data.input_features import MISSING, InputFeature, bin_of
from dist_teracon.data.prepare.input_values import number_of
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.sources.base import Attributes
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.vocabulary import Vocabulary

_EXAMPLE = '[{"region": "north", "age": 33}, {}]'


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

    def read(self, given: Any, users: int, names: pa.Array | None) -> tuple[NDArray[np.int32] | None, tuple[str, ...]]:
        """Return features int32 [B, F], None for a model that reads none; and what a person should hear.

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
            return None, ()
        values = np.full((users, len(self.features)), MISSING, dtype=np.int32)
        shown = ", ".join(feature.name for feature in self.features)
        if given is None:
            return values, (f"features of users ({shown}) are not given; all are read as missing",) if users else ()
        rows = self._rows(given, users, names)
        unknown = 0
        for place, feature in enumerate(self.features):
            cells = [row.get(feature.name) for row in rows]
            values[:, place] = bin_of(np.array([_number(feature.name, cell) for cell in cells]), feature.edges) if feature.edges else 0
            if not feature.edges:
                values[:, place], strange = self._categories(feature, cells)
                unknown += strange
        told = (f"{unknown} values of features ({shown}) are not known to the model; it reads them as missing",) if unknown else ()
        return values, told

    def of_table(self, table: Attributes | None) -> dict[str, dict[str, Any]] | None:
        """Return the features of a table of users by their ids; None for no table."""
        if table is None:
            return None
        columns = {feature.name: table.columns[feature.name].to_pylist() for feature in self.features}
        return {user: {name: cells[row] for name, cells in columns.items()} for user, row in table.rows.items()}

    def numbers(self, feature: InputFeature, theirs: Sequence[str | None]) -> NDArray[np.int32]:
        """Return the model's number of each of another data set's values of a feature of categories."""
        return np.array([self._category(feature, name)[0] for name in theirs], dtype=np.int32)

    def _rows(self, given: Any, users: int, names: pa.Array | None) -> list[Mapping[str, Any]]:
        if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a pandas DataFrame
            given = pa.Table.from_pandas(given, preserve_index=False)
        if isinstance(given, pa.Table):
            key = self.recipe.columns.user or "user"
            if key not in given.column_names:
                raise DataError(f"features: the table has no column '{key}' of users (it has: {', '.join(given.column_names)})")
            given = {id_text(row.pop(key)): row for row in given.to_pylist()}
        if isinstance(given, Mapping):
            if names is None:
                raise DataError(f"features: the histories have no ids of users; give a mapping for each of them, as {_EXAMPLE}")
            by_user = {id_text(user): row for user, row in given.items()}
            given = [by_user.get(user, {}) for user in names.to_pylist()]
        if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not all(isinstance(row, Mapping) for row in given):
            raise DataError(f"features: expected a mapping for each user, as {_EXAMPLE}, got {type(given).__name__}")
        if len(given) != users:
            raise DataError(f"features: expected a mapping for each of {users} users, got {len(given)}")
        for name in dict.fromkeys(name for row in given for name in row):
            if name not in self.declared:
                raise DataError(f"features: the data set has no feature '{name}' of users{nearest(name, self.declared)} (it has: "
                                f"{', '.join(self.declared)})")  # fmt: skip
        return list(given)

    def _categories(self, feature: InputFeature, cells: Sequence[Any]) -> tuple[NDArray[np.int32], int]:
        codes = self.recipe.missing_in(feature.name)
        texts = [None if cell is None or (isinstance(cell, float) and np.isnan(cell)) else _text(cell) for cell in cells]
        found = [self._category(feature, None if text in codes else text) for text in texts]
        return np.array([number for number, _ in found], dtype=np.int32), sum(strange for _, strange in found)

    def _category(self, feature: InputFeature, text: str | None) -> tuple[int, bool]:
        if not text:
            return MISSING, False
        number = self.names[feature.name].index(text)
        known = 0 <= number < feature.values
        return (number if known else MISSING), not known


def _text(cell: Any) -> str:
    return str(cell).lower() if isinstance(cell, bool | np.bool_) else id_text(cell)


def _number(name: str, cell: Any) -> float:
    """Return a cell of a binned feature as a number, NaN for none; raises DataError where it is something else."""
    if cell is None or cell == "":
        return float("nan")
    number = number_of(cell) if isinstance(cell, str) else float(cell) if isinstance(cell, int | float | np.number) else None
    if number is None or isinstance(cell, bool) or (isinstance(cell, str) and not np.isfinite(number)):
        raise DataError(f"features: expected a number for '{name}', got {cell!r}")
    return number
