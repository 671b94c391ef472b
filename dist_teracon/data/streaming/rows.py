"""Rows of the public TERACON format, parsed a block of bytes at a time without a Python step a row or a number.

A row is left padding `0,0,…`, the sequence's numbers, and in all files but the first `,,` and targets. Numbers are read eight bytes
at a time. A row that is not plainly well-formed goes through the regular expressions, which decide and name what is wrong.

Legend: N bytes, R rows, T numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.raw.files import LineBlock

# Numbers of up to nine digits fit in 32 bits; only rows with longer ones are looked at number by number.
_ROW = re.compile(r"(?:0,)*([1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})*)(?:,,([0-9]{1,9}(?:,[0-9]{1,9})*))?")
_LONG_ROW = re.compile(r"(?:0,)*([1-9][0-9]*(?:,[1-9][0-9]*)*)(?:,,([0-9]+(?:,[0-9]+)*))?")
_PADDING = re.compile(r"0(?:,0)*(?:,,.*)?", re.ASCII)
_LARGEST = 2**31 - 1

_COMMA, _NEWLINE, _ZERO = 44, 10, 48
_FRONT = 24  # bytes before the first row, so that eight may be read that end in its first number
_ZEROS = ragged.offsets_of(range(8))  # where runs of 0 … 7 zero bytes begin, laid one behind the other
_BEHIND = b"\0" * 48  # after the last row: eight bytes may be read from any position, and there are zeros to fill words up with

Int = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Rows:
    """Well-formed rows in the order of the file.

    Attributes:
        lines: int64 [R], numbers of their lines.
        text_hash: uint64 [R], a quick hash of the unpadded sequence's text.
        targets, target_offsets: int32, ragged; each target once a row. Of no targets in the first task's file.
        fields: The largest number of fields before `,,`, padding included.
        user_hash: uint64 [R], the stable hash of the unpadded sequence's text.
        fresh: int64, positions of the rows whose sequences are read too: all, or those that were not seen before.
        items, item_offsets: int32, ragged, of the rows in `fresh`.
    """

    lines: Int
    text_hash: Hashes
    targets: NDArray[np.int32]
    target_offsets: Int
    fields: int
    user_hash: Hashes
    fresh: Int
    items: NDArray[np.int32]
    item_offsets: Int


# From quick hashes to whether the sequence was seen before, its stable hash and how many items it has.
FindSeen = Callable[[Hashes], tuple[NDArray[np.bool_], Hashes, NDArray[np.int32]]]


def parse_rows(block: LineBlock, *, targets: bool, seen: FindSeen | None, reject: Callable[[str, int, str], None]) -> tuple[Rows, int]:
    """Parse a block's rows; blank lines do not count.

    Args:
        block: Whole lines.
        targets: Whether rows have `,,` and targets.
        seen: Finds the sequences that were seen before, which are not read again.
        reject: Called with kind, line and text of each malformed row.

    Returns:
        The well-formed rows, and how many rows there are in all.
    """
    text_N = _framed(block.content)
    ends = block.ends + _FRONT
    starts = np.concatenate(([_FRONT], ends[:-1] + 1))
    filled = ends > starts
    lines = np.flatnonzero(filled) + block.first
    starts, ends = starts[filled], ends[filled]
    rows, faulty = _parse(text_N, starts, ends, lines, targets=targets, seen=seen)
    if len(faulty):
        mended = _look_closely(text_N, starts[faulty], ends[faulty], lines[faulty], targets=targets, reject=reject)
        if mended:
            rows = _merged(rows, _reparse(mended, targets=targets, seen=seen))
    return rows, len(lines)


def _framed(content: bytes) -> Bytes:
    """Return text with room before and behind it, its length a multiple of 8."""
    return np.frombuffer(b"".join((b"\0" * _FRONT, content, _BEHIND, b"\0" * (-len(content) % 8))), dtype=np.uint8)


def _parse(text_N: Bytes, starts: Int, ends: Int, lines: Int, *, targets: bool, seen: FindSeen | None) -> tuple[Rows, Int]:
    """Parse rows; returns the good ones and the positions of those that need a closer look."""
    begins, padding = _after_padding(text_N, starts)
    middles, gaps = _gaps(text_N, starts, ends)
    good = (gaps == int(targets)) & (begins < middles)
    text_hash = _text_hashes(text_N, begins, np.where(good, middles, begins))
    if seen is not None:
        old, stable, lengths = seen(text_hash)
    else:
        old, stable, lengths = np.zeros(len(starts), dtype=bool), np.zeros(len(starts), dtype=np.uint64), np.zeros(len(starts), np.int32)
    old &= good
    fresh = np.flatnonzero(good & ~old)
    items, item_offsets, right = _sequences(text_N, begins[fresh], middles[fresh], dense=not targets)
    if not right.all():
        good[fresh[~right]] = False
        fresh, items, item_offsets = fresh[right], *ragged.take(items, item_offsets, np.flatnonzero(right))
    if targets:
        held = np.flatnonzero(good)
        numbers, offsets, right = _numbers(*_compact(text_N, middles[held] + 2, ends[held]), leading_zeros=True)
        good[held[~right]] = False
        numbers, offsets = ragged.distinct(*ragged.take(numbers, offsets, np.flatnonzero(right)))
        fresh, items, item_offsets = _still(fresh, items, item_offsets, good)
    else:
        numbers, offsets = np.zeros(0, dtype=np.int32), np.zeros(int(good.sum()) + 1, dtype=np.int64)
    fields = padding.copy()
    fields[old] += lengths[old]
    fields[fresh] += np.diff(item_offsets)
    place = np.cumsum(good) - 1
    stable[fresh] = _stable_hashes(text_N, begins[fresh], middles[fresh])
    rows = Rows(
        lines=lines[good],
        text_hash=text_hash[good],
        targets=numbers,
        target_offsets=offsets,
        fields=int(fields[good].max(initial=0)),
        user_hash=stable[good],
        fresh=place[fresh],
        items=items,
        item_offsets=item_offsets,
    )
    return rows, np.flatnonzero(~good)


def _still(fresh: Int, items: Any, offsets: Int, good: NDArray[np.bool_]) -> tuple[Int, Any, Int]:
    """Leave out of the fresh rows those that turned out faulty later."""
    kept = good[fresh]
    return (fresh, items, offsets) if kept.all() else (fresh[kept], *ragged.take(items, offsets, np.flatnonzero(kept)))


def _words(text_N: Bytes) -> Hashes:
    """Return the eight bytes from each position on as little-endian numbers, without copying, uint64 [N − 7]."""
    return np.ndarray((len(text_N) - 7,), dtype="<u8", buffer=text_N, strides=(1,))


def _after_padding(text_N: Bytes, starts: Int) -> tuple[Int, Int]:
    """Return where the text after the leading `0,` begins, and how many of them there are."""
    words, begins = _words(text_N), starts.copy()
    for pattern, size in ((b"0,0,0,0,", 8), (b"0,", 2)):
        expected = np.frombuffer(pattern.ljust(8, b"\0"), dtype="<u8")[0]
        mask = np.uint64((1 << 8 * size) - 1)
        active = np.arange(len(begins))
        while len(active):
            active = active[(words[begins[active]] & mask) == expected]
            begins[active] += size
    return begins, (begins - starts) // 2


def _gaps(text_N: Bytes, starts: Int, ends: Int) -> tuple[Int, Int]:
    """Return where each row's first `,,` is (its end without one), and how many there are."""
    commas = text_N == _COMMA
    commas[:-1] &= commas[1:]
    # they are few, so most of the text is passed over eight bytes at a time
    words = np.flatnonzero(commas.view(np.uint64) != 0)
    within = np.flatnonzero(commas.reshape(-1, 8)[words].ravel())
    places = (words[within >> 3] << 3) + (within & 7)
    first, beyond = np.searchsorted(places, starts), np.searchsorted(places, ends)
    middles = ends.copy()
    some = beyond > first
    middles[some] = places[first[some]]
    return middles, beyond - first


