"""Counting malformed rows of raw files by kind, and stopping past a stated share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dist_teracon.errors import DataError

_SHOWN = 80


@dataclass
class BadRows:
    """Malformed rows of one preparation.

    Attributes:
        limit: Largest share of malformed rows in a file, `--max-bad-rows`.
        counts: Rows by kind over all files, for the data set's notes.
    """

    limit: float = 0.001
    counts: dict[str, int] = field(default_factory=dict)
    _pending: dict[str, list[str]] = field(default_factory=dict)
    _pending_counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, where: str, *, text: str | None = None, count: int = 1) -> None:
        """Count rows of one kind; `where` (file:line) and `text` show the first of them."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self._pending_counts[kind] = self._pending_counts.get(kind, 0) + count
        shown = "" if text is None else f": {text[:_SHOWN]!r}" + ("…" if len(text) > _SHOWN else "")
        self._pending.setdefault(kind, [f"{where}{shown}"])

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
        head = f"{uri}: {bad} of {rows} rows are malformed; --max-bad-rows {self.limit:g} allows {int(self.limit * rows)}"
        raise DataError("\n".join((head, *lines)))


def column_missing(where: str, column: str, known: Iterable[str], hint: str = "") -> DataError:
    """Return the error for a file without a column it must have; `where` is the header's file:line."""
    return DataError(f"{where}: no column '{column}'{hint} (there are: {', '.join(known)})")
