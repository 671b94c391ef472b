"""The attention's benchmark runs, and what it compares computes the same; its times are not asserted."""

from __future__ import annotations

import torch

from dist_teracon.bench import attention


def test_the_table_has_every_way(capsys):
    attention.main(["--rows", "20", "--limits", "70", "--channels", "8", "--repeats", "1"])
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[2:4] for row in rows] == [[bias, way] for bias in ("none", "learned") for way in ("to the longest", "in groups")]


def test_what_is_compared_computes_the_same():
    for bias in ("none", "learned"):
        whole, grouped = (run() for run in attention._ways(attention._sasrec(8, 70, bias), attention._drawn(40, 70)).values())
        for got, right in zip(grouped, whole, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
