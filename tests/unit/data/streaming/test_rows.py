"""Blocks of rows against a plain reading of the format, one row at a time."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_teracon.data import ragged
from dist_teracon.data.raw.files import LineBlock
from dist_teracon.data.streaming.rows import parse_rows
from dist_teracon.data.streaming.seen import SeenSequences
from dist_teracon.hashing import stable_hash

PLAIN = re.compile(r"(?:0,)*([1-9][0-9]*(?:,[1-9][0-9]*)*)(?:,,([0-9]+(?:,[0-9]+)*))?")
LARGEST = 2**31 - 1


def plain(text: str, *, targets: bool) -> tuple[int, list[int], list[int]] | None:
    """Return a row's hash, items and distinct targets, None for a malformed one."""
    match = PLAIN.fullmatch(text)
    if match is None or (match.group(2) is not None) != targets:
        return None
    items = [int(part) for part in match.group(1).split(",")]
    own = list(dict.fromkeys(int(part) for part in match.group(2).split(","))) if targets else []
    return (stable_hash(match.group(1)), items, own) if max(items + own) <= LARGEST else None


number = (
    st.integers(1, 2**33).map(str) | st.integers(1, 99).map(str) | st.sampled_from(["2147483647", "2147483648", "99999999", "100000000"])
)
row = st.builds(
    lambda pads, items, gap, targets: "0," * pads + ",".join(items) + (gap + ",".join(targets) if targets else ""),
    st.integers(0, 11),
    st.lists(number, min_size=1, max_size=12),
    st.sampled_from([",,", ",,", ",,", ",", ",,,"]),
    st.lists(number | st.sampled_from(["0", "007", "0000000000012"]), max_size=4),
)
damaged = st.tuples(row, st.integers(0, 60), st.sampled_from(["", "x", "-", ".", " ", "0", ",", "\x00", "é", '"'])).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(row | damaged | st.just(""), max_size=30), st.booleans(), st.sets(st.integers(0, 29)))
def test_rows_are_those_of_a_plain_reading(texts, targets, seen):
    """Some sequences are known before, whose items then are not read again."""
    texts = [text.replace("\n", "").replace("\r", "") for text in texts]
    known = SeenSequences()
    first = [found for place in seen if place < len(texts) and (found := plain(texts[place].partition(",,")[0], targets=False))]
    if first:
        content = "".join(",".join(map(str, items)) + "\n" for _, items, _ in first).encode()
        rows, _ = parse_rows(LineBlock(content, 1), targets=False, seen=None, reject=lambda *_: None)
        known.add(rows.text_hash, rows.user_hash, (rows.item_offsets[1:] - rows.item_offsets[:-1]).astype("int32"))
    rejected: list[int] = []
    content = "".join(text + "\n" for text in texts).encode()
    rows, count = parse_rows(
        LineBlock(content, 5),
        targets=targets,
        seen=known.find if targets else None,
        reject=lambda _kind, line, _text: rejected.append(line),
    )
    want = {line: plain(text, targets=targets) for line, text in enumerate(texts, 5) if text}
    assert count == len(want)
    assert sorted(rejected) == [line for line, found in want.items() if found is None]
    good = {line: found for line, found in want.items() if found is not None}
    assert rows.lines.tolist() == list(good)
    assert rows.user_hash.tolist() == [key for key, _, _ in good.values()]
    if targets:
        ends = rows.target_offsets.tolist()
        assert [rows.targets[a:b].tolist() for a, b in pairwise(ends)] == [own for _, _, own in good.values()]
    before = {key for key, _, _ in first} if targets else set()
    fresh = [(place, items) for place, (key, items, _) in enumerate(good.values()) if key not in before]
    assert rows.fresh.tolist() == [place for place, _ in fresh]
    ends = rows.item_offsets.tolist()
    assert [rows.items[a:b].tolist() for a, b in pairwise(ends)] == [items for _, items in fresh]
    assert rows.fields == max((texts[line - 5].partition(",,")[0].count(",") + 1 for line in good), default=0)


# evenly spread ones, and such as share their leading bits or end the range
quick = st.integers(0, 2**64 - 1) | st.integers(0, 9) | st.integers(2**64 - 9, 2**64 - 1) | st.integers(2**63, 2**63 + 9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(quick, st.integers(1, 99), max_size=40), max_size=4), st.lists(quick, max_size=40))
def test_known_sequences_are_those_that_were_added(parts, asked):
    known, want = SeenSequences(), {}
    for part in parts:
        keys = np.array(list(part), dtype=np.uint64)
        known.add(keys, keys ^ np.uint64(5), np.array(list(part.values()), dtype=np.int32))
        assert known.find(keys)[0].all()
        want |= part
    asked = [*asked, *want]
    found, stable, lengths = known.find(np.array(asked, dtype=np.uint64))
    assert found.tolist() == [key in want for key in asked]
    assert stable.tolist() == [key ^ 5 if key in want else 0 for key in asked]
    assert all(not length or length in {part.get(key) for part in parts} for key, length in zip(asked, lengths.tolist(), strict=True))


@given(st.lists(st.integers(0, 12) | st.integers(0, 2**64 - 1), max_size=60))
def test_the_quick_order_is_the_stable_one(keys):
    keys = np.array(keys, dtype=np.uint64)
    assert ragged.stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@given(st.lists(st.lists(st.integers(0, 5) | st.sampled_from([2**31 - 1, 2**31 - 2]), max_size=6), max_size=8))
def test_what_came_before_in_a_row_is_left_out(rows):
    values = np.array([value for row in rows for value in row], dtype=np.int32)
    distinct, offsets = ragged.distinct(values, ragged.offsets_of([len(row) for row in rows]))
    assert [distinct[a:b].tolist() for a, b in pairwise(offsets.tolist())] == [list(dict.fromkeys(row)) for row in rows]
