"""One model of a server under its name: requests in, plain values out. Nothing here knows of HTTP, threads or batches in time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from dist_teracon.errors import ConfigError
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.model import PretrainedModel, from_pretrained
from dist_teracon.inference.serving.requests import EncodeRequest, Event, EventsRequest, PredictRequest, RequestError
from dist_teracon.inference.serving.users import User, Users
from dist_teracon.inference.state import UserState

# A state that is further behind than this is computed anew, which costs one pass over the history.
_CATCH_UP = 16


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: Under which it is served.
        run: Folder or URI of its run.
        stage: Counted from 1; None for the last finished one at the time of loading.
    """

    name: str
    run: str
    stage: int | None = None

    @classmethod
    def parse(cls, text: str, *, name: str = "default") -> Source:
        """Read `RUN`, `NAME=RUN`, `RUN@STAGE` or `NAME=RUN@STAGE`.

        Raises:
            ConfigError: the name has other characters than letters, digits, `.`, `_` and `-`, or the run is missing.
        """
        before, equals, rest = text.partition("=")
        if equals and "/" not in before:
            name, text = before, rest
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
            raise ConfigError(f"model '{name[:80]}': expected a name of up to 64 letters, digits, '.', '_' and '-', as shop=runs/shop")
        run, at, stage = text.rpartition("@")
        if not (at and stage.isascii() and stage.isdecimal()):
            run, stage = text, ""
        if not run:
            raise ConfigError(f"model '{name}': the run is missing; expected NAME=RUN or NAME=RUN@STAGE")
        if stage and not 1 <= int(stage) < 10**6:
            raise ConfigError(f"model '{name}': stages are counted from 1, got '@{stage}'")
        return cls(name, run, int(stage) if stage else None)


