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

import codecs
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dist_teracon.config_io import read_yaml
from dist_teracon.data.recipe_columns import Columns, Files, LogRule
from dist_teracon.data.recipe_inputs import InputRule, InputsPart
from dist_teracon.data.recipe_split import SPLIT_DATES, SplitPart
from dist_teracon.data.recipe_values import Comparisons, Edge, Moment, RecipePart, Texts, clean_name, zone_of
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError, nearest, shortened

# Of counts: more cannot be meant, and would not fit the arrays that are made from them.
_MOST = (1 << 31) - 1


# Fields that came later, with their defaults, as JSON has them.
_LATER = {"repeats": True, "keep": [], "excludes": []}


def _without_later_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return a part's fields without `repeats: true` and the like, so that recipes without them are stored, and hashed, as ever."""
    return {name: value for name, value in values.items() if name not in _LATER or _as_json(value) != _LATER[name]}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _kept(value: Any) -> Any:
    """Return which columns of events to keep: a name alone for a list of it, each once, in a fixed order."""
    if value == "all":
        return value
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(name in _KEEPABLE for name in given):
        raise ValueError("expected [time, type], one of them, or all")
    return [name for name in _KEEPABLE if name in given]


_KEEPABLE = ("time", "type")


class EventFilter(RecipePart):
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


class HistoryRule(RecipePart):
    """Which events make a user's sequence.

    Attributes:
        events: The events.
        length: The last so many are kept.
        padding: `token` fills every sequence up to `length`, on the left, with one more item, as the published code does; `none` does not.
        minimum: Users with fewer are dropped.
        min_count: Items with fewer occurrences in all sequences count as unseen.
        repeats: Whether a user may take an item twice; where not, the first task's ranking leaves out what was taken before.
        keep: What of events is kept beside their items: `time`, `type`; `all` takes what the source has.
    """

    events: EventFilter = EventFilter()
    length: int = Field(default=100, ge=1, le=_MOST)
    padding: Literal["none", "token"] = "none"
    minimum: int = Field(default=1, ge=1, le=_MOST)
    min_count: int = Field(default=1, ge=1, le=_MOST)
    repeats: bool = True
    keep: Annotated[tuple[Literal["time", "type"], ...] | Literal["all"], BeforeValidator(_kept)] = ()

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_later_defaults(serialize(self))

    def keeps(self, column: Literal["time", "type"]) -> bool:
        """Return whether a column of events is kept where the source has it."""
        return self.keep == "all" or column in self.keep


class ItemTask(RecipePart):
    """A task that ranks items, or an attribute of items.

    Attributes:
        events: The events whose items are its labels.
        targets: At most so many distinct labels a user; None for all.
        choose: Which of them: drawn by seed, the `first` in time, or the `next` ones after the date in `events.from`.
        label: `item`, or an attribute of items such as a category.
        min_count: Labels of fewer users are dropped before any are drawn.
        repeats: Whether a label may be an item of the user's history; where not, rankings leave out what was taken before.
        excludes: Features of users (`inputs.user`) that the task must not read, as they tell its labels.
    """

    kind: Literal["item"]
    events: EventFilter = EventFilter()
    targets: int | None = Field(default=None, ge=1, le=_MOST)
    choose: Literal["random", "first", "next"] = "random"
    label: str = "item"
    min_count: int = Field(default=1, ge=1, le=_MOST)
    repeats: bool = True
    excludes: Texts = ()

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
        return _without_later_defaults(serialize(self))


class ProfileTask(RecipePart):
    """A task that predicts an attribute of users.

    Attributes:
        attribute: The attribute; the task's own name where it is left out.
        bins: Edges between classes of a number: n edges make n + 1 classes, an edge belonging to the class above.
        classes: The allowed values in their order; all that occur where it is left out.
        excludes: Features of users that the task must not read, beside its own attribute.
    """

    kind: Literal["profile"]
    attribute: str | None = None
    bins: tuple[Edge, ...] | None = Field(default=None, min_length=1)
    classes: Texts | None = Field(default=None, min_length=2)
    excludes: Texts = ()

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
        if self.classes is not None and (twice := next((name for name in self.classes if self.classes.count(name) > 1), None)):
            raise ValueError(f"class '{twice}' stands there more than once")
        return self

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_later_defaults(serialize(self))


def _known_encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(name)("strict").decode(b"", final=True)
        is_text = codecs.lookup(name)._is_text_encoding
    except (LookupError, UnicodeError, TypeError):
        is_text = False
    if not is_text:
        raise ValueError("expected an encoding of text that Python knows, as utf-8, cp949, utf-16 or latin-1")
    return name


