"""What the workers of a run on Ray leave for its driver: lines of the log, and why one of them gave up.

Ray sends the output of all workers to the driver, each line with a prefix, and of errors those that it saw first. A run's log is
that of its main process alone, and the error that counts is the one of the worker that failed by itself, not of those that lost it.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dist_teracon.console import Console
from dist_teracon.errors import PeerError, TeraconError

# How long a worker that fails waits for its message to be taken.
_SEND_S = 15.0


@dataclass(frozen=True)
class Failure:
    """Why a worker gave up.

    Attributes:
        rank: The worker's.
        text: For a person, one line or several.
        of_user: A mistake that another attempt would meet again.
        of_peer: It lost another worker, whose own failure is the reason.
        trace: The traceback of an error that nobody foresaw, or nothing.
    """

    rank: int
    text: str
    of_user: bool = False
    of_peer: bool = False
    trace: str = ""

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """Return the failure that an error is."""
        if isinstance(error, TeraconError):
            of_peer = isinstance(error, PeerError)
            return cls(rank, str(error), of_user=not of_peer, of_peer=of_peer)
        return cls(rank, f"{type(error).__name__}: {error}", trace="".join(traceback.format_exception(error)))


class Messages:
    """The actor; it lives with the driver."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._attempts: list[int] = []
        self._failures: list[Failure] = []

    def begin(self, world_size: int) -> int:
        """Note that the workers begin; returns which attempt of the run this is, from 1."""
        self._attempts.append(world_size)
        return len(self._attempts)

    def log(self, line: str) -> None:
        """Take a line of the log."""
        self._lines.append(line)

    def fail(self, failure: Failure) -> None:
        """Take a failure of the present attempt."""
        self._failures.append(failure)

    def given_up(self) -> bool:
        """Return whether a user's mistake ends the run."""
        return any(failure.of_user for failure in self._failures)

    def since(self, lines: int, failures: int) -> tuple[list[str], list[int], list[Failure]]:
        """Return the lines after the first `lines`, the attempts' numbers of workers, and the failures after the first `failures`."""
        return self._lines[lines:], self._attempts, self._failures[failures:]


def first_cause(failures: list[Failure]) -> Failure | None:
    """Return the failure that the others follow from: the first of a worker's own, else the first."""
    own = [failure for failure in failures if not failure.of_peer]
    return next(iter(own or failures), None)


class SentConsole(Console):
    """The console of a worker: what the main one prints goes to the driver, and to Ray's log of the worker.

    Args:
        messages: Handle of the actor.
        active: Whether this worker prints.
    """

    def __init__(self, messages: Any, *, active: bool) -> None:
        super().__init__(active=active)
        self._messages = messages

    def log(self, text: str) -> None:
        """Print a line, here and at the driver."""
        super().log(text)
        if self.active:
            self._messages.log.remote(text)


class SentLog(logging.Handler):
    """Sends records of the program's own log to the driver, those of other ranks than the main one from warnings up."""

    def __init__(self, messages: Any, rank: int) -> None:
        super().__init__(logging.NOTSET if rank == 0 else logging.WARNING)
        self._messages, self._rank = messages, rank

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        self._messages.log.remote(text if self._rank == 0 else f"rank {self._rank}: {text}")


def send_failure(messages: Any, failure: Failure) -> None:
    """Send a failure and wait until it has arrived: this process may be ended right after."""
    import ray

    with suppress(Exception):  # a driver that is gone needs no message
        ray.get(messages.fail.remote(failure), timeout=_SEND_S)
