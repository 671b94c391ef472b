"""What a reader of raw files is given: where to spill, how many malformed rows to allow, where to report progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.files import BLOCK

P = TypeVar("P")
R = TypeVar("R")


class Workers(Protocol):
    """Processes, perhaps on other machines, that do a preparation's work piece by piece."""

    @property
    def staging(self) -> str:
        """URI of a folder that all of them see."""

    def map(self, work: Callable[[P], R], pieces: Sequence[P], *, done: Callable[[int], None] = ...) -> list[R]:
        """Return `work` of each piece, in the pieces' order; `done` is called with how many are finished.

        Raises:
            DataError: a worker's error that is a user's, or a worker that failed.
        """


@dataclass
class ReadContext:
    """The state of one reading of raw files.

    Attributes:
        bad: Counts malformed rows.
        spill: An empty folder for temporary files.
        shards: Number of shards where it was asked for.
        min_count: Items of fewer occurrences count as unseen; None leaves it to the recipe.
        block: Bytes of a file that are looked at together; nothing that is written depends on it.
        total_bytes: Stored bytes of all files.
        progress: Shows how far it is.
        sha256: By URI, of the files read so far.
        workers: Processes that share the work; None to do it here.
        kept_rows: Rows kept by task, where workers read them.
        log: Receives lines on what was guessed, changed or left out.
        notes: The same for the data set's notes.
        met_codes: Codes of unknown that stand in an attribute.
    """

    bad: BadRows
    spill: Path
    shards: int | None = None
    min_count: int | None = None
    block: int = BLOCK
    total_bytes: int = 0
    progress: Progress = field(default_factory=NoProgress)
    sha256: dict[str, str] = field(default_factory=dict)
    workers: Workers | None = None
    kept_rows: dict[str, int] = field(default_factory=dict)
    log: Log = no_log
    notes: dict[str, Any] = field(default_factory=dict)
    met_codes: set[str] = field(default_factory=set)
    _read: dict[str, int] = field(default_factory=dict)

    def report_position(self, uri: str, position: int) -> None:
        """Report that a file was read up to a stored byte."""
        self._read[uri] = position
        self.progress.update("reading", sum(self._read.values()), self.total_bytes)

    def note(self, group: str, key: str, value: Any, line: str = "") -> None:
        """Keep a fact among the data set's notes, counts of one key added up, and log a line on it."""
        facts = self.notes.setdefault(group, {})
        facts[key] = facts[key] + value if type(value) is int and key in facts else value
        if line:
            self.log(line)

    def report(self, what: str, done: int, total: int) -> None:
        """Report progress in another step."""
        self.progress.update(what, done, total)
