"""The part of a recipe on side features: which attributes of users and items a model may read."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dist_teracon.data.recipe_values import Edge, RecipePart
from dist_teracon.errors import shortened

_MOST_BINS = 100


def _bins(value: Any) -> Any:
    """Refuse with one message, where pydantic would have one for each of the ways."""
    edges = value if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in edges)
    if isinstance(value, list | tuple):
        fits = numbers and bool(edges) and all(low < high for low, high in pairwise(edges))
    else:
        fits = value is None or (numbers and isinstance(value, int) and 2 <= value <= _MOST_BINS)
    if not fits:
        raise ValueError(f"expected how many bins, from 2 to {_MOST_BINS}, or their ascending edges, as [18, 25, 35]")
    return value


def _features(value: Any) -> Any:
    """Take a name for a feature of categories, and one feature for a list of it."""
    given = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(entry, str | int | float | dict | InputRule) and not isinstance(entry, bool) for entry in given):
        raise ValueError("expected a list of attributes, as [region, {name: age, bins: 10}]")
    return tuple(entry if isinstance(entry, dict | InputRule) else {"name": str(entry)} for entry in given)


class InputRule(RecipePart):
    """A feature: an attribute of users or items as an input.

    Attributes:
        name: The attribute.
        bins: Of a number: into how many bins of about as many users or items it is cut, or their edges, each belonging to the bin above.
            None for categories.
    """

    name: str = Field(min_length=1)
    bins: Annotated[int | tuple[Edge, ...] | None, BeforeValidator(_bins)] = None


class InputsPart(RecipePart):
    """Which attributes a model may read beside the items of a history.

    Attributes:
        user: Of users.
        item: Of items.
    """

    user: Annotated[tuple[InputRule, ...], BeforeValidator(_features)] = ()
    item: Annotated[tuple[InputRule, ...], BeforeValidator(_features)] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all features."""
        return tuple(rule.name for rule in (*self.user, *self.item))

    @model_validator(mode="after")
    def _one_role_each(self) -> InputsPart:
        kinds: dict[str, str] = {}
        for kind, rules in (("user", self.user), ("item", self.item)):
            for rule in rules:
                if (other := kinds.get(rule.name)) is not None:
                    where = f"twice in {kind}" if other == kind else "among those of users and those of items"
                    raise ValueError(f"{shortened(rule.name)} stands {where}; a feature has one role and a name of its own")
                kinds[rule.name] = kind
        return self
