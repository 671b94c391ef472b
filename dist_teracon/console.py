"""Output for people while a job runs: log lines and progress, as one line that is drawn anew on a terminal and as plain lines elsewhere.

One process prints; the others are silent. Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from dist_teracon.text import cells, cropped, seconds_text, terminal_width, wrapped

T = TypeVar("T")

# Takes a line of text for a person.
Log = Callable[[str], None]

# Lines that begin so are printed with --quiet, too.
WARNING = "warning: "

# Where there is no terminal, a long loop prints a line this often.
_PLAIN_INTERVAL_S = 30.0
_BAR_INTERVAL_S = 0.2
_CLEAR = "\r\x1b[K"
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def set_up_logging(*, verbose: bool) -> None:
    """Send the project's log to standard error, with times where that is no terminal; libraries print from warnings up."""
    stamp = "" if sys.stderr.isatty() else "%(asctime)s "
    logging.basicConfig(
        level=logging.WARNING, format=f"{stamp}%(levelname)s %(name)s: %(message)s", datefmt=_TIME_FORMAT, stream=sys.stderr
    )
    logging.getLogger("dist_teracon").setLevel(logging.INFO if verbose else logging.WARNING)


def no_log(_text: str) -> None:
    """Drop a line; a `Log`."""


def print_lines(lines: Sequence[str]) -> None:
    """Print results to standard output; on a terminal a line breaks between words, never within a number."""
    if sys.stdout.isatty():
        width = terminal_width(sys.stdout)
        lines = [piece for line in lines for piece in wrapped(line, width, indent="    ")]
    print("\n".join(lines))


def open_missing_streams() -> None:
    """Open the null device as standard input, output and error where the process was started without them.

    Else a file that is opened later would get their number, and what is printed would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null := os.open(os.devnull, os.O_RDWR), number)
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def drop_lost_streams() -> None:
    """Turn standard output and error to the null device where they cannot be written: Python's last flush of them would be an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _to_stderr(text: str, *, end: str = "\n") -> None:
    """Print to standard error; where that is gone, as the terminal of a long job, the job goes on without."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Print an error or a warning of the program's own; what was drawn on the last line of a terminal makes room."""
    _to_stderr(f"{_CLEAR if sys.stderr.isatty() else ''}dist-teracon: {text}")


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


