"""A kept batch comes back as it was, whatever it holds."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch

from dist_teracon.data.batches import Examples, PackedBatch, Retention
from dist_teracon.train.failure import Failure, load_failure, save_failure

# What a step on the host does not hold: where evaluation's rows are from, and what a device's copy keeps.
NOT_KEPT = {"user_hash", "earlier", "host_row_offsets", "host_task_of_row"}


def test_every_field_of_a_batch_is_kept(tmp_path: Path) -> None:
    batch = replace(
        PackedBatch.from_sequences(
            [[5, 9], [4]], mask_index=[1, 0], times=[[1, 2], [3]], types=[[0, 1], [1]], user_features=[[1, -1], [0, 2]], moments=[8, 9]
        ),
        examples=(Examples("kind", torch.tensor([0]), torch.tensor([1]), 3),),
        retention=(Retention("next", torch.tensor([1]), torch.zeros(1, 4, dtype=torch.float16), 2),),
        epoch=2, step=5, steps=7, num_micro_batches=2, dropout_key=torch.tensor([8, 0]),
    )  # fmt: skip
    failure = Failure(2, "kind", 0, "train", 6, 0, 1, ("class/kind",), "the loss is not a finite number")
    name = save_failure(tmp_path, failure, batch)
    found, loaded = load_failure(tmp_path / name)
    assert found == failure
    for field in fields(PackedBatch):
        if field.name in NOT_KEPT:
            continue
        before, after = getattr(batch, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after), field.name
        elif field.name in ("examples", "retention"):
            assert [(part.task, part.total) for part in before] == [(part.task, part.total) for part in after]
        else:
            assert before is not None, field.name
            assert before == after, field.name
    assert torch.equal(loaded.examples[0].labels, batch.examples[0].labels)
    assert torch.equal(loaded.retention[0].targets, batch.retention[0].targets)
    assert loaded.retention[0].targets.dtype == torch.float16
