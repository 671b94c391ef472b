"""Counting malformed rows of raw files by kind, and stopping past a stated share."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dist_teracon.console import Log
from dist_teracon.data.raw.listing import relative_name
from dist_teracon.errors import DataError, nearest

_SHOWN = 80
_SAMPLES = 100
_SAMPLE_LENGTH = 2000
# ends of lines to many a reader of text, which JSON leaves as they are
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


@dataclass
class BadRows:
    """Malformed rows of one preparation.

    Attributes:
        limit: Largest share of malformed rows in a file, `--max-bad-rows`.
        adjustable: Whether the command has that option.
        rejected: A JSON-lines file for the first 100 malformed rows of a kind in a file; made when there is one.
        root: Folder or URI of the raw files; files in it are named by their path from there.
        counts: Rows by kind over all files, for the data set's notes.
    """

    limit: float = 0.001
    rejected: Path | None = None
    root: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    adjustable: bool = True
    _pending: dict[str, list[str]] = field(default_factory=dict)
    _pending_counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)
    _file: IO[str] | None = None

    def add(self, kind: str, where: str, *, text: str | None = None, count: int = 1) -> None:
        """Count rows of one kind; `where` (file:line) and `text` show the first of them."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self._pending_counts[kind] = self._pending_counts.get(kind, 0) + count
        if self._pending_counts[kind] - count < _SAMPLES:
            self._sample(kind, where, text)
        shown = "" if text is None else f": {text[:_SHOWN]!r}" + ("…" if len(text) > _SHOWN else "")
        self._pending.setdefault(kind, [f"{where}{shown}"])
        self._first.setdefault(kind, f"{where}{shown}")

    def merge(self, counts: dict[str, int], rejected: str) -> None:
        """Add what another process counted and sampled, file after file."""
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        if rejected and self.rejected is not None:
            if self._file is None:
                self._file = self.rejected.open("a", encoding="utf-8")
            self._file.write(rejected)

    def close(self) -> None:
        """End the file of malformed rows."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _sample(self, kind: str, where: str, text: str | None) -> None:
        if self.rejected is None:
            return
        if self._file is None:
            self._file = self.rejected.open("a", encoding="utf-8")
        uri, _, line = where.rpartition(":")
        file = relative_name(uri, self.root)
        place: dict[str, object] = {"file": file, "line": int(line)} if line.isdecimal() else {"file": file, "row": line.strip()}
        row = {**place, "reason": kind, "text": None if text is None else text[:_SAMPLE_LENGTH]}
        self._file.write(json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n")

    def tell(self, uri: str, log: Log) -> None:
        """Log what was passed over so far, a line a kind."""
        for kind, count in self.counts.items():
            rows = "1 malformed row is" if count == 1 else f"{count} malformed rows are"
            first = f", first at {self._first[kind]}" if kind in self._first else ""  # not of rows that another process read
            log(f"{uri}: {rows} left out: {kind}{first}")

    def check(self, uri: str, rows: int) -> None:
        """End a file of `rows` rows, malformed ones included.

        Raises:
            DataError: more malformed rows than the limit allows; names each kind, how many, and the first of them.
        """
        counts, examples = self._pending_counts, self._pending
        self._pending_counts, self._pending = {}, {}
        bad = sum(counts.values())
        if bad <= self.limit * rows:
            return
        kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
        lines = [f"  {counts[kind]} × {kind}, first at {examples[kind][0]}" for kind in kinds]
        allowed = int(self.limit * rows)
        told = f"--max-bad-rows {self.limit:g} allows {allowed}" if self.adjustable else f"{allowed} would be passed over; mend the others"
        head = f"{uri}: {bad} of {rows} rows are malformed; {told}"
        if any(kind.startswith("bytes that are not") for kind in kinds):
            lines.append("  a text in another encoding is read by `encoding` in the recipe, as cp949 or latin-1")
        if any(kind.endswith("none of the recipe's classes") for kind in kinds):
            lines.append("  codes of unknown are declared by `missing` in the recipe, as missing: ['0']")
        raise DataError("\n".join((head, *lines)))


def column_missing(where: str, column: str, known: Collection[str]) -> DataError:
    """Return the error for a file without a required column; `where` is the header's file:line."""
    return DataError(
        f"{where}: no column '{column}'{nearest(column, known)} (there are: {', '.join(known)}); `columns:` in the recipe names columns"
    )
