"""What tests of several folders share: one thread, hypothesis without deadlines, small data sets and networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedBatch, Positions
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import SplitRule
from dist_teracon.hashing import stable_hash

torch.set_num_threads(1)
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("house")


def tables_of(*, users: int, items: int, labels: int, seed: int, max_length: int, unseen: float, group: int = 1) -> Tables:
    """Return random tables: `next`, the item task `likes` (1 to 4 labels a user of most), the profile task `age` (half of the users).

    Args:
        users, items: How many.
        labels: Classes of `likes`.
        seed: Of everything.
        max_length: Longest sequence.
        unseen: Share of items that the catalogue does not know.
        group: Users that share one hash.
    """
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, max_length + 1, users)
    values = generator.integers(0, items, int(lengths.sum())).astype(np.int32)
    values[generator.random(values.shape[0]) < unseen] = -1
    hashes = np.array([stable_hash(f"{seed}/{user // group}") for user in range(users)], dtype=np.uint64)
    sequences = SequenceTable([f"u{user}" for user in range(users)], hashes, values, ragged.offsets_of(lengths))
    liking = np.flatnonzero(generator.random(users) < 0.9)
    counts = generator.integers(1, 5, liking.shape[0])
    likes = np.concatenate([generator.choice(labels, size=count, replace=False) for count in counts]).astype(np.int32)
    aged = np.flatnonzero(generator.random(users) < 0.5)
    ages = generator.integers(0, 3, aged.shape[0]).astype(np.int32)
    return Tables(
        name="random",
        items=[f"i{item}" for item in range(items)],
        sequences=sequences,
        labels=[
            LabelTable("likes", "item", [f"l{label}" for label in range(labels)], liking, likes, ragged.offsets_of(counts)),
            LabelTable("age", "profile", ["a", "b", "c"], aged, ages, np.arange(aged.shape[0] + 1)),
        ],
        length_limit=max_length,
    )


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """Give tests a maker of small data sets on disk; arguments as of `tables_of`, and `shards`."""
    made: dict[tuple[object, ...], Dataset] = {}

    def make(
        *, users: int = 60, items: int = 30, labels: int = 8, seed: int = 0, max_length: int = 9, unseen: float = 0.1,
        group: int = 1, shards: int = 8,
    ) -> Dataset:  # fmt: skip
        key = (users, items, labels, seed, max_length, unseen, group, shards)
        if key not in made:
            tables = tables_of(users=users, items=items, labels=labels, seed=seed, max_length=max_length, unseen=unseen, group=group)
            folder: Path = tmp_path_factory.mktemp("dataset") / "set"
            write_dataset(tables, str(folder), SplitRule(train=0.6, validation=0.2, test=0.2), shards=shards)
            made[key] = Dataset(str(folder))
        return made[key]

    return make


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out of runs' pages, for tests of what is written there: drawing takes seconds."""
    monkeypatch.setattr("dist_teracon.report.html.make_figures", lambda _: {})


@pytest.fixture(scope="session")
def pack() -> Callable[..., PackedBatch]:
    """Give tests a maker of packed batches from lists of item indices."""

    def make(rows: Sequence[Sequence[int]], *, tasks: Sequence[int] | int = 0, positions: Positions = "last") -> PackedBatch:
        return PackedBatch.from_sequences(rows, mask_index=tasks, positions=positions)

    return make