class Served:
    """A model and the users that it remembers; `load` makes one. One thread at a time may use it.

    Args:
        source: Where the model comes from.
        model: The model.
        users: Remembered users; a model that takes the place of another one is handed that one's.
    """

    def __init__(self, source: Source, model: PretrainedModel, users: Users) -> None:
        self.source, self.model, self.users = source, model, users

    @classmethod
    def load(cls, source: Source, users: Users, *, device: str = "cpu") -> Served:
        """Load a model, and compute one vector, so that the first request does not wait for what is made on first use."""
        model = from_pretrained(source.run, source.stage, device=device)
        model.encode([[{"item": "any item", "time": 0, "type": None}]])
        return cls(source, model, users)

    def about(self) -> dict[str, Any]:
        """Return which model this is."""
        return {"fingerprint": self.model.fingerprint, "stage": self.model.stage, "tasks": list(self.model.tasks)}

    def _named(self) -> dict[str, Any]:
        return {"model": self.source.name, "fingerprint": self.model.fingerprint}

    def _read(self, requests: Sequence[EncodeRequest | PredictRequest]) -> Histories:
        """Return the histories of requests, one behind another, with the features that they bring."""
        features = None
        if any(request.features is not None for request in requests):
            features = [row for request in requests for row in request.features or [{}] * len(request.histories)]
        at = None
        if any(request.at is not None for request in requests):
            at = [request.at for request in requests for _ in request.histories]
        return self.model.histories([history for request in requests for history in request.histories], features=features, at=at)

    def encode(self, requests: Sequence[EncodeRequest]) -> list[dict[str, Any]]:
        """Answer requests of one `task` and `shared` together; vectors are those of `PretrainedModel.encode`."""
        first, bounds = requests[0], _bounds(requests)
        read = self._read(requests)
        vectors = self.model.encode(read, first.task, shared=first.shared)
        return [
            {**self._named(), "task": first.task, "vectors": vectors[low:high].tolist(), **_unknown(read, low, high)}
            for low, high in bounds
        ]

    def predict(self, requests: Sequence[PredictRequest]) -> list[dict[str, Any]]:
        """Answer requests that are equal but for their histories together; lists are those of `PretrainedModel.predict`."""
        first, bounds = requests[0], _bounds(requests)
        read = self._read(requests)
        found = self.model.predict(
            read, first.task, top=first.top, exclude_seen=first.exclude_seen, candidates=first.candidates, normalise=first.normalise
        )
        labels = found.labels
        scores = [row[: len(names)].tolist() for row, names in zip(found.scores, labels, strict=True)]
        strange = {} if first.candidates is None else {"unknown_candidates": found.unknown_candidates}
        return [
            {
                **self._named(), "task": first.task, "labels": labels[low:high], "scores": scores[low:high],
                **_unknown(read, low, high), **strange,
            }
            for low, high in bounds
        ]  # fmt: skip

    def events(self, requests: Sequence[EventsRequest]) -> list[dict[str, Any] | Exception]:
        """Add users' events, and return their vectors: those of `encode` for the longer histories, to 1e-5.

        A request that brings no events of a user of whom nothing is kept has an error, 404, in the place of its answer.

        Args:
            requests: Of one `task`, `shared` and `at`, in their order; several may be of one user.

        Raises:
            ConfigError: an unknown task, a method without states, or a model that reads features of users. All users stay as they were.
            DataError: an event lacks what the model reads. All users stay as they were.
        """
        if self.model.inputs.user:
            raise ConfigError("events: the model reads features of users, and remembered users have none; send histories to /encode")
        first = requests[0]
        changed: dict[str, User] = {}
        answers: dict[int, dict[str, Any] | Exception] = {}
        kind = self.model.kind_of_vector(first.task, first.shared)
        for places in _one_of_each_user(requests):
            longer = {}
            for place in places:
                try:
                    longer[place] = self._longer(requests[place], changed)
                except RequestError as error:
                    answers[place] = error
            states = self._states([user for user, _, _ in longer.values()], kind, first)
            for (place, (user, added, began)), state in zip(longer.items(), states, strict=True):
                user.states[kind] = (user.count, state)
                changed[requests[place].user] = user
                answers[place] = {
                    **self._named(), "user": requests[place].user, "task": first.task, "vector": state.vector.tolist(),
                    "events": user.count, "began": began, **self.model.reader.strange_among(added),
                }  # fmt: skip
        for name, user in changed.items():
            self.users.put(name, user)
        return [answers[place] for place in range(len(requests))]

    def _longer(self, request: EventsRequest, changed: Mapping[str, User]) -> tuple[User, tuple[Event, ...], bool]:
        """Return a user with a request's events, these events, and whether the user begins anew.

        Raises:
            RequestError: nothing of the user is kept, and the request brings no events.
        """
        kept = changed.get(request.user) or self.users.get(request.user)
        began = kept is None or request.history is not None
        before = User() if kept is None or began else kept
        added = (*(request.history or ()), *request.items)
        if not before.count and not added:
            raise RequestError(f"user {request.user!r}: nothing of it is kept; send its history", 404)
        history = (*before.history, *added)[-self.model.reader.length :]
        return User(history, before.count + len(added), dict(before.states)), added, began

    def _states(self, users: Sequence[User], kind: str, request: EventsRequest) -> list[UserState]:
        """Return users' states after all of their events, those that are kept an event at a time, of all users together."""
        states: list[UserState] = []
        ahead: list[tuple[Event, ...]] = []
        moment = self.model.moments(1, request.at)
        for user in users:
            covered, state = user.states.get(kind, (0, None))
            behind = user.count - covered
            gone = state is None or state.fingerprint != self.model.fingerprint or behind > min(_CATCH_UP, len(user.history))
            # of another moment, without a further event
            if state is None or gone or (not behind and state.moments != moment):
                state, behind = self.model.state(user.history, request.task, shared=request.shared, at=request.at), 0
            states.append(state)
            ahead.append(user.history[len(user.history) - behind :] if behind else ())
        for number in range(max(map(len, ahead), default=0)):
            places = [place for place, events in enumerate(ahead) if number < len(events)]
            longer = self.model.extend_each([states[place] for place in places], [ahead[place][number] for place in places], at=request.at)
            for place, state in zip(places, longer, strict=True):
                states[place] = state
        return states

    def reloaded(self, stage: int | None, *, device: str) -> Served:
        """Return the same run as it is now, or another stage of it; remembered users go with it, their states are computed anew."""
        return Served.load(self.source if stage is None else replace(self.source, stage=stage), self.users, device=device)


def _one_of_each_user(requests: Sequence[EventsRequest]) -> list[list[int]]:
    """Return the places of requests, in turns in which no user comes twice."""
    turns: list[list[int]] = []
    seen: Counter[str] = Counter()
    for place, request in enumerate(requests):
        turn = seen[request.user]
        seen[request.user] += 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(place)
    return turns


def _unknown(read: Histories, low: int, high: int) -> dict[str, int]:
    """Return how much of some histories the model does not know: events by item, and what else it reads, by type and values of features."""
    counted = {"unknown": read.strange, "unknown_types": read.strange_types, "unknown_features": read.strange_values}
    return {name: int(count[low:high].sum()) for name, count in counted.items() if count is not None}


def _bounds(requests: Sequence[EncodeRequest | PredictRequest]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate((len(request.histories) for request in requests), initial=0)))
