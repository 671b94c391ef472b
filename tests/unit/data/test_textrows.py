"""Blocks of rows against a plain reading of the format, one row at a time."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dist_teracon.data.inputs import LineBlock
from dist_teracon.data.known import KnownTexts
from dist_teracon.data.tables import stable_hash
from dist_teracon.data.textrows import parse_rows

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
    known = KnownTexts()
    first = [found for place in seen if place < len(texts) and (found := plain(texts[place].partition(",,")[0], targets=False))]
    if first:
        content = "".join(",".join(map(str, items)) + "\n" for _, items, _ in first).encode()
        rows, _ = parse_rows(LineBlock(content, 1), targets=False, known=None, reject=lambda *_: None)
        known.add(rows.text_hash, rows.user_hash, (rows.item_offsets[1:] - rows.item_offsets[:-1]).astype("int32"))
    rejected: list[int] = []
    content = "".join(text + "\n" for text in texts).encode()
    rows, count = parse_rows(
        LineBlock(content, 5),
        targets=targets,
        known=known.find if targets else None,
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
