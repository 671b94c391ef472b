"""`dist-teracon bench balance`: how evenly a step's work falls on ranks that own whole shards, and what other ways would give.

A simulation of the batch plan on rows whose lengths have the large published set's shape; nothing is trained. A row's work is its number of
positions. Imbalance is the busiest rank's work over the mean, in the mean of steps: where computation dominates, a step takes so many
times the balanced one's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import circumstances, markdown_table
from dist_teracon.data.batch_plan import BatchPlan, share_rows

Int = NDArray[np.int64]

# Lengths as `data/synthetic/ttl.py` draws them: a fifth of the users fill the limit, the others' lengths are uniform.
_LIMIT, _SHORTEST, _FULL_SHARE = 100, 3, 0.2
# Bytes a row takes when it moves: four an item, and some forty for its labels, offsets and keys.
_BYTES_AN_ITEM, _BYTES_A_ROW = 4, 40


def main(arguments: Sequence[str]) -> None:
    """Run the simulation and print its table."""
    options = _parser().parse_args(arguments)
    print(circumstances("dist-teracon", "numpy"))
    lengths, shard_of_row = rows_of_ttl_shape(options.users, options.shards, seed=0)
    by_shard = [lengths[shard_of_row == shard] for shard in range(options.shards)]
    cells = []
    for batch in options.batch:
        steps = [*steps_of_plan(by_shard, batch=batch, steps=options.steps)]
        for ranks in options.ranks:
            found = measure_ways(by_shard, steps, ranks=ranks, node=options.node)
            rows = f"{batch / ranks:g}"
            moved = found["all"]
            cells.append([
                str(ranks), str(batch), rows, *(f"{found[way].imbalance:.2f}" for way in WAYS),
                f"{moved.moved_share:.0%}", f"{moved.bytes_a_rank / 2**10:.1f}",
            ])  # fmt: skip
    print(markdown_table(["ranks", "batch", "rows a rank", *WAYS.values(), "rows moved", "KiB out of the busiest rank"], cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-teracon bench balance", description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=as_count, default=100_000, help="rows (default: 100000)")
    parser.add_argument("--shards", type=as_count, default=64, help="shards (default: 64)")
    parser.add_argument("--ranks", type=as_count, nargs="+", default=[8, 64], help="numbers of ranks (default: 8 64)")
    parser.add_argument("--batch", type=as_count, nargs="+", default=[32, 256, 1024, 4096], help="rows a batch (default: 32 256 1024 4096)")
    parser.add_argument("--node", type=as_count, default=8, help="ranks of a node, which may read one another's shards (default: 8)")
    parser.add_argument("--steps", type=as_count, default=100, help="steps looked at, at most an epoch's (default: 100)")
    return parser


# How rows may fall on ranks, and what the table calls it.
WAYS = {
    "turn": "shards in turn (today)",
    "work": "shards dealt by work",
    "best": "whole shards, anew each step",
    "node": "rows exchanged in a node",
    "all": "rows exchanged among all",
}


@dataclass(frozen=True)
class Balance:
    """What a way gives.

    Attributes:
        imbalance: Work of the busiest rank over the mean.
        moved_share: Share of the rows that another rank computes than the one that owns them.
        bytes_a_rank: Bytes a step that leave the rank that sends most, in the mean of steps.
    """

    imbalance: float
    moved_share: float = 0.0
    bytes_a_rank: float = 0.0


def rows_of_ttl_shape(users: int, shards: int, *, seed: int) -> tuple[Int, Int]:
    """Draw lengths and shards of users: int64 [users] each."""
    draw = np.random.default_rng(seed)
    full = draw.random(users) < _FULL_SHARE
    return np.where(full, _LIMIT, draw.integers(_SHORTEST, _LIMIT - 2, users)), draw.integers(shards, size=users)


def steps_of_plan(lengths: Sequence[Int], *, batch: int, steps: int) -> list[list[Int]]:
    """Return for each of an epoch's first steps the lengths of its rows by shard, as training's plan of the epoch has them."""
    plan = BatchPlan([np.ones(part.shape[0], dtype=np.int8) for part in lengths], batch=batch, seed=0, epoch=1)
    return [[part[plan.rows(step, shard)] for shard, part in enumerate(lengths)] for step in range(min(steps, plan.steps))]


def measure_ways(lengths: Sequence[Int], steps: Sequence[Sequence[Int]], *, ranks: int, node: int) -> dict[str, Balance]:
    """Return what each of `WAYS` gives.

    Args:
        lengths: Of all rows, by shard.
        steps: Of a step's rows, by shard.
        ranks: Among whom.
        node: Ranks of a node.
    """
    turn = np.arange(len(lengths)) % ranks
    dealt = deal([int(part.sum()) for part in lengths], ranks)
    work = np.array([[int(part.sum()) for part in step] for step in steps])
    return {
        "turn": _of_shards(work, lambda _: turn, ranks),
        "work": _of_shards(work, lambda _: dealt, ranks),
        "best": _of_shards(work, lambda step: deal(work[step].tolist(), ranks), ranks),
        "node": _exchanged(steps, turn, ranks, group=min(node, ranks)),
        "all": _exchanged(steps, turn, ranks, group=ranks),
    }


def _of_shards(work_TS: Int, rank_of_shard: Callable[[int], Int], ranks: int) -> Balance:
    loads = np.array([np.bincount(rank_of_shard(step), weights=work, minlength=ranks) for step, work in enumerate(work_TS)])
    return Balance(float(loads.max(axis=1).mean() / loads.mean()))


def deal(work: Sequence[int], ranks: int) -> Int:
    """Deal pieces of work out, the largest first, each to the rank that has least; returns each piece's rank."""
    loads, rank_of = np.zeros(ranks, dtype=np.int64), np.zeros(len(work), dtype=np.int64)
    for piece in np.argsort(-np.asarray(work), kind="stable"):
        rank_of[piece] = int(loads.argmin())
        loads[rank_of[piece]] += work[piece]
    return rank_of


def _exchanged(steps: Sequence[Sequence[Int]], rank_of_shard: Int, ranks: int, *, group: int) -> Balance:
    loads, moved, sent = [], 0, []
    for step in steps:
        lengths = np.concatenate(step)
        owner = np.repeat(rank_of_shard, [part.shape[0] for part in step])
        computed_by = np.empty_like(owner)
        for first in range(0, ranks, group):
            here = (owner >= first) & (owner < first + group)
            computed_by[here] = first + share_rows(lengths[here], owner[here] - first, min(group, ranks - first))
        away = computed_by != owner
        moved += int(away.sum())
        bytes_of_row = _BYTES_AN_ITEM * lengths[away] + _BYTES_A_ROW
        sent.append(np.bincount(owner[away], weights=bytes_of_row, minlength=ranks).max())
        loads.append(np.bincount(computed_by, weights=lengths, minlength=ranks))
    table = np.array(loads)
    rows = sum(part.shape[0] for step in steps for part in step)
    return Balance(float(table.max(axis=1).mean() / table.mean()), moved / max(1, rows), float(np.mean(sent)))
