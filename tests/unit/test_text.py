"""Widths and line breaks on a terminal."""

from __future__ import annotations

import unicodedata

import pytest

from dist_teracon.text import cells, cropped, padded, seconds_text, terminal_width, wrapped


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
