"""The users that a server remembers: last events, and the states computed of them; the least recently used make place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dist_teracon.inference.state import UserState


@dataclass(frozen=True)
class User:
    """What is kept of a user.

    Attributes:
        history: The last events, oldest first, as many as the model reads: raw ids, or as a request has events with times and types.
        count: Events so far, those beyond `history` included.
        states: By kind of vector: at which `count` a state was computed, and the state.
    """

    history: tuple[str | dict[str, Any], ...] = ()
    count: int = 0
    states: dict[str, tuple[int, UserState]] = field(default_factory=dict)


class Users:
    """A bounded map of users. One thread at a time may use it.

    Args:
        most: Users that are kept.

    Attributes:
        evicted: Users that had to make place so far.
    """

    def __init__(self, most: int) -> None:
        self.most, self.evicted = most, 0
        self._users: OrderedDict[str, User] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def __iter__(self) -> Iterator[tuple[str, User]]:
        """Yield names and users, the least recently used first."""
        return iter(list(self._users.items()))

    def get(self, name: str) -> User | None:
        """Return a user, None where it is not kept."""
        return self._users.get(name)

    def put(self, name: str, user: User) -> None:
        """Keep a user as the most recently used one."""
        self._users[name] = user
        self._users.move_to_end(name)
        while len(self._users) > self.most:
            self._users.popitem(last=False)
            self.evicted += 1
