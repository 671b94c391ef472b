"""The part of a recipe on which files hold what, and under which names of columns."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from dist_teracon.data.recipe_values import RecipePart, Texts


def _known_zone(name: str | None) -> str | None:
    if name is not None:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError("expected a time zone by its IANA name, as Asia/Seoul or UTC") from None
    return name


def _years(value: Any) -> Any:
    """Refuse with one message, where pydantic would have one for each part."""
    listed = isinstance(value, list | tuple) and all(isinstance(year, int) and not isinstance(year, bool) for year in value)
    if value is not None and not (listed and len(value) == 2 and 1678 < value[0] <= value[1] < 2261):
        raise ValueError("expected the first and the last year of events, as [1970, 2030], within 1679 to 2260")
    return value


class Columns(RecipePart):
    """Names of a source's columns where they are not the format's own.

    Attributes:
        user, item, timestamp, type, value: The columns; `timestamp: null` takes the order of the files for that of the events.
        timestamp_unit: Of times that are numbers, since 1970; `date` for digits as 20200131 or 20200131235959.
        timestamp_years: The first and the last year in which events are plausible, where not all are of 1990 to 2100.
        timezone: Of times that are dates without a zone, by its IANA name; UTC where it is left out.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    type: str | None = None
    value: str | None = None
    timestamp_unit: Literal["s", "ms", "us", "ns", "date"] = "s"
    timezone: Annotated[str | None, AfterValidator(_known_zone)] = None
    timestamp_years: Annotated[tuple[int, int] | None, BeforeValidator(_years)] = None

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name != "timestamp_years" or value is not None}


class Files(RecipePart):
    """Names or patterns of a source's files where they are not the format's own: `clicks-*.csv`; a folder stands for what it holds."""

    events: Texts | None = Field(default=None, min_length=1)
    users: Texts | None = Field(default=None, min_length=1)
    items: Texts | None = Field(default=None, min_length=1)


class LogRule(Columns):
    """One table of events among several, as each service of a platform writes one.

    A column that is not given has the name that the recipe's `columns` gives it.

    Attributes:
        files: Names or patterns of its files; a folder stands for what it holds.
        type: A column whose values are the types of its events; without it the log's own name is the type of all of them.
        prefix: Stands in front of the names of its items, where an id means something else in another log.
    """

    files: Texts = Field(min_length=1)
    prefix: str = ""

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not given, so that it is still that of `columns` where the recipe is read again."""
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}

    def over(self, columns: Columns) -> Columns:
        """Return the log's columns: its own, and those of the recipe where it does not say."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name in Columns.model_fields}
        return columns.model_copy(update={"type": None, **given})
