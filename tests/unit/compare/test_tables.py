"""Tables of a comparison as Markdown."""

from __future__ import annotations

import pytest

from dist_teracon.compare.statistics import Estimate
from dist_teracon.compare.table import difference_cell, made, percent_cell, signed


def test_a_bar_in_a_name_does_not_end_its_cell() -> None:
    table = made("scores:", ["", "age|group"], [["a|b", "0.5"]])
    assert table.markdown().splitlines() == ["scores:", "", "|  | age\\|group |", "|---|---|", "| a\\|b | 0.5 |"]


@pytest.mark.parametrize(("value", "text"), [(-0.04, "+0.0"), (0.04, "+0.0"), (-0.06, "-0.1"), (2.25, "+2.2"), (-12.0, "-12.0")])
def test_what_rounds_to_nothing_has_one_sign(value: float, text: str) -> None:
    assert signed(value, 1) == text


def test_cells_of_differences_have_no_negative_nothing() -> None:
    nothing = Estimate(-0.00001, -0.00002, 0.03)
    assert difference_cell(nothing) == "+0.0000 [+0.0000, +0.0300]"
    assert percent_cell(nothing) == "+0.0 [+0.0, +0.0]"
