"""`split.by: last`: the first task learns of every user all items but the last two, which are validated and tested on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.loader import TrainingLoader, evaluation_batches
from dist_teracon.data.open import open_dataset
from dist_teracon.data.prepare.first_task import last_three
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.data.shard_source import ShardRows
from dist_teracon.errors import DataError
from dist_teracon.hashing import mix64
from dist_teracon.models.item_init import cooccurrence_vectors
from dist_teracon.runtime import Runtime
from dist_teracon.train.run_checks import untrained_places

USERS, ITEMS = 80, 30
RULE = SplitRule(by="last", train=0.6, validation=0.2, test=0.2)


def tables(*, future: int = 0) -> Tables:
    """Users of 4 to 9 items; with `future` the last two of each are others."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 10, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = draw.integers(0, ITEMS, int(offsets[-1])).astype(np.int32)
    for last in (1, 2):
        items[offsets[1:] - last] = (items[offsets[1:] - last] + future) % ITEMS
    everyone = np.arange(USERS)
    return Tables(
        name="last",
        items=[f"i{item}" for item in range(ITEMS)],
        sequences=SequenceTable(
            [f"u{u}" for u in everyone], mix64(everyone.astype(np.uint64), key=1), items, offsets, EventColumns(np.arange(len(items)))
        ),
        labels=[LabelTable("kind", "profile", ["x", "y"], everyone, (everyone % 2).astype(np.int32), np.arange(USERS + 1))],
        length_limit=9,
    )


def made(folder, *, future=0):
    write_dataset(tables(future=future), str(folder), RULE, shards=3)
    return Dataset(str(folder))


def test_places_that_the_test_alone_reads_are_named(dataset):
    """The longest rows of 9 items are trained on 7, so on 6 inputs, and tested on 8."""
    task, alone = dataset.info.task("next"), Runtime(0, 1, torch.device("cpu"))
    (packed,) = TrainingLoader(dataset, [task], mask_index=0, batch=USERS, seed=0, rank=0, world_size=1).epoch(1)
    assert int(packed.row_offsets.diff().max()) == 6
    lengths = np.concatenate([np.diff(dataset.shard(shard).offsets) for shard in range(3)])

    def said(**backbone):
        return untrained_places(dataset, task, ModelConfig(backbone=backbone), alone)

    line = said(name="sasrec", max_positions=8)
    assert f"at most 6 places of a row, and {(lengths > 7).sum()} users' rows are longer in the test" in line
    assert line.endswith("with max_positions: 6 they share the last trained one")
    assert said(name="sasrec", max_positions=6) == said(name="sasrec", positions="none") == said(name="nextitnet") == ""
    assert untrained_places(dataset, dataset.info.task("kind"), ModelConfig(backbone={"name": "sasrec"}), alone) == ""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return made(tmp_path_factory.mktemp("last") / "set")


def sequences_of(dataset):
    found = []
    for index in range(dataset.info.shards):
        shard = dataset.shard(index)
        found += [tuple(shard.values[a:b].tolist()) for a, b in itertools.pairwise(shard.offsets)]
    return found


def rows_of(batch):
    return [tuple(batch.values[a:b].tolist()) for a, b in itertools.pairwise(batch.row_offsets.tolist())]


def test_each_users_last_items_are_the_labels_in_their_order():
    flat = [[7], [7, 8], [1, 2, 3], [4, 5, 6, 7], [9, 8, 7, 6, 5, 4], [1, 2, 3, -1], [3, 3, 3, 3]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in flat])])
    rows = ShardRows(
        pa.array([str(n) for n in range(len(flat))]), np.arange(len(flat), dtype=np.uint64), np.concatenate(flat).astype(np.int32), offsets,
        np.array([True] * 6 + [False]), [],
    )  # fmt: skip
    labels, split = last_three(rows, 100)
    found = {}
    for place, row in enumerate(labels.rows.tolist()):
        here = slice(labels.offsets[place], labels.offsets[place + 1])
        found[row] = dict(zip((Split(value).name for value in split[here].tolist()), labels.values[here].tolist(), strict=True))
    assert found == {
        1: {"TEST": 8},
        2: {"VALIDATION": 2, "TEST": 3},
        3: {"TRAIN": 5, "VALIDATION": 6, "TEST": 7},
        4: {"TRAIN": 6, "VALIDATION": 5, "TEST": 4},
        5: {"TRAIN": 2, "VALIDATION": 3},  # the unseen item is no target
    }
    # cut to three items, nobody has two of them before the last two
    assert (last_three(rows, 3)[1] != Split.TRAIN).all()


