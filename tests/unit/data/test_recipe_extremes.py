"""Every field of a recipe, given extreme values: accepted, or one error with the dotted field."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from dist_teracon.data.recipe import EventFilter, ItemTask, ProfileTask, Recipe, parse_recipe
from dist_teracon.errors import ConfigError

EXTREMES: tuple[Any, ...] = (
    0, -1, 1e24, 2**63, math.nan, math.inf, -math.inf, "", [], {}, "x" * 100_000, "9" * 5000, None, True, False,
    [None], {"": None}, {1: 2},
)  # fmt: skip


def fields_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*path, field.alias or name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields_of(part, (*path, field.alias or name))


ITEM, PROFILE = {"kind": "item"}, {"kind": "profile"}
FIELDS = [
    *((path, {}) for path in fields_of(Recipe)),
    *((("tasks", "t", *path), ITEM) for path in fields_of(ItemTask)),
    *((("tasks", "t", *path), PROFILE) for path in fields_of(ProfileTask)),
]


def test_the_walk_finds_fields_of_every_part() -> None:
    found = {".".join(path) for path, _ in FIELDS}
    assert {"history.events.from", "split.fold", "columns.timezone", "files.events", "tasks.t.events.value", "tasks.t.bins"} <= found
    assert {field.alias or name for name, field in EventFilter.model_fields.items()} == {"type", "value", "from", "until"}


@pytest.mark.parametrize(("path", "task"), FIELDS, ids=lambda value: ".".join(value) if isinstance(value, tuple) else str(value))
def test_extreme_values_are_sane_or_refused_by_name(path: tuple[str, ...], task: dict[str, Any]) -> None:
    for extreme in EXTREMES:
        value: dict[str, Any] = {"tasks": {"t": copy.deepcopy(task)}} if task else {}
        node = value
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = extreme
        try:
            recipe = parse_recipe(value, where="r.yaml")
        except ConfigError as error:
            text = str(error)
            assert text.startswith("r.yaml: ")
            assert any(name in text for name in (".".join(path), ".".join(path[:-1]) or path[-1])), text[:300]
            assert len(text) < 3000, text[:300]
            continue
        written = json.dumps(recipe.to_json(), allow_nan=False)
        assert path[-1] == "seed" or not re.search(r"\d{17,}(?!\d*\")", re.sub(r'"[^"]*"', "", written)), written[:300]
