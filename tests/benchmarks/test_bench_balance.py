"""`dist-teracon bench balance`: what the ways to share rows give, on cases that can be counted by hand, and the command."""

from __future__ import annotations

import numpy as np
import pytest

from dist_teracon.bench import balance
from dist_teracon.bench.balance import deal, measure_ways, rows_of_ttl_shape, steps_of_plan


def test_pieces_are_dealt_out_largest_first() -> None:
    assert deal([5, 4, 3, 3, 1], 2).tolist() == [0, 1, 1, 0, 1]


def test_each_way_on_two_shards_of_a_step() -> None:
    """Shards of 30 and 10 on two ranks: 30 of a mean of 20; rows of 10 can be even."""
    lengths = [np.array([10, 10, 10]), np.array([10])]
    found = measure_ways(lengths, [lengths], ranks=2, node=1)
    assert found["turn"].imbalance == found["work"].imbalance == found["best"].imbalance == found["node"].imbalance == 1.5
    assert (found["all"].imbalance, found["all"].moved_share, found["all"].bytes_a_rank) == (1.0, 0.25, 4 * 10 + 40)


def test_lengths_and_steps_are_those_of_the_large_set_and_of_trainings_plan() -> None:
    lengths, shards = rows_of_ttl_shape(20_000, 16, seed=3)
    assert (lengths.min(), lengths.max()) == (3, 100)
    assert lengths.mean() == pytest.approx(60, abs=1)
    by_shard = [lengths[shards == shard] for shard in range(16)]
    steps = steps_of_plan(by_shard, batch=64, steps=10**6)
    assert sum(part.shape[0] for step in steps for part in step) == 20_000
    assert {sum(part.shape[0] for part in step) for step in steps} <= set(range(60, 69))


def test_the_command_prints_a_row_a_batch_and_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    balance.main(["--users", "4000", "--shards", "16", "--ranks", "2", "4", "--batch", "64", "--steps", "5", "--node", "2"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 2 |", "| 4 |"))]
    assert [row[:3] for row in rows] == [["2", "64", "32"], ["4", "64", "16"]]
    for row in rows:
        turn, _, best, node, everyone = map(float, row[3:8])
        assert turn >= node >= everyone >= 1 and best >= everyone
