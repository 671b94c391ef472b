"""Times and types travel with the rows of batches: training, evaluation, replay, micro-batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dist_teracon.continual.pseudo_labels import plain_batch
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.data.batches import PackedBatch, PackedRows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.loader import TrainingLoader, evaluation_batches
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.hashing import mix64

# An event of item i has the time 1000 · i and the type 1 + i mod 3: what stands beside an item is seen from the item.
USERS, NAMES = 60, ["a", "b", "c"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 9, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = draw.integers(0, 30, int(offsets[-1])).astype(np.int32)
    columns = EventColumns(1000 * items.astype(np.int64), (1 + items % 3).astype(np.int32))
    everyone, label = np.arange(USERS), (np.arange(USERS) % 2).astype(np.int32)
    tables = Tables(
        name="timed",
        items=[f"i{item}" for item in range(30)],
        sequences=SequenceTable([f"u{u}" for u in everyone], mix64(everyone.astype(np.uint64), key=1), items, offsets, columns),
        labels=[LabelTable("kind", "profile", ["x", "y"], everyone, label, np.arange(USERS + 1))],
        length_limit=6,
        types=NAMES,
    )
    folder = tmp_path_factory.mktemp("timed") / "set"
    write_dataset(tables, str(folder), SplitRule(train=0.6, validation=0.2, test=0.2), shards=3)
    return Dataset(str(folder))


def check(batch):
    # items begin at index 2
    item = batch.values.long() - 2
    assert torch.equal(batch.times, 1000 * item)
    assert torch.equal(batch.types.long(), 1 + item % 3)
    assert (batch.times.dtype, batch.types.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("task", ["next", "kind"])
def test_training_and_evaluation_rows_have_their_events_columns(dataset, task):
    assert dataset.info.history.names == ("times", "types")
    chosen, rows = dataset.info.task(task), 0
    for rank in range(2):
        for batch in TrainingLoader(dataset, [chosen], mask_index=0, batch=8, seed=0, rank=rank, world_size=2).epoch(1):
            check(batch)
            assert batch.sequences.times is batch.times
            rows += batch.rows
    assert rows == chosen.examples[0]
    for batch in evaluation_batches(dataset, chosen, Split.TEST, mask_index=0, batch=7, rank=0, world_size=1, max_users=None, seed=0):
        check(batch)


def test_only_columns_that_are_read_are_packed(dataset):
    own = Dataset(dataset.uri)
    own.read_columns(())
    batch = next(iter(TrainingLoader(own, [own.info.task("next")], mask_index=0, batch=8, seed=0, rank=0, world_size=1).epoch(1)))
    assert (batch.times, batch.types) == (None, None)
    plain = next(iter(TrainingLoader(dataset, [own.info.task("next")], mask_index=0, batch=8, seed=0, rank=0, world_size=1).epoch(1)))
    assert torch.equal(batch.values, plain.values)


def test_a_rank_without_shards_has_columns_without_events(dataset):
    batch = next(iter(TrainingLoader(dataset, [dataset.info.task("kind")], mask_index=0, batch=8, seed=0, rank=4, world_size=5).epoch(1)))
    assert (batch.rows, batch.times.shape, batch.types.dtype) == (0, (0,), torch.int32)
    nothing = PackedRows(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
    assert batch.with_retention([(nothing, 0)], [("next", torch.zeros(0, 4), 2)]).times.shape == (0,)


@pytest.mark.parametrize("shards", [range(3), range(0)])
def test_a_stream_of_which_no_row_is_drawn_has_columns_without_events(dataset, shards):
    pool = [np.arange(4), np.arange(4), np.arange(4)]
    rows, _, drawn = ReplayStream(dataset, pool, None, key="k", seed=0, shards=shards, task="next").draw(0)
    batch = plain_batch(rows, 0)
    assert (drawn, batch.rows, batch.times.shape, batch.types.dtype) == (0, 0, (0,), torch.int32)


def test_replayed_rows_and_micro_batches_keep_them(dataset):
    batch = next(iter(TrainingLoader(dataset, [dataset.info.task("kind")], mask_index=1, batch=8, seed=0, rank=0, world_size=1).epoch(1)))
    shard = dataset.shard(0)
    rows = PackedRows(shard.values, shard.offsets, shard.columns).take(np.array([2, 0]))
    both = batch.with_retention([(rows, 0)], [("next", torch.zeros(2, 4), 2)])
    check(both)
    assert both.rows == batch.rows + 2
    parts = both.split(3)
    for part in parts:
        check(part)
    assert sum(part.values.shape[0] for part in parts) == both.values.shape[0]


def test_rows_of_items_alone_have_none():
    batch = PackedBatch.from_sequences([[5, 9], [4]])
    assert (batch.times, batch.sequences.types) == (None, None)
    timed = PackedBatch.from_sequences([[5, 9], [4]], times=[[1, 2], [3]], types=[[0, 1], [1]])
    assert (timed.times.tolist(), timed.types.tolist()) == ([1, 2, 3], [0, 1, 1])
    with pytest.raises(ValueError, match="times: expected a row for each sequence"):
        PackedBatch.from_sequences([[5, 9], [4]], times=[[1], [2, 3]])


def test_slices_and_choices_of_rows(dataset):
    shard = dataset.shard(1)
    rows = PackedRows(shard.values, shard.offsets, shard.columns)
    for low, high in itertools.pairwise((0, 2, 2, rows.rows)):
        part = rows.between(low, high)
        assert part.columns.times.tolist() == (1000 * (part.values.astype(np.int64) - 2)).tolist()
        assert part.rows == high - low
