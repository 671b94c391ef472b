"""Widths and line breaks on a terminal."""

from __future__ import annotations

import unicodedata

import pytest

from dist_teracon.text import WIDTH, cells, cropped, folded, padded, seconds_text, table_lines, terminal_width, wrapped


@pytest.mark.parametrize(
    ("text", "width"),
    [("next", 4), ("쇼핑 대분류", 11), (unicodedata.normalize("NFD", "쇼핑"), 4), ("日本", 4), ("e\u0301", 1), ("−4.0\u00a0%", 6), ("", 0)],
)
def test_width_in_cells(text: str, width: int) -> None:
    assert cells(text) == width
    assert padded(text, 12) == text + " " * (12 - width)
    assert padded(text, 12, right=True) == " " * (12 - width) + text


def test_cropping_counts_cells_and_leaves_what_fits() -> None:
    assert cropped("쇼핑 대분류", 11) == "쇼핑 대분류"
    assert cropped("쇼핑 대분류", 8) == "쇼핑 대…"
    assert cropped("쇼핑 대분류", 7) == "쇼핑…"
    assert cropped("abc", 0) == ""


def test_lines_break_at_blanks_and_never_within_a_number_and_its_unit() -> None:
    text = "mean BWT −0.4\u00a0%, 쇼핑 −9.2\u00a0±\u00a04.1\u00a0%"
    for width in range(16, cells(text) + 1):
        lines = wrapped(text, width, indent="  ")
        assert max(map(cells, lines)) <= width
        assert " ".join(line.strip(" ") for line in lines) == text
        assert "−9.2\u00a0±\u00a04.1\u00a0%" in "\n".join(lines)
    assert wrapped("  learned 0.1", 9, indent="    ") == ["  learned", "    0.1"]


def test_durations_do_not_break() -> None:
    assert [seconds_text(value) for value in (0.84, 42, 200, 7500, None)] == [
        "0.8\u00a0s",
        "42\u00a0s",
        "3\u00a0min\u00a020\u00a0s",
        "2\u00a0h\u00a05\u00a0min",
        "–",
    ]


def test_the_variable_columns_decides_a_width_and_eighty_is_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (tmp_path_factory.mktemp("out") / "file").open("w") as file:
        monkeypatch.setenv("COLUMNS", "123")
        assert terminal_width(file) == 123
        monkeypatch.setenv("COLUMNS", "wide")
        assert terminal_width(file) == 80


@pytest.mark.parametrize("width", [6, 9, 20])
def test_a_word_that_is_too_long_is_cut_behind_a_hyphen_or_within(width: int) -> None:
    text = "weekly-top-categories 쇼핑대분류와소분류와브랜드 end"
    lines = folded(text, width, indent="  ")
    assert max(map(cells, lines)) <= width
    assert "".join(line.strip() for line in lines).replace(" ", "") == text.replace(" ", "")
    assert all(line.startswith("  ") for line in lines[1:])
    if width == 9:
        assert lines[:2] == ["weekly-", "  top-"]
    assert folded("short") == ["short"]
    assert folded("") == [""]


def test_a_column_of_names_folds_and_numbers_stay_whole() -> None:
    lines = table_lines(("task", "labels"), [("n" * 100, "1,234,567"), ("쇼핑", "8")], names=("task",))
    assert max(map(cells, lines)) <= WIDTH
    assert any(line.endswith("1,234,567") for line in lines)
    assert "".join(lines).count("n") == 100
