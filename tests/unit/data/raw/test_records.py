"""Records of quoted text: what a record is, where it begins, and that blocks do not matter."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from dist_teracon.data.raw.files import LineBlocks
from dist_teracon.data.raw.records import MOST_LINES, record_blocks


def cut(content: bytes, tmp_path, *, size: int = 1 << 20) -> tuple[list[tuple[int, str]], list[int]]:
    """Return (line, text) of each record, and the lines that were rejected."""
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    rejected: list[int] = []
    found = []
    for block in record_blocks(
        LineBlocks(str(path), size=size), quote='"', delimiter=",", reject=lambda _kind, line, _text: rejected.append(line)
    ):
        found += [(line, text.decode()) for line, text in zip(block.lines.tolist(), block.texts(), strict=True)]
    return found, rejected


def test_a_quoted_cell_may_hold_line_ends_commas_and_doubled_quotes(tmp_path):
    found, rejected = cut(b'a,b\n1,"x\ny, ""z""\n"\n\n2,w\n', tmp_path)
    assert found == [(1, "a,b"), (2, '1,"x\ny, ""z""\n"'), (6, "2,w")]
    assert rejected == []


def test_a_quote_within_a_cell_is_an_ordinary_character(tmp_path):
    found, rejected = cut(b'a,5" disk\nb,6" disk "x"\n', tmp_path)
    assert found == [(1, 'a,5" disk'), (2, 'b,6" disk "x"')]
    assert rejected == []


@pytest.mark.parametrize(
    ("content", "kept", "rejected"),
    [
        (b'"u1,i1\nu2,i2\nu3,i3\n', [2, 3], [1]),  # never closed
        (b'u0,"i0"\n"u1,i1\n"u2",i2\nu3,i3\n', [1, 3, 4], [2]),  # the next cell's quote does not close it
        (b'u0,"a"b\nu1,c\n', [2], [1]),  # text behind a closing quote
        (b'u0,"a" \nu1,c\n', [1, 2], []),  # blanks there are none
        (b'u0,a"\nu1,"', [1], [2]),
    ],
)
def test_a_quote_that_is_not_closed_costs_its_own_line_alone(content, kept, rejected, tmp_path):
    for size in (1, 7, 1 << 20):
        found, lost = cut(content, tmp_path, size=size)
        assert ([line for line, _ in found], lost) == (kept, rejected)


def test_a_cell_of_too_many_lines_is_a_quote_that_is_not_closed(tmp_path):
    longest = b'u1,"' + b"x\n" * MOST_LINES + b'"\nu2,b\n'
    assert [line for line, _ in cut(longest, tmp_path)[0]] == [1, MOST_LINES + 2]
    for size in (512, 1 << 20):
        found, rejected = cut(b'u1,"' + b"x\n" * (MOST_LINES + 1) + b'"\nu2,b\n', tmp_path, size=size)
        assert rejected == [1, MOST_LINES + 2]
        assert found[-1] == (MOST_LINES + 3, "u2,b")


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_any_size_give_the_records_of_the_csv_module(seed, tmp_path):
    draw = np.random.default_rng(seed)
    cells = ["", "a", "b c", 'say "hi"', "x,y", "two\nlines", "\n", '"', "ü", "1\n2\n3"]
    rows = [[cells[int(number)] for number in draw.integers(len(cells), size=3)] for _ in range(60)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode()
    for size in (1, 3, 64, 1 << 20):
        found, rejected = cut(content, tmp_path, size=size)
        assert rejected == []
        assert [next(csv.reader([record])) for _, record in found] == [row for row in rows if row != [""]]
        assert all(content.split(b"\n")[line - 1].decode() == record.split("\n")[0] for line, record in found)