def _codes(value: Any) -> Any:
    """Return codes of unknown: a tuple of texts, or one by attribute."""
    if isinstance(value, dict):
        return {str(name): _listed_codes(codes) for name, codes in value.items()}
    return _listed_codes(value)


def _differ_in_case(one: str, other: str) -> str:
    return f"'{one}' and '{other}' differ in capital letters alone, which not every file system tells apart; rename one of the two tasks"


def _listed_codes(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(code, str | int | float) and not isinstance(code, bool) for code in listed):
        raise ValueError("expected a list of codes, as ['0', '-'], or such lists by attribute")
    return tuple(map(str, listed))


class Recipe(RecipePart):
    """A whole recipe.

    Attributes:
        name: Name of the data set; the source's own where it is left out.
        files, columns: Names of files and columns where they are not the format's own.
        logs: Several tables of events by name, instead of one.
        encoding: Of files that are text.
        missing: Codes of unknown in attributes of users and items: of all of them, or by attribute. Not of ids.
        first_task: Name of the self-supervised first task.
        tasks: The later tasks in their order.
        inputs: Attributes of users and items that a model may read.
    """

    name: str | None = None
    seed: int = Field(default=0, ge=0)
    files: Files = Files()
    columns: Columns = Columns()
    logs: dict[str, LogRule] = Field(default_factory=dict)
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    missing: Annotated[dict[str, tuple[str, ...]] | tuple[str, ...], BeforeValidator(_codes)] = ()
    history: HistoryRule = HistoryRule()
    first_task: str = "next"
    tasks: dict[str, Annotated[ItemTask | ProfileTask, Field(discriminator="kind")]] = Field(default_factory=dict)
    split: SplitPart = SplitPart()
    inputs: InputsPart = InputsPart()

    @property
    def leaves_out_taken(self) -> bool:
        """Whether rankings of any task leave out what a user has taken."""
        return not (self.history.repeats and all(task.repeats for task in self.tasks.values() if isinstance(task, ItemTask)))

    @field_validator("first_task")
    @classmethod
    def _named(cls, value: str) -> str:
        return clean_name(value)

    @field_validator("logs", mode="before")
    @classmethod
    def _types(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if not isinstance(name, str) or name != name.strip() or not name:
                raise ValueError(
                    f"a log's name is {name!r} to YAML, and is to be the type of its events: write a text, in quotes if need be"
                )
        return value

    @model_validator(mode="after")
    def _one_table_or_logs(self) -> Recipe:
        if self.logs and self.files.events is not None:
            raise ValueError("files.events names one table of events and logs several; name each table once, in logs")
        if self.logs and self.columns.type is not None:
            raise ValueError(
                "columns.type: with logs a log's name is the type of its events; where a log has a column of types, name it there "
                f"(logs.{next(iter(self.logs))}.type)"
            )
        return self

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named: dict[str, Any] = {}
        for key, task in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int | float):
                raise ValueError(f"a task's name is {key!r} to YAML; write it in quotes")  # noqa: TRY004 (of a validator)
            name = clean_name(str(key))
            if (other := next((known for known in named if known.casefold() == name.casefold()), None)) is not None:
                raise ValueError(f"two tasks are named '{name}'" if other == name else _differ_in_case(other, name))
            named[name] = task
        return named

    @field_validator("tasks")
    @classmethod
    def _others(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (first := info.data.get("first_task")) in value:
            raise ValueError(f"'{first}' is the first task's name already")
        for name in value:
            if first is not None and name.casefold() == first.casefold():
                raise ValueError(_differ_in_case(first, name))
        return value

    @model_validator(mode="after")
    def _labels_dated(self) -> Recipe:
        item_tasks = [name for name, task in self.tasks.items() if isinstance(task, ItemTask)]
        if self.split.by == "time" and item_tasks and self.split.labels_from is None:
            raise ValueError(
                f"split: 'by: time' with tasks of items ({', '.join(item_tasks)}) requires labels_from, the date from which their training "
                "labels are; what came before it is the history that tells them"
            )
        return self

    @model_validator(mode="after")
    def _excludes_what_there_is(self) -> Recipe:
        known = [rule.name for rule in self.inputs.user]
        for task, rule in self.tasks.items():
            if (strange := next((name for name in rule.excludes if name not in known), None)) is not None:
                of_items = strange in [feature.name for feature in self.inputs.item]
                why = "is of items, which every task reads with them" if of_items else f"is not declared{nearest(strange, known)}"
                raise ValueError(f"tasks.{task}.excludes: {shortened(strange)} {why}; inputs.user has: {', '.join(known) or 'nothing'}")
        return self

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        unused = {name for name, is_used in (("inputs", self.inputs != InputsPart()), ("logs", bool(self.logs))) if not is_used}
        return {name: value for name, value in values.items() if name not in unused}

    def closed_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return by task the features of users that it must not read: a profile task's own attribute, and what it excludes."""
        closed = {}
        for task, rule in self.tasks.items():
            own = {rule.attribute or task} if isinstance(rule, ProfileTask) else set()
            if names := tuple(feature.name for feature in self.inputs.user if feature.name in own | set(rule.excludes)):
                closed[task] = names
        return closed

    def split_rule(self, by: Literal["users", "rows", "last", "time"] | None = None) -> SplitRule:
        """Return the split of the recipe, by what `by` has where it is given."""
        part = {name: value for name, value in self.split.model_dump().items() if name not in SPLIT_DATES}
        return SplitRule(**{**part, "by": by or part["by"], "seed": self.seed if part["seed"] is None else part["seed"]})

    def filters(self) -> list[EventFilter]:
        """Return every filter of events."""
        return [self.history.events, *(task.events for task in self.tasks.values() if isinstance(task, ItemTask))]

    @property
    def event_years(self) -> tuple[int, int] | None:
        """The first and the last year in which events of any log are plausible; None for those that are by default."""
        given = [years for log in self.logs.values() if (years := log.over(self.columns).timestamp_years) is not None]
        if not self.logs:
            return self.columns.timestamp_years
        return (min(first for first, _ in given), max(last for _, last in given)) if given else None

    def logs_of_history(self) -> dict[str, LogRule]:
        """Return the logs of which events may be in histories."""
        types = self.history.events.type
        return {name: log for name, log in self.logs.items() if types is None or log.type is not None or name in types}

    def missing_in(self, attribute: str) -> frozenset[str]:
        """Return the codes of unknown in an attribute."""
        codes = self.missing.get(attribute, ()) if isinstance(self.missing, dict) else self.missing
        return frozenset(codes)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, defaults written out."""
        return self.model_dump(mode="json", by_alias=True)


def read_recipe(uri: str) -> Recipe:
    """Read a recipe's YAML file.

    Raises:
        ConfigError: the file is missing, no YAML, or has something that is not allowed; names the dotted field.
    """
    return parse_recipe(read_yaml(uri, folder="recipes"), where=uri)


def parse_recipe(value: Any, *, where: str = "recipe") -> Recipe:
    """Check a recipe's values.

    Raises:
        ConfigError: something is not allowed; names the dotted field, the value and what is allowed.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of fields, as `history:` and `tasks:`, got {type(value).__name__}")
    try:
        columns = value.get("columns")
        # dates without a time zone are read in that of the columns
        zone = zone_of(columns.get("timezone") if isinstance(columns, dict) else None)
        return Recipe.model_validate(value, context={"timezone": zone})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, value, problem) for problem in error.errors(include_url=False))) from None


