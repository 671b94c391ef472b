"""Task recipes: how tasks come from events, written in YAML, checked before any data is read.

    name: ml-100k
    seed: 0
    history: {events: {value: "<= 3"}, length: 30, minimum: 3}
    tasks:
      star4: {kind: item, events: {value: "== 4"}, targets: 5, choose: random}
      age: {kind: profile, bins: [18, 25, 35, 45, 50, 56]}

`configs/recipes/` has whole ones.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dist_teracon.config_io import read_yaml
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError, nearest

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
_COMPARISON = re.compile(r"\s*(<=|>=|==|!=|<|>|=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def parse_comparisons(text: str) -> list[tuple[Callable[[Any, Any], Any], float]]:
    """Parse `<= 3` or `> 1, < 4` (all must hold) into (operator, number) pairs.

    Raises:
        ValueError: anything else.
    """
    pairs = []
    for part in text.split(","):
        if (match := _COMPARISON.fullmatch(part)) is None:
            raise ValueError("expected comparisons such as '<= 3' or '> 1, < 4' (<, <=, ==, !=, >=, > and a number)")
        pairs.append((_OPERATORS[match.group(1)], float(match.group(2))))
    return pairs


def _comparisons(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"== {value:g}"
    if isinstance(value, str):
        parse_comparisons(value)
    return value


def _seconds(value: Any) -> Any:
    """Return a moment's seconds since 1970; dates without a time zone are read as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("expected a date (2026-01-31), a date with a time, or seconds since 1970") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _without_default_repeats(values: dict[str, Any]) -> dict[str, Any]:
    """Return a part's fields without `repeats: true`, so that recipes without the field are stored, and hashed, as ever."""
    return {name: value for name, value in values.items() if name != "repeats" or not value}


Comparisons = Annotated[str, BeforeValidator(_comparisons)]
Moment = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, coerce_numbers_to_str=True)


class EventFilter(_Part):
    """A filter of events: those that fit every line of it.

    Attributes:
        type: One type or several.
        value: Comparisons that all must hold, `<= 3`.
        since, until: From this moment on (`from` in YAML), and before this one.
    """

    type: Texts | None = Field(default=None, min_length=1)
    value: Comparisons | None = None
    since: Moment | None = Field(default=None, alias="from")
    until: Moment | None = None

    @model_validator(mode="after")
    def _in_order(self) -> EventFilter:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("'from' must lie before 'until'")
        return self


class HistoryRule(_Part):
    """Which events make a user's sequence.

    Attributes:
        events: The events.
        length: The last so many are kept.
        padding: `token` fills every sequence up to `length`, on the left, with one more item, as the published code does; `none` does not.
        minimum: Users with fewer are dropped.
        min_count: Items with fewer occurrences in all sequences count as unseen.
        repeats: Whether a user may take an item twice; where not, the first task's ranking leaves out what a history holds.
    """

    events: EventFilter = EventFilter()
    length: int = Field(default=100, ge=1)
    padding: Literal["none", "token"] = "none"
    minimum: int = Field(default=1, ge=1)
    min_count: int = Field(default=1, ge=1)
    repeats: bool = True

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_default_repeats(serialize(self))


class ItemTask(_Part):
    """A task that ranks items, or an attribute of items.

    Attributes:
        events: The events whose items are its labels.
        targets: At most so many distinct labels a user; None for all.
        choose: Which of them: drawn by seed, the `first` in time, or the `next` ones after the date in `events.from`.
        label: `item`, or an attribute of items such as a category.
        min_count: Labels of fewer users are dropped before any are drawn.
        repeats: Whether a label may be an item of the user's history; where not, rankings leave out what a history holds.
    """

    kind: Literal["item"]
    events: EventFilter = EventFilter()
    targets: int | None = Field(default=None, ge=1)
    choose: Literal["random", "first", "next"] = "random"
    label: str = "item"
    min_count: int = Field(default=1, ge=1)
    repeats: bool = True

    @model_validator(mode="after")
    def _has_date(self) -> ItemTask:
        if self.choose == "next" and self.events.since is None:
            raise ValueError("'choose: next' requires a date in events.from, after which the next ones come")
        return self

    @model_validator(mode="after")
    def _repeats_of_items(self) -> ItemTask:
        if not self.repeats and self.label != "item":
            raise ValueError(f"'repeats: false' is for labels that are items, and these are items' '{self.label}'")
        return self

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_default_repeats(serialize(self))


