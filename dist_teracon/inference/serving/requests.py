"""Requests of the server: a body of JSON, checked field by field, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_args

from dist_teracon.errors import DataError, TeraconError, nearest, shortened
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.model import SHARED, SharedVector

# An event of a history: the item's id, or, with what a model reads beside it, `{"item": …, "time": …, "type": …}`.
Event = str | dict[str, Any]


class RequestError(TeraconError):
    """A request that cannot be answered.

    Attributes:
        status: The HTTP status, 4xx or 503.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Attributes:
        body: Bytes of a request.
        histories: Histories of a request; also users encoded at a time.
        top: Labels a user.
        waiting: Requests that wait for the model; further ones are answered with 503.
    """

    body: int = 1 << 20
    histories: int = 512
    top: int = 1000
    waiting: int = 1024


@dataclass(frozen=True)
class EncodeRequest:
    """`POST /encode`; fields as of `PretrainedModel.encode`."""

    model: str | None
    histories: list[list[Event]]
    task: str = SHARED
    shared: SharedVector | None = None
    features: list[dict[str, Any]] | None = None
    at: float | None = None


@dataclass(frozen=True)
class PredictRequest:
    """`POST /predict`; fields as of `PretrainedModel.predict`."""

    model: str | None
    histories: list[list[Event]]
    task: str
    top: int = 10
    exclude_seen: bool | None = None
    candidates: tuple[str, ...] | None = None
    normalise: bool = False
    features: list[dict[str, Any]] | None = None
    at: float | None = None


@dataclass(frozen=True)
class EventsRequest:
    """`POST /events`: one user's further events, oldest first; `history` begins anew with what came before them."""

    model: str | None
    user: str
    items: tuple[Event, ...] = ()
    history: tuple[Event, ...] | None = None
    task: str = SHARED
    shared: SharedVector | None = None
    at: float | None = None


@dataclass(frozen=True)
class ReloadRequest:
    """`POST /reload`: loads a model's run again; `stage` chooses another one than the server was started with."""

    model: str | None
    stage: int | None = None


Request = EncodeRequest | PredictRequest | EventsRequest | ReloadRequest


