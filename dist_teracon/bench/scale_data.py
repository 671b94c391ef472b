"""Data sets of the size and shape of the published large one, for benchmarks: users × events of random items, popular ones more often."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import SplitRule
from dist_teracon.hashing import mix64

TTL_USERS, TTL_ITEMS, TTL_LENGTH = 1_470_000, 645_974, 100


def random_tables(*, users: int, items: int, length: int, seed: int = 0, event_columns: bool = False) -> Tables:
    """Return tables with a next-item task, an item task (1 to 5 of 17,880 labels a user) and a profile task (8 labels).

    With `event_columns` events have times, some seconds to weeks apart, and one of four types.
    """
    generator = np.random.default_rng(seed)
    # the logarithm of the rank is uniform, which is Zipf's law with exponent 1
    values = np.exp(generator.random(users * length, dtype=np.float32) * np.log(np.float32(items))).astype(np.int32)
    np.minimum(values, items - 1, out=values)
    everyone = np.arange(users)
    counts = generator.integers(1, 6, users)
    labels = min(17_880, items)
    columns = _random_columns(users, length) if event_columns else NO_COLUMNS
    return Tables(
        name=f"random-{users}",
        items=[str(item) for item in range(items)],
        sequences=SequenceTable(
            [str(user) for user in range(users)], mix64(everyone.astype(np.uint64), key=seed), values, np.arange(users + 1) * length,
            columns,
        ),
        labels=[
            LabelTable(
                "likes", "item", [str(label) for label in range(labels)], everyone,
                generator.integers(0, labels, int(counts.sum())).astype(np.int32), np.concatenate([[0], np.cumsum(counts)]),
            ),
            LabelTable(
                "profile", "profile", list("abcdefgh"), everyone,
                generator.integers(0, 8, users).astype(np.int32), np.arange(users + 1),
            ),
        ],
        length_limit=length,
        types=("view", "cart", "buy", "share") if event_columns else (),
    )  # fmt: skip


def _random_columns(users: int, length: int) -> EventColumns:
    generator = np.random.default_rng(1)
    gaps = np.exp(generator.normal(7, 2.5, (users, length))).astype(np.int64)
    begins = generator.integers(1_600_000_000, 1_700_000_000, (users, 1))
    types = generator.choice(4, (users, length), p=(0.7, 0.15, 0.1, 0.05)) + 1
    return EventColumns((begins + gaps.cumsum(axis=1)).reshape(-1), types.astype(np.int32).reshape(-1))


def random_dataset(folder: Path, *, users: int, items: int = TTL_ITEMS, length: int = TTL_LENGTH, event_columns: bool = False) -> str:
    """Write such a data set, or find that it is there; returns its URI."""
    if not (folder / "dataset.json").exists():
        tables = random_tables(users=users, items=items, length=length, event_columns=event_columns)
        write_dataset(tables, str(folder), SplitRule())
    return str(folder)
