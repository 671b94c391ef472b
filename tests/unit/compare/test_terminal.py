"""The tables of a comparison on a terminal."""

from __future__ import annotations

import pytest

from dist_teracon.compare.terminal import fitted
from dist_teracon.text import cells

NUMBERS = ("0.3990 ± 0.0030 [0.3860, 0.4130]", "0.1140 ± 0.0040 [0.1090, 0.1190]", "–")
PAGE = f"""# test

Scores on the test split, seeds 0, 1, 2; 2 variants. Mean ± standard deviation over seeds, [95 % bootstrap interval over users and seeds]

| variant | next (mrr@5) | 쇼핑 대분류 (accuracy) | age |
|---|---|---|---|
| default | {NUMBERS[0]} | {NUMBERS[1]} | {NUMBERS[2]} |
| 한국어 | {NUMBERS[1]} | {NUMBERS[0]} | {NUMBERS[2]} |
"""


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_too_long_and_no_number_is_cut_or_missing(width: int) -> None:
    lines = fitted(PAGE, width)
    assert max(map(cells, lines)) <= width
    words = " ".join(lines).split()
    for number in ("0.3990", "0.0030", "[0.3860,", "0.4130]"):
        assert words.count(number) == 2


def test_a_table_that_fits_stands_in_columns() -> None:
    lines = fitted(PAGE, 120)
    head, first, second = lines[-3:]
    assert head.split() == ["variant", "next", "(mrr@5)", "쇼핑", "대분류", "(accuracy)", "age"]
    assert cells(head) == cells(first) == cells(second)
    assert cells(first[: first.index(NUMBERS[0])]) == cells(second[: second.index(NUMBERS[1])])


def test_one_that_does_not_has_a_variant_a_paragraph() -> None:
    lines = fitted(PAGE, 70)
    assert lines[-8:-4] == [
        "default",
        f"  next (mrr@5)            {NUMBERS[0]}",
        f"  쇼핑 대분류 (accuracy)  {NUMBERS[1]}",
        "  age                     –",
    ]