class ProfileTask(_Part):
    """A task that predicts an attribute of users.

    Attributes:
        attribute: The attribute; the task's own name where it is left out.
        bins: Edges between classes of a number: n edges make n + 1 classes, an edge belonging to the class above.
        classes: The allowed values in their order; all that occur where it is left out.
    """

    kind: Literal["profile"]
    attribute: str | None = None
    bins: tuple[float, ...] | None = Field(default=None, min_length=1)
    classes: Texts | None = Field(default=None, min_length=2)

    @field_validator("bins")
    @classmethod
    def _ascending(cls, bins: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if bins is not None and any(low >= high for low, high in pairwise(bins)):
            raise ValueError("edges must ascend")
        return bins

    @model_validator(mode="after")
    def _one_way(self) -> ProfileTask:
        if self.bins is not None and self.classes is not None:
            raise ValueError("give bins or classes, not both")
        return self


class SplitPart(_Part):
    """How examples are split; see `SplitRule`. The seed is the recipe's where it is left out."""

    by: Literal["users", "rows"] = "users"
    seed: int | None = Field(default=None, ge=0)
    train: float = Field(default=0.8, gt=0, lt=1)
    validation: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)
    folds: int = Field(default=1, ge=1)
    fold: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> SplitPart:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test must add up to 1")
        if self.fold >= self.folds:
            raise ValueError(f"fold must be below folds ({self.folds})")
        if self.folds > 1 and self.validation + 1 / self.folds >= 1:
            raise ValueError("a test window of 1/folds and the validation share leave nothing to train on")
        return self


class Columns(_Part):
    """Names of a source's columns where they are not the format's own."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    type: str | None = None
    value: str | None = None
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"


class Recipe(_Part):
    """A whole recipe.

    Attributes:
        name: Name of the data set; the source's own where it is left out.
        first_task: Name of the self-supervised first task.
        tasks: The later tasks in their order.
    """

    name: str | None = None
    seed: int = Field(default=0, ge=0)
    columns: Columns = Columns()
    history: HistoryRule = HistoryRule()
    first_task: str = "next"
    tasks: dict[str, Annotated[ItemTask | ProfileTask, Field(discriminator="kind")]] = Field(default_factory=dict)
    split: SplitPart = SplitPart()

    @field_validator("first_task", "tasks")
    @classmethod
    def _fit_for_folders(cls, value: Any, info: ValidationInfo) -> Any:
        for name in value if isinstance(value, dict) else (value,):
            if not TASK_NAME.fullmatch(name) or name == "items":
                raise ValueError(f"'{name}' cannot name a task: expected letters, digits, '_', '-', '.'; 'items' is reserved")
            if info.field_name == "tasks" and name == info.data.get("first_task"):
                raise ValueError(f"'{name}' is the first task's name already")
        return value

    def split_rule(self, by: Literal["users", "rows"] | None = None) -> SplitRule:
        """Return the split of the recipe, by users or rows as `by` has it where it is given."""
        part = self.split.model_dump()
        return SplitRule(**{**part, "by": by or part["by"], "seed": self.seed if part["seed"] is None else part["seed"]})

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, defaults written out."""
        return self.model_dump(mode="json", by_alias=True)


def read_recipe(uri: str) -> Recipe:
    """Read a recipe's YAML file.

    Raises:
        ConfigError: the file is missing, no YAML, or has something that is not allowed; names the dotted field.
    """
    return parse_recipe(read_yaml(uri), where=uri)


def parse_recipe(value: Any, *, where: str = "recipe") -> Recipe:
    """Check a recipe's values.

    Raises:
        ConfigError: something is not allowed; names the dotted field, the value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of fields, as `history:` and `tasks:`, got {type(value).__name__}")
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, value, problem) for problem in error.errors(include_url=False))) from None


_PARTS: dict[Any, type[BaseModel]] = {
    "columns": Columns, "history": HistoryRule, "events": EventFilter, "item": ItemTask, "profile": ProfileTask, "split": SplitPart,
}  # fmt: skip


def _explain(where: str, recipe: dict[str, Any], problem: Any) -> str:
    """Put one of pydantic's findings into a line: file, dotted field, what is wrong, the value, what is allowed."""
    loc = list(problem["loc"])
    parent = _PARTS.get(loc[-2], Recipe) if len(loc) > 1 else Recipe
    if len(loc) > 2 and loc[0] == "tasks" and isinstance(recipe.get("tasks"), dict):
        del loc[2]  # the kind, which pydantic puts after the task's name
    dotted = ".".join(str(part) for part in loc) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in parent.model_fields.items()]
        return f"{where}: {dotted}: unknown field{nearest(str(loc[-1]), known)} (known: {', '.join(known)})"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = problem["input"].get("kind") if isinstance(problem["input"], dict) else problem["input"]
        return f"{where}: {dotted}.kind: expected 'item' or 'profile', got {given!r}"
    if problem["type"] == "missing":
        return f"{where}: {dotted}: required field missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
    return f"{where}: {dotted}: {message[:1].lower()}{message[1:]}{shown}"
