"""The companions' benchmark runs, and what it compares computes the same; its times are not asserted."""

from __future__ import annotations

import torch

from dist_teracon.bench import companions


def test_the_table_has_every_way(capsys):
    companions.main(["--shapes", "6x4x9", "--repeats", "1"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[3].strip() for row in rows] == [
        "F.cross_entropy", "F.linear_cross_entropy", "ours", "F.mse_loss", "ours, logits stored", "ours, representations stored",
        "argsort", "topk (5), no rank beyond", "ours",
    ]  # fmt: skip
    assert all(float(row[4]) >= 0 and float(row[6]) >= 0 for row in rows)


def test_what_is_compared_computes_the_same():
    ways = companions._problems(6, 4, 9)
    for name in ("cross-entropy, forward and backward", "squared error to a teacher, forward and backward"):
        first, *others = (run() for run in ways[name].values())
        for other in others[: 2 if name.startswith("cross") else 1]:
            for got, right in zip(other, first, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
    ranks = ways["rank of the target"]
    ((greater, _),) = ranks["ours"]()
    assert torch.equal(ranks["argsort"]()[:, 1], greater)
