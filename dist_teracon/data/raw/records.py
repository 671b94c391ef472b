"""Records of text files: a record is a line, or several where a quoted cell holds line ends (RFC 4180).

A quote has a meaning at the beginning of a cell alone; within a quoted cell it is doubled. Blocks in which every quote stands where it
may are cut by the parity of the quotes before a line end; only the others are looked at record by record. What comes out does not
depend on where blocks end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data.raw.files import LineBlock

# A quoted cell of more line ends is taken for a quote that was never closed, which else would swallow the rows behind it.
MOST_LINES = 1000
_NEWLINE = 10

Int = NDArray[np.int64]
Reject = Callable[[str, int, str], None]


@dataclass(frozen=True)
class RecordBlock:
    """Whole records that are not blank, of a text in UTF-8.

    Attributes:
        content: The records, each ending in a newline; blank lines between them.
        starts, ends: int64 [R], where each record begins, and where its newline is.
        lines: int64 [R], numbers of the lines at which they begin, from 1.
        lengths: int64 [R], how many lines each has; None for one each.
    """

    content: bytes
    starts: Int
    ends: Int
    lines: Int
    lengths: Int | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def texts(self) -> list[bytes]:
        """Return each record without its newline."""
        return [self.content[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def lines_of(self, record: int) -> int:
        """Return how many lines a record has."""
        return 1 if self.lengths is None else int(self.lengths[record])

    def without(self, faulty: Callable[[bytes], bool], reject: Callable[[int, bytes], None]) -> RecordBlock:
        """Reject the records that are faulty; returns the others."""
        texts = self.texts()
        whole = np.array([not faulty(text) for text in texts], dtype=bool)
        if whole.all():
            return self
        for place in np.flatnonzero(~whole).tolist():
            reject(place, texts[place])
        lengths = None if self.lengths is None else self.lengths[whole]
        return _of_texts([text for text, kept in zip(texts, whole.tolist(), strict=True) if kept], self.lines[whole], lengths)

    def without_first(self) -> RecordBlock:
        """Return the records behind the first."""
        start = int(self.ends[0]) + 1
        lengths = None if self.lengths is None else self.lengths[1:]
        return RecordBlock(self.content[start:], self.starts[1:] - start, self.ends[1:] - start, self.lines[1:], lengths)


def _of_texts(texts: Sequence[bytes], lines: Int, lengths: Int | None) -> RecordBlock:
    sizes = np.array([len(text) + 1 for text in texts], dtype=np.int64)
    behind = np.cumsum(sizes)
    return RecordBlock(b"".join(text + b"\n" for text in texts), behind - sizes, behind - 1, lines, lengths)


def record_blocks(blocks: Iterable[LineBlock], *, quote: str | None, delimiter: str, reject: Reject) -> Iterator[RecordBlock]:
    """Cut blocks of lines into records.

    Args:
        blocks: Whole lines, in order.
        quote: The quote character, or None where it is an ordinary one.
        delimiter: Between the cells; one character where there are quotes.
        reject: Called with kind, line and text of each line with a quote that is not closed, or closed before the end of its cell.
    """
    if quote is None:
        for block in blocks:
            yield _lines(block.content, block.ends, block.first)
        return
    cutter = _Cutter(quote.encode(), delimiter.encode(), reject)
    for block in blocks:
        yield cutter.cut(block)
    if cutter.tail:
        yield cutter.finish()


def _lines(content: bytes, ends: Int, first: int) -> RecordBlock:
    """Return records of one line each."""
    starts = np.concatenate((np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1] + 1))
    filled = np.flatnonzero(ends > starts)
    return RecordBlock(content, starts[filled], ends[filled], filled + first)


class _Cutter:
    """Cuts text with quotes; `tail` is a record that is not at its end yet, `line` the number of its first line."""

    def __init__(self, quote: bytes, delimiter: bytes, reject: Reject) -> None:
        self.tail, self.line = b"", 1
        self._quote, self._delimiter, self._reject = quote, delimiter, reject

    def cut(self, block: LineBlock) -> RecordBlock:
        """Return the records that end in a block."""
        if not self.tail and self._quote not in block.content:
            return _lines(block.content, block.ends, block.first)
        content, first = self.tail + block.content, self.line if self.tail else block.first
        records = self._by_parity(content, first)
        return self._closely(content, first, final=False) if records is None else records

    def finish(self) -> RecordBlock:
        """Return the records of what was left at the end of the file."""
        return self._closely(self.tail, self.line, final=True)

    def _by_parity(self, content: bytes, first: int) -> RecordBlock | None:
        """Return the records where every quote stands where it may, else None."""
        text = np.frombuffer(content, dtype=np.uint8)
        quotes = np.flatnonzero(text == self._quote[0])
        newlines = np.flatnonzero(text == _NEWLINE)
        beside = np.array([self._quote[0], self._delimiter[0], _NEWLINE], dtype=np.uint8)
        opening, closing = quotes[0::2], quotes[1::2]
        before = text[np.maximum(opening - 1, 0)]
        if not (np.isin(before, beside) | (opening == 0)).all() or not np.isin(text[closing + 1], beside).all():
            return None
        outside = np.searchsorted(quotes, newlines) % 2 == 0
        places = np.flatnonzero(outside)
        ends = newlines[places]
        lengths = np.diff(places, prepend=-1)
        open_lines = len(newlines) - 1 - (int(places[-1]) if len(places) else -1)
        if (lengths > MOST_LINES + 1).any() or open_lines > MOST_LINES:
            return None
        starts = np.concatenate((np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1] + 1))
        lines = first + places - lengths + 1
        behind = int(ends[-1]) + 1 if len(ends) else 0
        self.tail, self.line = content[behind:], first + len(newlines) - open_lines
        filled = ends > starts
        return RecordBlock(content[:behind], starts[filled], ends[filled], lines[filled], lengths[filled] if (lengths > 1).any() else None)

    def _closely(self, content: bytes, first: int, *, final: bool) -> RecordBlock:
        """Return the records, looked at one by one; a line whose quotes are wrong is rejected alone."""
        record, opened = _patterns(self._quote, self._delimiter)
        texts, lines, lengths = [], [], []
        place, line = 0, first
        self.tail = b""
        while place < len(content):
            end = content.index(b"\n", place)
            count = 1
            if content.find(self._quote, place, end) >= 0:
                found = record.match(content, place)
                if found is not None:
                    end = found.end() - 1
                    count = 1 + content.count(b"\n", place, end)
                elif not final and content.count(b"\n", place) <= MOST_LINES and opened.match(content, place):
                    self.tail, self.line = content[place:], line
                    break
                if found is None or count > MOST_LINES + 1:
                    end = content.index(b"\n", place)
                    self._reject("a quote that is not closed", line, content[place:end].decode("utf-8", errors="replace"))
                    place, line = end + 1, line + 1
                    continue
            if end > place:
                texts.append(content[place:end])
                lines.append(line)
                lengths.append(count)
            place, line = end + 1, line + count
        several = np.array(lengths, dtype=np.int64) if any(count > 1 for count in lengths) else None
        return _of_texts(texts, np.array(lines, dtype=np.int64), several)


@lru_cache(maxsize=8)
def _patterns(quote: bytes, delimiter: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what a whole record looks like, and one that ends within a quoted cell."""
    q, d = re.escape(quote), re.escape(delimiter)
    quoted = rb"%s(?:[^%s]++|%s%s)*+" % (q, q, q, q)
    cell = rb"(?:%s%s *+|(?!%s)[^%s\n]*+)" % (quoted, q, q, d)
    return re.compile(rb"%s(?:%s%s)*+\n" % (cell, d, cell)), re.compile(rb"(?:%s%s)*+%s\Z" % (cell, d, quoted))