def test_training_reads_all_but_the_last_two_and_scores_read_what_came_before(dataset):
    task, whole = dataset.info.task("next"), sorted(sequences_of(dataset))
    assert (task.users, task.examples) == (USERS, (USERS, USERS, USERS))
    assert dataset.info.format_version == 2
    trained = []
    for rank in range(2):
        for batch in TrainingLoader(dataset, [task], mask_index=0, batch=16, seed=0, rank=rank, world_size=2).epoch(1):
            labels = batch.examples[0].labels.tolist()
            ends = batch.row_offsets.tolist()
            for row, (low, high) in zip(rows_of(batch), itertools.pairwise(ends), strict=True):
                trained.append((*row, labels[high - 1] + 2))
                assert [item - 2 for item in row[1:]] == labels[low : high - 1]
            assert batch.times.shape == batch.values.shape
    assert sorted(trained) == sorted(sequence[:-2] for sequence in whole)
    for split, behind in ((Split.VALIDATION, 1), (Split.TEST, 0)):
        scored = []
        for batch in evaluation_batches(dataset, task, split, mask_index=0, batch=7, rank=0, world_size=1, max_users=None, seed=0):
            scored += [(*row, label + 2) for row, label in zip(rows_of(batch), batch.examples[0].labels.tolist(), strict=True)]
        assert sorted(scored) == sorted(sequence[: len(sequence) - behind] for sequence in whole)


def test_nothing_that_is_trained_or_counted_depends_on_the_last_two(dataset, tmp_path):
    other, task = made(tmp_path / "set", future=7), dataset.info.task("next")
    assert sequences_of(other) != sequences_of(dataset)
    one, two = (
        list(TrainingLoader(data, [task], mask_index=0, batch=16, seed=0, rank=0, world_size=1).epoch(1)) for data in (dataset, other)
    )
    for mine, theirs in zip(one, two, strict=True):
        assert torch.equal(mine.values, theirs.values)
        assert torch.equal(mine.examples[0].labels, theirs.examples[0].labels)
        assert mine.examples[0].total == theirs.examples[0].total
    assert np.array_equal(dataset.train_counts("next"), other.train_counts("next"))
    assert dataset.train_counts("next").sum() == sum(len(sequence) - 3 for sequence in sequences_of(dataset))
    for first in ("next", "kind"):
        vectors = [cooccurrence_vectors(data, data.info.task(first), 4, seed=0) for data in (dataset, other)]
        assert torch.equal(*vectors)


def test_short_histories_have_no_part_in_item_vectors(tmp_path):
    made = tables()
    rows = made.sequences
    kept = np.minimum(np.diff(rows.offsets), 1 + np.arange(USERS) % 4)  # one to four items
    positions = np.concatenate([np.arange(begin, begin + count) for begin, count in zip(rows.offsets, kept, strict=False)])
    short = replace(rows, values=rows.values[positions], offsets=np.concatenate([[0], np.cumsum(kept)]), columns=EventColumns())
    write_dataset(replace(made, sequences=short), str(tmp_path / "set"), RULE, shards=3)
    dataset = Dataset(str(tmp_path / "set"))
    vectors = cooccurrence_vectors(dataset, dataset.info.task("kind"), 4, seed=0)
    trained = dataset.labels("kind", 0).of(Split.TRAIN).users
    shard = dataset.shard(0)
    assert (np.diff(shard.offsets)[trained] < 2).any()
    assert vectors.abs().sum() > 0


def test_other_tasks_are_split_by_users(dataset):
    task = dataset.info.task("kind")
    assert (task.users, task.examples) == (USERS, (48, 16, 16))


def test_it_does_not_grow(dataset, tmp_path):
    added = tables()
    added = replace(added, labels=[replace(added.labels[0], name="other")])
    write_dataset(added, str(tmp_path / "more"), RULE, shards=3)
    with pytest.raises(DataError, match="split by 'last' cannot grow"):
        append(dataset.uri, str(tmp_path / "more"), str(tmp_path / "new"))


def test_by_name(cache):
    info = open_dataset("synthetic:six-tasks-v1?users=200&split=last").info
    assert info.split.by == "last"
    assert info.task("next").examples == (200, 200, 200)