def parse(path: str, body: bytes, limits: Limits) -> Request:
    """Read the body of a request to `path`, one of `PARSERS`.

    Raises:
        RequestError: it is no JSON object, or a field is unknown, missing, of another type or too large.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"body: expected JSON in UTF-8 ({shortened(reason)})") from None
    if not isinstance(value, dict):
        raise RequestError(f"body: expected a JSON object, got {_kind(value)}")
    allowed, read = PARSERS[path]
    for name in value:
        if name not in allowed:
            hint = nearest(name, allowed)
            raise RequestError(f"field {shortened(name)}: {path} has none of this name{hint} (it has: {', '.join(allowed)})")
    return read(_Fields(value, limits))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _kind(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
        int: "a number",
        float: "a number",
    }
    return kinds[type(value)]


class _Fields:
    """A request's fields, each read with its type."""

    def __init__(self, values: Mapping[str, Any], limits: Limits) -> None:
        self._values, self.limits = values, limits

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name}: expected a text, got {_kind(value)}")
        return value

    def needed(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise RequestError(f"{name}: is missing; expected a text")
        return value

    def user(self) -> str:
        if self._values.get("user") is None:
            raise RequestError("user: is missing; expected the user's id, a text or a whole number")
        return self._id("user", self._values["user"])

    def flag(self, name: str) -> bool | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name}: expected true or false, got {_kind(value)}")
        return value

    def count(self, name: str, most: int) -> int | None:
        value = self._values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
            raise RequestError(f"{name}: expected a whole number from 1 to {most}, got {shortened(value)}")
        return value

    def shared(self) -> SharedVector | None:
        value = self.text("shared")
        if value not in (None, *get_args(SharedVector)):
            raise RequestError(f"shared: expected mean, open or concat, got {shortened(value)}")
        return cast("SharedVector | None", value)

    def moment(self) -> float | None:
        value = self._values.get("at")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RequestError(f"at: expected seconds since 1970, got {_kind(value)}")
        return value

    def ids(self, name: str) -> tuple[str, ...] | None:
        value = self._values.get(name)
        return None if value is None else tuple(self._id(f"{name}[{place}]", item) for place, item in enumerate(_list(name, value)))

    def events(self, name: str) -> tuple[Event, ...] | None:
        value = self._values.get(name)
        return None if value is None else tuple(self._events(name, value))

    def histories(self) -> list[list[Event]]:
        value = self._values.get("histories")
        if not isinstance(value, list) or not value:
            raise RequestError('histories: expected a list of item ids for each user, oldest first, as [["a", "b"], ["c"]]')
        if len(value) > self.limits.histories:
            raise RequestError(f"histories: {len(value)} in one request, and at most {self.limits.histories} are taken; send several", 413)
        found = [self._events(f"histories[{number}]", history) for number, history in enumerate(value)]
        if not all(found):
            raise RequestError(f"histories[{found.index([])}]: is empty; expected at least one item: leave this user out")
        return found

    def features(self) -> list[dict[str, Any]] | None:
        value = self._values.get("features")
        if value is None:
            return None
        wanted = 'a list of an object for each history, as [{"region": "north"}, {}]'
        if not isinstance(value, list) or len(value) != len(self._values["histories"]):
            raise RequestError(f"features: expected {wanted}, got {f'{len(value)} of them' if isinstance(value, list) else _kind(value)}")
        for number, row in enumerate(value):
            if not isinstance(row, dict):
                raise RequestError(f"features[{number}]: expected {wanted}, got {_kind(row)}")
            for name, cell in row.items():
                if isinstance(cell, bool) or not isinstance(cell, str | int | float | None):
                    raise RequestError(
                        f"features[{number}].{shortened(name)}: expected a text, a number, or null for missing, got {_kind(cell)}"
                    )
        return value

    def _events(self, where: str, value: Any) -> list[Event]:
        return [self._event(f"{where}[{place}]", item) for place, item in enumerate(_list(where, value))]

    def _event(self, where: str, value: Any) -> Event:
        if not isinstance(value, dict):
            return self._id(where, value)
        for name in value:
            if name not in _EVENT:
                raise RequestError(f"{where}: an event has no {shortened(name)}{nearest(name, _EVENT)} (it has: {', '.join(_EVENT)})")
        event: dict[str, Any] = {**value, "item": self._id(f"{where}.item", value.get("item"))}
        if "time" in event and (isinstance(event["time"], bool) or not isinstance(event["time"], int | float)):
            raise RequestError(f"{where}.time: expected seconds since 1970, got {_kind(event['time'])}")
        if not isinstance(event.get("type"), str | None):
            raise RequestError(f"{where}.type: expected the type's name, or null for unknown, got {_kind(event['type'])}")
        return event

    def _id(self, where: str, value: Any) -> str:
        try:
            text = id_text(value)
            text.encode()
        except (DataError, ValueError):  # ValueError: a number of thousands of digits, or half of a surrogate pair
            raise RequestError(f"{where}: expected a text or a whole number, got {shortened(value)}") from None
        return text


_EVENT = ("item", "time", "type")


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{where}: expected a list of ids, got {_kind(value)}")
    return value


def _encode(fields: _Fields) -> EncodeRequest:
    return EncodeRequest(
        fields.text("model"), fields.histories(), fields.text("task") or SHARED, fields.shared(), fields.features(), fields.moment()
    )


def _predict(fields: _Fields) -> PredictRequest:
    return PredictRequest(
        fields.text("model"), fields.histories(), fields.needed("task"), top=fields.count("top", fields.limits.top) or 10,
        exclude_seen=fields.flag("exclude_seen"), candidates=fields.ids("candidates"), normalise=fields.flag("normalise") or False,
        features=fields.features(), at=fields.moment(),
    )  # fmt: skip


def _events(fields: _Fields) -> EventsRequest:
    return EventsRequest(
        fields.text("model"),
        fields.user(),
        fields.events("items") or (),
        fields.events("history"),
        fields.text("task") or SHARED,
        fields.shared(),
        fields.moment(),
    )


def _reload(fields: _Fields) -> ReloadRequest:
    return ReloadRequest(fields.text("model"), fields.count("stage", 10**6))


# The fields of each path, and what reads them.
PARSERS: dict[str, tuple[tuple[str, ...], Callable[[_Fields], Request]]] = {
    "/encode": (("model", "histories", "task", "shared", "features", "at"), _encode),
    "/predict": (("model", "histories", "task", "top", "exclude_seen", "candidates", "normalise", "features", "at"), _predict),
    "/events": (("model", "user", "items", "history", "task", "shared", "at"), _events),
    "/reload": (("model", "stage"), _reload),
}
