"""Output for people while a job runs: log lines and progress, as bars on a terminal and as plain lines elsewhere.

One process prints; the others are silent. Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# Takes a line of text for a person.
Log = Callable[[str], None]

# Where there is no terminal, a long loop prints a line this often.
_PLAIN_INTERVAL_S = 30.0
_BAR_INTERVAL_S = 0.2


def set_up_logging(*, verbose: bool) -> None:
    """Send the project's log to standard error; libraries print from warnings up."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("dist_teracon").setLevel(logging.INFO if verbose else logging.WARNING)


def no_log(_text: str) -> None:
    """Drop a line; a `Log`."""


class Progress(Protocol):
    """Shows how far a long job is."""

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on, showing how many of `total` are done, how fast, and how long the rest will take."""

    def update(self, description: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a job are done; called as often as it suits the job."""


class NoProgress:
    """A `Progress` that shows nothing."""

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on."""
        return items

    def update(self, description: str, done: int, total: int) -> None:
        """Show nothing."""


class LabelledProgress:
    """A `Progress` whose descriptions begin with a label, as the stage's name."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on, shown under the label."""
        return self._progress.track(items, total, f"{self._label} · {description}")

    def update(self, description: str, done: int, total: int) -> None:
        """Show progress under the label."""
        self._progress.update(f"{self._label} · {description}", done, total)


class Console:
    """The output of a job: its log and its progress; a `Progress`.

    Args:
        active: Whether this process prints; in a distributed run only the main one does.
    """

    def __init__(self, *, active: bool = True) -> None:
        self.active = active
        self._terminal = active and sys.stderr.isatty()
        self._description = ""
        self._started = self._shown = 0.0

    def log(self, text: str) -> None:
        """Print a line."""
        if self.active:
            print(text, file=sys.stderr, flush=True)

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on, showing how many of `total` are done, how fast, and how long the rest will take."""
        if self._terminal:
            yield from _bar(items, total, description)
        elif self.active:
            yield from self._lines(items, total, description)
        else:
            yield from items

    def _lines(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        started = shown = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - shown >= _PLAIN_INTERVAL_S and done < total:
                rate = done / (now - started)
                self.log(f"{description}: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")
                shown = now

    def update(self, description: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a job are done: a bar on a terminal, a line every half minute elsewhere."""
        if not self.active:
            return
        now = time.monotonic()
        if description != self._description:
            self._description, self._started, self._shown = description, now, now
        if total < 1 or now - self._shown < (_BAR_INTERVAL_S if self._terminal else _PLAIN_INTERVAL_S):
            if self._terminal and done >= total:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return
        self._shown = now
        share = min(1.0, done / total)
        left = (now - self._started) * (1 / share - 1) if share else 0.0
        if self._terminal:
            filled = round(30 * share)
            bar = "━" * filled + "╌" * (30 - filled)
            print(f"\r\x1b[K{description} {bar} {share:4.0%}, {left:.0f} s left", end="", file=sys.stderr, flush=True)
        else:
            print(f"{description}: {share:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)


def _bar(items: Iterator[T], total: int, description: str) -> Iterator[T]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.progress import Task as Bar
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Bar) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", style="dim")

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Terminal(stderr=True), transient=True) as progress:
        bar = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(bar)
