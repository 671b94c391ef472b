"""What a person sees while a run works: progress bars on a terminal, plain lines elsewhere, one process speaking for all."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Wraps a long loop with progress: takes the items, how many there are, and what is being done.
Track = Callable[[Iterator[Any], int, str], Iterator[Any]]

# On something that is no terminal, a long loop tells of itself this often.
_PLAIN_INTERVAL_S = 30.0


def set_up_logging(*, verbose: bool) -> None:
    """Send the project's log to standard error; libraries speak only from warnings up."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("dist_teracon").setLevel(logging.INFO if verbose else logging.WARNING)


def untracked(items: Iterator[T], _total: int, _description: str) -> Iterator[T]:
    """Pass items on in silence; a `Track`."""
    return items


class Voice:
    """The output of a run; every process but the main one is silent.

    Args:
        speaks: Whether this process is the one that speaks.
    """

    def __init__(self, *, speaks: bool) -> None:
        self.speaks = speaks
        self._terminal = speaks and sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Print a line."""
        if self.speaks:
            print(text, file=sys.stderr, flush=True)

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on, showing how far a long loop is, how fast, and how long it will take."""
        if self._terminal:
            yield from _bar(items, total, description)
        elif self.speaks:
            yield from self._plain(items, total, description)
        else:
            yield from items

    def _plain(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        started = told = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - told >= _PLAIN_INTERVAL_S and done < total:
                rate = done / (now - started)
                self.line(f"{description}: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")
                told = now


class Progress:
    """How far a job of several parts is: a bar on a terminal, a line every half minute elsewhere.

    A call takes what is being done, how much of it is done, and how much there is.
    """

    def __init__(self) -> None:
        self._what = ""
        self._started = self._told = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._told = what, now, now
        if total < 1 or now - self._told < (0.2 if self._terminal else _PLAIN_INTERVAL_S):
            if self._terminal and done >= total:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return
        self._told = now
        share = min(1.0, done / total)
        left = (now - self._started) * (1 / share - 1) if share else 0.0
        if self._terminal:
            filled = round(30 * share)
            print(
                f"\r\x1b[K{what} {'━' * filled}{'╌' * (30 - filled)} {share:4.0%}, {left:.0f} s left", end="", file=sys.stderr, flush=True
            )
        else:
            print(f"{what}: {share:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)


def _bar(items: Iterator[T], total: int, description: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as Bar
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Bar) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", style="dim")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(bar)