class Outlook:
    """How far a run is, over stages × epochs, and how long the rest will take.

    Early stopping ends most stages before their last epoch. So a stage to come is expected to take as large a share of its epochs as
    the finished ones did, without the first where there are others, as the first task is another kind of work; before any is
    finished, all of its epochs.

    Args:
        limits: The most epochs of each stage.
        finished: Epochs and seconds of the stages that were there already.
        clock: Seconds.
    """

    def __init__(
        self, limits: Sequence[int], finished: Sequence[tuple[int, float]] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = list(limits), clock
        self._finished = list(finished)
        self._epochs, self._began = 0.0, clock()
        self._first: int | None = None

    def at(self, epochs: float) -> None:
        """Note that so many epochs of the stage under way are done, the share of the present one included."""
        if self._first is None:
            self._first = math.floor(epochs)  # of a stage that goes on, the epochs before were taken at another time
        self._epochs = epochs

    def end_stage(self, epochs: int) -> None:
        """Note that the stage under way is finished, after so many epochs."""
        self._finished.append((epochs, self._clock() - self._began))
        self._epochs, self._began, self._first = 0.0, self._clock(), None

    def now(self) -> tuple[float, float | None]:
        """Return the share that is done, and the seconds that are left; None before there is anything to judge by."""
        number = len(self._finished)
        done = sum(epochs for epochs, _ in self._finished) + self._epochs
        ratio, pace = self._known()
        rest = [max(1.0, limit * ratio) for limit in self._limits[number:]]
        if rest:
            rest[0] = max(0.0, max(rest[0], min(self._epochs + 1, self._limits[number])) - self._epochs)
        if not rest:
            return 1.0, None
        # after a stage's last epoch there is its evaluation
        share = min(0.99, done / (done + sum(rest))) if done else 0.0
        taken = self._epochs - (self._first or 0)
        own = (self._clock() - self._began) / taken if taken > 0 else pace
        if own is None or not sum(rest):
            return share, None
        return share, sum(rest[:1]) * own + sum(rest[1:]) * (own if pace is None else pace)

    def _known(self) -> tuple[float, float | None]:
        """Return by the finished stages the share of its epochs that a stage takes, and the seconds of an epoch."""
        past = list(zip(self._finished, self._limits, strict=False))
        past = past[1:] or past
        epochs = sum(taken for (taken, _), _ in past)
        seconds = sum(seconds for (_, seconds), _ in past)
        limit = sum(limit for _, limit in past)
        return (epochs / limit if limit else 1.0), (seconds / epochs if epochs else None)


class Console:
    """The output of a job: its log and its progress; a `Progress`.

    Args:
        active: Whether this process prints; in a distributed run only the main one does.
        quiet: Print warnings alone, and no progress.
    """

    def __init__(self, *, active: bool = True, quiet: bool = False) -> None:
        self.active, self.quiet = active, quiet
        self.outlook: Outlook | None = None
        self._shows = active and not quiet
        self._terminal = active and sys.stderr.isatty()
        self._description = ""
        self._started = self._shown = 0.0
        self._drawn = False

    def log(self, text: str) -> None:
        """Print a line; on a terminal broken between words, elsewhere with the time before it."""
        if not self._shows and not (self.active and text.startswith(WARNING)):
            return
        if self._terminal:
            self._clear()
            width = terminal_width(sys.stderr)
            text = "\n".join(piece for line in text.split("\n") for piece in wrapped(line, width, indent="  "))
            _to_stderr(text)
        else:
            _to_stderr(f"{time.strftime(_TIME_FORMAT)} {text}")

    def advance(self, epochs: float) -> None:
        """Note that so many epochs of the present stage are done, for the time that the run will take."""
        if self.outlook is not None:
            self.outlook.at(epochs)

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items on, showing how many of `total` are done, how fast, and how long the rest will take."""
        if not self._shows:
            yield from items
            return
        started = shown = time.monotonic()
        interval = _BAR_INTERVAL_S if self._terminal else _PLAIN_INTERVAL_S
        try:
            for done, item in enumerate(items, start=1):
                yield item
                now = time.monotonic()
                if now - shown >= interval and done < total:
                    rate = done / (now - started)
                    self._show(description, f"{done}/{total}, {rate:.1f}/s", done / total, (total - done) / rate)
                    shown = now
        finally:
            self._clear()

    def update(self, description: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a job are done: a bar on a terminal, a line every half minute elsewhere."""
        if not self._shows:
            return
        now = time.monotonic()
        if description != self._description:
            self._description, self._started, self._shown = description, now, now
        if total < 1 or done >= total:
            self._clear()
        elif now - self._shown >= (_BAR_INTERVAL_S if self._terminal else _PLAIN_INTERVAL_S):
            self._shown = now
            share = done / total
            self._show(description, f"{share:.0%}", share, (now - self._started) * (1 / share - 1) if share else None)

    def _show(self, description: str, count: str, share: float, left: float | None) -> None:
        """Show how far a loop is, and the run that it is part of, where its length is known."""
        if not self._terminal:
            run = "" if self.outlook is None else _outlook_text(*self.outlook.now(), before="; run ")
            self.log(f"{description}: {count}{_left(left)}{run}")
            return
        width = terminal_width(sys.stderr) - 1
        if self.outlook is None:
            line = bar_line("", description, f"{count}{_left(left)}", share, width)
        else:
            whole, remaining = self.outlook.now()
            line = bar_line(_outlook_text(whole, remaining, before="run "), description, count, whole, width)
        _to_stderr(f"{_CLEAR}{line}", end="")
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            _to_stderr(_CLEAR, end="")
            self._drawn = False


def bar_line(whole: str, description: str, count: str, share: float, width: int) -> str:
    """Return a line of at most `width` cells: a bar, and what is counted. Numbers stay whole; the description gives way.

    Args:
        whole: What stands before the bar, as how far the whole run is; may be empty.
        description: Of the loop.
        count: How far the loop is.
        share: What the bar shows.
        width: In cells.
    """
    room = width - cells(whole) - cells(count) - 5
    bars = min(30, max(8, room - cells(description))) if room >= 20 else 0
    filled = round(bars * min(1.0, share))
    bar = "━" * filled + "╌" * (bars - filled)
    described = cropped(description, max(0, room - bars))
    return cropped("  ".join(part for part in (whole, bar, f"{described} {count}".strip()) if part), width)


def _outlook_text(share: float, left: float | None, *, before: str) -> str:
    return f"{before}{share:.0%}{_left(left, about='about ')}"


def _left(seconds: float | None, *, about: str = "") -> str:
    return "" if seconds is None else f", {about}{seconds_text(max(0.0, seconds))} left"