def _text_hashes(text_N: Bytes, begins: Int, ends: Int) -> Hashes:
    """Return a 64-bit hash of each text `begins[r] … ends[r] − 1`, uint64 [R]; the sum of its mixed words and its length."""
    lengths = ends - begins
    result = lengths.astype(np.uint64)
    counts = (lengths[lengths > 0] + 7) >> 3
    if len(counts) == 0:
        return result
    firsts = np.cumsum(counts) - counts
    mixed = np.arange(1, int(counts.sum()) + 1, dtype=np.uint64)
    mixed -= np.repeat(firsts.astype(np.uint64), counts)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += _aligned_words(text_N, begins, ends)
    spare = np.empty_like(mixed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(mixed, np.uint64(shift), out=spare)
        mixed ^= spare
        mixed *= np.uint64(factor)
    np.right_shift(mixed, np.uint64(31), out=spare)
    mixed ^= spare
    result[lengths > 0] += np.add.reduceat(mixed, firsts)
    return result


def _aligned_words(text_N: Bytes, begins: Int, ends: Int) -> Hashes:
    """Lay the words of texts one behind the other, the last word of each filled up with zeros.

    Arrow copies pieces of a buffer by their length; to gather words at odd addresses takes numpy five times as long.
    """
    count, lengths = len(begins), ends - begins
    bounds = np.empty(2 * count + len(_ZEROS), dtype=np.int32)  # text, what lies between, text, …, runs of zeros
    bounds[0 : 2 * count : 2], bounds[1 : 2 * count : 2] = begins, ends
    bounds[2 * count :] = len(text_N) - _ZEROS[-1] + _ZEROS
    pieces = np.empty(2 * count, dtype=np.int32)
    pieces[::2], pieces[1::2] = np.arange(0, 2 * count, 2), 2 * count + (-lengths & 7)
    texts = pa.BinaryArray.from_buffers(pa.binary(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(text_N)])
    return np.frombuffer(texts.take(pa.array(pieces)).buffers()[2], dtype="<u8", count=int(((lengths + 7) >> 3).sum()))


def _stable_hashes(text_N: Bytes, begins: Int, ends: Int) -> Hashes:
    """Return `stable_hash` of each text."""
    view = memoryview(text_N.data)
    digests = [blake2b(view[begin:end], digest_size=8).digest() for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def _compact(text_N: Bytes, begins: Int, ends: Int) -> tuple[Bytes, Int, Int]:
    """Lay some texts and the byte after each one behind the other; returns the bytes, begins and ends."""
    lengths = ends - begins + 1
    offsets = ragged.offsets_of(lengths) + _FRONT
    text = np.concatenate((np.zeros(_FRONT, dtype=np.uint8), text_N[ragged.positions(begins, lengths)], np.zeros(8, dtype=np.uint8)))
    return text, offsets[:-1], offsets[1:] - 1


def _sequences(text_N: Bytes, begins: Int, ends: Int, *, dense: bool) -> tuple[NDArray[np.int32], Int, NDArray[np.bool_]]:
    """Read sequences; `dense` where they make up most of the bytes."""
    return _numbers(*((text_N, begins, ends) if dense else _compact(text_N, begins, ends)), leading_zeros=False)


def _numbers(text_N: Bytes, begins: Int, ends: Int, *, leading_zeros: bool) -> tuple[NDArray[np.int32], Int, NDArray[np.bool_]]:
    """Read numbers between commas.

    Args:
        text_N: Bytes, with 24 before the first text and 8 behind the last.
        begins, ends: int64 [R], ascending texts; the byte at an end is no digit.
        leading_zeros: Whether numbers may begin with a 0.

    Returns:
        int32 [T], int64 [R + 1], and which rows hold nothing but numbers of at most 2³¹ − 1; others have any values.
    """
    if len(begins) == 0:
        return np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=bool)
    ceases = np.flatnonzero(text_N < _ZERO)  # commas, newlines, and what should not be there
    first = np.searchsorted(ceases, begins)
    counts = np.searchsorted(ceases, ends) - first + 1
    at = ragged.positions(first, counts)
    offsets = ragged.offsets_of(counts)
    token_ends = ceases[at]
    token_begins = ceases[at - 1] + 1
    token_begins[offsets[:-1]] = begins
    lengths = token_ends - token_begins
    words = _words(text_N)
    values, wrong = _eight_digits(words[token_ends - 8], np.minimum(lengths, 8))
    wrong |= lengths < 1
    if not leading_zeros:
        wrong |= text_N[token_begins] == _ZERO
    long = np.flatnonzero(lengths > 8)
    if len(long):
        high, bad = _eight_digits(words[token_ends[long] - 16], np.minimum(lengths[long] - 8, 8))
        values[long] += high * 100_000_000
        wrong[long] |= bad | (lengths[long] > 10) | (values[long] > _LARGEST)
    others = text_N[token_ends] != _COMMA
    others[offsets[1:] - 1] = False
    wrong |= others
    right = np.ones(len(begins), dtype=bool)
    if wrong.any():
        right[np.searchsorted(offsets, np.flatnonzero(wrong), side="right") - 1] = False
    return values.astype(np.int32), offsets, right


def _eight_digits(words_T: Hashes, lengths_T: Int) -> tuple[Int, NDArray[np.bool_]]:
    """Return the numbers that the last `lengths_T` of eight characters spell, and where they are no digits."""
    unused = np.maximum(lengths_T, 1)
    np.subtract(8, unused, out=unused)
    unused <<= 3
    shifts, digits = unused.view(np.uint64), words_T ^ np.uint64(0x3030303030303030)
    digits >>= shifts
    digits <<= shifts
    spare = digits + np.uint64(0x7676767676767676)
    spare |= digits
    spare &= np.uint64(0x8080808080808080)
    wrong = spare != 0
    np.right_shift(digits, np.uint64(8), out=spare)
    digits *= np.uint64(10)
    digits += spare
    pairs = np.uint64(0x000000FF000000FF)
    np.bitwise_and(digits, pairs, out=spare)
    spare *= np.uint64(0x000F424000000064)
    digits >>= np.uint64(16)
    digits &= pairs
    digits *= np.uint64(0x0000271000000001)
    digits += spare
    digits >>= np.uint64(32)
    return digits.view(np.int64), wrong


def _look_closely(
    text_N: Bytes, starts: Int, ends: Int, lines: Int, *, targets: bool, reject: Callable[[str, int, str], None]
) -> list[tuple[int, bytes]]:
    """Reject malformed rows by kind; return those that are well-formed in a plainer way of writing, with their lines."""
    mended = []
    for start, end, line in zip(starts.tolist(), ends.tolist(), lines.tolist(), strict=True):
        raw = text_N[start:end].tobytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            reject("bytes that are not UTF-8 text", line, raw.decode(errors="replace"))
            continue
        match = _ROW.fullmatch(text) or _LONG_ROW.fullmatch(text)
        kind = _fault(text, match, targets=targets)
        if kind is not None or match is None:
            reject(kind or "malformed", line, text)
            continue
        plain = ",,".join((text.partition(",,")[0], *([",".join(str(int(part)) for part in match.group(2).split(","))] if targets else [])))
        mended.append((line, plain.encode() + b"\n"))
    return mended


def _fault(line: str, match: re.Match[str] | None, *, targets: bool) -> str | None:
    """Return what is wrong with a row, or None."""
    if match is None:
        if _PADDING.fullmatch(line):
            return "a user without history (nothing but padding)"
        if ",,," in line or line.count(",,") > 1 or line.endswith(",") or line.startswith(","):
            return "an empty field, or more than one ',,'"
        return "a field that is not a whole number of 0 or more, or padding (0) after the first item"
    if (match.group(2) is not None) != targets:
        return "no ',,' with targets" if targets else "targets after ',,' in the first task's file"
    if match.re is _LONG_ROW and any(_above(part) for part in line.split(",")):
        return f"a number above {_LARGEST}"
    return None


def _above(digits: str) -> bool:
    digits = digits.lstrip("0")
    return len(digits) > 10 or (len(digits) == 10 and int(digits) > _LARGEST)


def _reparse(mended: list[tuple[int, bytes]], *, targets: bool, seen: FindSeen | None) -> Rows:
    """Parse rows in their plainer way of writing, which cannot fail."""
    text_N = _framed(b"".join(text for _, text in mended))
    ends = np.flatnonzero(text_N == _NEWLINE)
    starts = np.concatenate(([_FRONT], ends[:-1] + 1))
    rows, faulty = _parse(text_N, starts, ends, np.array([line for line, _ in mended]), targets=targets, seen=seen)
    assert len(faulty) == 0
    return rows


def _merged(one: Rows, other: Rows) -> Rows:
    """Put two sets of rows into the order of their lines."""
    order = np.argsort(np.concatenate((one.lines, other.lines)), kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    fresh = place[np.concatenate((one.fresh, other.fresh + len(one.lines)))]
    by_place = np.argsort(fresh)
    targets = ragged.concatenate([(one.targets, one.target_offsets), (other.targets, other.target_offsets)])
    items = ragged.concatenate([(one.items, one.item_offsets), (other.items, other.item_offsets)])
    return Rows(
        np.concatenate((one.lines, other.lines))[order],
        np.concatenate((one.text_hash, other.text_hash))[order],
        *ragged.take(*targets, order),
        max(one.fields, other.fields),
        np.concatenate((one.user_hash, other.user_hash))[order],
        fresh[by_place],
        *ragged.take(*items, by_place),
    )
