"""Side features of users and items by a recipe's `inputs`: numbers of categories and bins, 0 where a value is missing.

Legend: P people, U rows of users, V items of the catalogue, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.data.input_features import (
    MISSING,
    NO_FEATURES,
    NO_INPUTS,
    FeatureColumn,
    InputFeature,
    InputFeatures,
    InputTables,
    bin_of,
)
from dist_teracon.data.prepare.matched import Funnel
from dist_teracon.data.prepare.user_rows import UserRows
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_inputs import InputRule
from dist_teracon.data.recipe_values import bin_names, number_text
from dist_teracon.data.sources.base import Attributes, EventData
from dist_teracon.errors import ConfigError, DataError

# More are no categories but ids, or numbers.
MOST_VALUES = 999

Int = NDArray[np.int64]


def input_values(
    recipe: Recipe, source: EventData, users: UserRows, items: Sequence[str], *,
    bad: BadRows, known: InputFeatures = NO_FEATURES, log: Log,
) -> tuple[InputTables, NDArray[np.int32] | None, dict[str, Funnel]]:  # fmt: skip
    """Return the features, those of users' rows int32 [U, F] (None without `inputs`), and by feature what was counted.

    Categories are numbered by falling count, then name. Bins that the recipe leaves to the values have about as many users or items each.
    Under a split by time both follow from users who are trained on.

    Args:
        recipe: With `inputs`.
        source: Its source, with tables of users and items.
        users: The rows of users.
        items: The catalogue.
        bad: Counts values that are no numbers where numbers are binned.
        known: Features of the version that this is added to: bins are cut where its are, and a feature may have one value.
        log: Takes a line on what is closed to which task.

    Raises:
        ConfigError: the source has no such table.
        DataError: a feature has a thousand values or one, or too many values are no numbers.
    """
    if not recipe.inputs.names:
        return NO_INPUTS, None, {}
    funnels: dict[str, Funnel] = {}
    trains = users.trains(np.arange(len(users.names)))
    counted_P = np.zeros(len(users.people), dtype=bool)
    counted_P[users.person_of_row[trains]] = True
    before = {feature.name: feature for feature in (*known.user, *known.item)}
    of_users = _table("user", recipe.inputs.user, source.users, users.people, counted_P, bad, funnels, before)
    of_items = _table("item", recipe.inputs.item, source.items, items, np.ones(len(items), dtype=bool), bad, funnels, before)
    values_UF = _stacked([values for _, values in of_users], len(users.people))[users.person_of_row]
    tables = InputTables(
        user=[column for column, _ in of_users],
        item=[column for column, _ in of_items],
        item_values=_stacked([values for _, values in of_items], len(items)),
        closed=recipe.closed_inputs(),
    )
    for rule in (*recipe.inputs.user, *recipe.inputs.item):
        column = next(column for column in (*tables.user, *tables.item) if column.name == rule.name)
        if isinstance(rule.bins, int) and rule.name not in before and len(column.names) < rule.bins:
            log(f"inputs: '{rule.name}' has {len(column.names)} bins instead of {rule.bins}, as many values are the same: "
                f"{', '.join(column.names)}")  # fmt: skip
    for task, names in tables.closed.items():
        log(f"inputs: task '{task}' does not read {', '.join(names)}")
    return tables, values_UF, funnels


def _stacked(columns: Sequence[NDArray[np.int32]], rows: int) -> NDArray[np.int32]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype=np.int32)


def _table(
    kind: str, rules: Sequence[InputRule], table: Attributes | None, names: Sequence[str], counted: NDArray[np.bool_], bad: BadRows,
    funnels: dict[str, Funnel], known: Mapping[str, InputFeature],
) -> list[tuple[FeatureColumn, NDArray[np.int32]]]:  # fmt: skip
    """Return each feature with its values for some users or items, in the order of `names`."""
    if not rules:
        return []
    if table is None:
        raise ConfigError(f"inputs.{kind}: the source has no attributes of {kind}s; leave the features out, or add a table of {kind}s")
    rows, found = np.array([table.rows.get(name, -1) for name in names], dtype=np.int64), []
    for rule in rules:
        texts = table.columns[rule.name].take(np.maximum(rows, 0)).to_pylist()
        given: list[str | None] = [text if row >= 0 else None for row, text in zip(rows.tolist(), texts, strict=True)]
        funnel = funnels[f"input {rule.name}"] = Funnel(f"{kind}s", len(given))
        funnel.drop(f"no row in {table.file.rsplit('/', 1)[-1]}: missing", int((rows < 0).sum()))
        funnel.drop("no value: missing", sum(text is None for text in given) - int((rows < 0).sum()))
        where = f"inputs.{kind}: '{rule.name}'"
        if rule.bins is None:
            found.append(_categories(where, rule, given, counted, is_known=rule.name in known))
            late = sum(text is not None and not value for text, value in zip(given, found[-1][1].tolist(), strict=True))
            funnel.drop("a value that nobody has who is trained on: missing", late)
        else:
            numbers = _numbers(rule, given, rows, table, bad, funnel)
            found.append(_binned(where, rule, numbers, counted, known.get(rule.name)))
    return found


def _categories(
    where: str, rule: InputRule, given: Sequence[str | None], counted: NDArray[np.bool_], *, is_known: bool
) -> tuple[FeatureColumn, NDArray[np.int32]]:  # fmt: skip
    counts: dict[str, int] = {}
    for text, counts_here in zip(given, counted.tolist(), strict=True):
        if text is not None and counts_here:
            counts[text] = counts.get(text, 0) + 1
    if len(counts) > MOST_VALUES:
        raise DataError(
            f"{where} has {len(counts):,} values, more than {MOST_VALUES}, which are rather ids or numbers; numbers take bins, as "
            f"{{name: {rule.name}, bins: 10}}"
        )
    if not is_known:
        _check_tells(where, list(counts), missing=any(text is None for text in given))
    names = sorted(counts, key=lambda name: (-counts[name], name))
    number = {name: place for place, name in enumerate(names, start=1)}
    return FeatureColumn(rule.name, names), np.array([number.get(text or "", MISSING) for text in given], dtype=np.int32)


def _numbers(
    rule: InputRule, given: Sequence[str | None], rows: Int, table: Attributes, bad: BadRows, funnel: Funnel
) -> NDArray[np.float64]:  # fmt: skip
    """Return cells as numbers, NaN for none; raises DataError where too many are no numbers."""
    numbers = np.array([number_of(text) for text in given], dtype=np.float64)
    for place in np.flatnonzero(~np.isfinite(numbers)).tolist():
        if (text := given[place]) is not None:
            bad.add(f"{rule.name} is not a number", table.where(int(rows[place])), text=text)
            funnel.drop("not a number: missing", 1)
    bad.check(table.file, len(table.rows))
    return numbers


def _binned(
    where: str, rule: InputRule, numbers: NDArray[np.float64], counted: NDArray[np.bool_], before: InputFeature | None
) -> tuple[FeatureColumn, NDArray[np.int32]]:  # fmt: skip
    if before is not None:
        return FeatureColumn(rule.name, bin_names(before.edges), before.edges), bin_of(numbers, before.edges)
    known = np.sort(numbers[np.isfinite(numbers) & counted])
    _check_tells(where, [number_text(value) for value in np.unique(known)[:2]], missing=not np.isfinite(numbers).all())
    edges = _quantiles(known, rule.bins) if isinstance(rule.bins, int) else tuple(rule.bins or ())
    values = bin_of(numbers, edges)
    if len(np.unique(values)) == 1:
        raise DataError(f"{where}: all values lie in one of the bins {bin_names(edges)}, so it tells nothing; give edges between them")
    return FeatureColumn(rule.name, bin_names(edges), edges), values


def number_of(text: str | None) -> float:
    """Return a cell's number; NaN for none."""
    try:
        return float(text) if text is not None and "_" not in text else float("nan")  # Python reads 1_000
    except ValueError:
        return float("nan")


def _quantiles(known: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Return edges, values themselves, between bins of about as many values each; fewer where values repeat."""
    changes = np.flatnonzero(np.diff(known) > 0) + 1  # where a value begins that differs from the one before
    if not len(changes):
        return (float(known[-1]),)
    places = len(known) * np.arange(1, bins) / bins
    after = np.minimum(np.searchsorted(changes, places), len(changes) - 1)
    left, right = changes[np.maximum(after - 1, 0)], changes[after]
    nearest = np.where(places - left <= right - places, left, right)
    return tuple(np.unique(known[nearest]).tolist())


def _check_tells(where: str, known: Sequence[str], *, missing: bool) -> None:
    """Raise DataError where a feature has no values, or one alone."""
    if not known:
        whose = "item of the histories" if where.startswith("inputs.item") else "user who is trained on"
        raise DataError(f"{where} has no value for any {whose}; leave it out")
    if len(known) == 1 and not missing:
        among = "items of the histories" if where.startswith("inputs.item") else "users who are trained on"
        raise DataError(f"{where} has one value alone among {among} ('{known[0]}'), so it tells nothing; leave it out")