_PARTS: dict[Any, type[BaseModel]] = {
    "columns": Columns, "files": Files,
    "history": HistoryRule, "events": EventFilter, "item": ItemTask, "profile": ProfileTask, "split": SplitPart, "inputs": InputsPart,
}  # fmt: skip


def _explain(where: str, recipe: dict[str, Any], problem: Any) -> str:
    """Put one of pydantic's findings into a line: file, dotted field, what is wrong, the value, what is allowed."""
    loc = list(problem["loc"])
    parent = _PARTS.get(loc[-2], Recipe) if len(loc) > 1 else Recipe
    if len(loc) > 1 and isinstance(loc[-2], int):  # of a list of features
        parent = InputRule
    if len(loc) > 2 and loc[0] == "logs":
        parent = LogRule
    if len(loc) > 2 and loc[0] == "tasks" and isinstance(recipe.get("tasks"), dict):
        del loc[2]  # the kind, which pydantic puts after the task's name
    dotted = ".".join(str(part) for part in loc) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in parent.model_fields.items()]
        return f"{where}: {dotted}: unknown field{nearest(str(loc[-1]), known)} (known: {', '.join(known)})"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = problem["input"].get("kind") if isinstance(problem["input"], dict) else problem["input"]
        return f"{where}: {dotted}.kind: expected 'item' or 'profile', got {shortened(given)}"
    if problem["type"] == "missing":
        return f"{where}: {dotted}: required field missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f", got {shortened(problem['input'])}"
    return f"{where}: {dotted}: {message[:1].lower()}{message[1:]}{shown}"
