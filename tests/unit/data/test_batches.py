"""Packed batches: micro-batches add up to the batch, replayed rows stand behind its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_teracon.data.batches import Examples, PackedRows, concatenate, ragged_positions, take_rows
from dist_teracon.models.heads import cross_entropy_sum, squared_error_sum
from dist_teracon.models.masks import TaskMasks
from dist_teracon.models.network import Network
from dist_teracon.models.nextitnet import NextItNet, NextItNetSettings

C, LABELS, SCALES = 4, 5, [50.0, 3.0]
row_lists = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=7)


def ragged(rows):
    return PackedRows(
        np.array([item for row in rows for item in row], dtype=np.int32), np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    )


def unpack(values, offsets):
    return [values[a:b].tolist() for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False)]


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    network = Network(
        NextItNet(NextItNetSettings(dilations=(1, 2)), num_items=10, channels=C, generator=generator), TaskMasks(layers=4, channels=C)
    )
    for name in ("past", "now"):
        network.add_task(name, LABELS, generator=generator)
    return network.double()


def batch_of(pack, rows, positions):
    """A batch with one to two examples a row; for `all` every position is one."""
    packed = pack(rows, tasks=[1] * len(rows), positions=positions)
    if positions == "all":
        index = torch.arange(packed.values.shape[0])
    else:
        index = torch.repeat_interleave(torch.arange(packed.rows), 1 + torch.arange(packed.rows) % 2)
    return replace(packed, examples=(Examples("now", index, (index * 3 + torch.arange(len(index))) % LABELS, len(index)),))


def loss_sums(network, batch):
    masks = network.mask_table(SCALES)
    hidden = network.encode(batch, masks)
    sums = [cross_entropy_sum(network.head(part.task), hidden[part.index], part.labels) for part in batch.examples]
    sums += [squared_error_sum(network.head(part.task), hidden[part.index], part.targets, None) for part in batch.retention]
    return torch.stack(sums).detach()


@pytest.mark.parametrize("positions", ["all", "last"])
@given(own=row_lists, replayed=row_lists, parts=st.integers(1, 5))
def test_micro_batches_add_up_to_the_batch(network, pack, positions, own, replayed, parts):
    targets = torch.arange(len(replayed) * LABELS, dtype=torch.float64).view(-1, LABELS)
    batch = batch_of(pack, own, positions).with_retention([(ragged(replayed), 0)], [("past", targets, 99)])
    micro = batch.split(parts)
    assert len(micro) == parts
    assert sorted(row for part in micro for row in unpack(part.values, part.row_offsets)) == sorted([*own, *replayed])
    assert {part.retention[0].total for part in micro} == {99}
    assert {part.examples[0].total for part in micro} == {batch.examples[0].total}
    torch.testing.assert_close(sum(loss_sums(network, part) for part in micro), loss_sums(network, batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positions", ["all", "last"])
@given(own=row_lists, first=row_lists, second=row_lists)
def test_replayed_rows_are_read_under_their_task_at_their_last_position(network, pack, positions, own, first, second):
    batch = batch_of(pack, own, positions)
    targets = [torch.zeros(len(rows), LABELS, dtype=torch.float64) for rows in (first, second)]
    joined = batch.with_retention([(ragged(first), 0), (ragged(second), 1)], [("past", targets[0], 10), ("now", targets[1], 20)])
    assert unpack(joined.values, joined.row_offsets) == [*own, *first, *second]
    assert joined.task_of_row.tolist() == [1] * len(own) + [0] * len(first) + [1] * len(second)
    assert joined.task_of_row.dtype == torch.int32
    masks = network.mask_table(SCALES)
    hidden = network.encode(joined, masks)
    for part, rows, mask_index in zip(joined.retention, (first, second), (0, 1), strict=True):
        alone = pack(rows, tasks=[mask_index] * len(rows))
        wanted = network.encode(alone, masks)
        torch.testing.assert_close(hidden[part.index], wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss_sums(network, joined)[0], loss_sums(network, batch)[0], rtol=1e-12, atol=1e-12)


@given(rows=row_lists, data=st.data())
def test_taking_rows(rows, data):
    table = ragged(rows)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    for without_last in (False, True):
        taken = take_rows(table.values, table.offsets, np.array(wanted, dtype=np.int64), without_last=without_last)
        assert unpack(taken.values, taken.offsets) == [rows[row][:-1] if without_last else rows[row] for row in wanted]
        assert taken.rows == len(wanted)
        assert (taken.values.dtype, taken.offsets.dtype) == (np.int32, np.int64)


@given(parts=st.lists(row_lists, max_size=4))
def test_laying_rows_behind_one_another(parts):
    whole = concatenate([ragged(part) for part in parts])
    assert unpack(whole.values, whole.offsets) == [row for part in parts for row in part]
    assert (whole.values.dtype, whole.offsets.dtype) == (np.int32, np.int64)


def test_ragged_positions():
    found = ragged_positions(np.array([10, 3, 7], dtype=np.int64), np.array([2, 0, 3], dtype=np.int64))
    assert found.tolist() == [10, 11, 7, 8, 9]
