"""A new head's own steps before its stage: what they change, which of them are kept, and where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ALONE, events, settings, train_here, weights
from torch import Tensor

from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.open import open_dataset
from dist_teracon.models.heads import Head
from dist_teracon.train.linear_probe import fit_linear_probe

pytestmark = pytest.mark.usefixtures("alone")


def _run(small: str, folder: Path, **second: Any) -> Path:
    stage = {"learning_rate": 0.01, "batch": 32, **second}
    return train_here(settings(small, tasks=("next", "likes"), second=stage), folder)


def test_the_new_head_alone_moves_and_its_start_is_kept(small: str, tmp_path: Path) -> None:
    drawn, started = (_run(small, tmp_path / str(steps), epochs=0, probe_steps=steps) for steps in (0, 200))
    before, after = weights(drawn, "02-likes"), weights(started, "02-likes")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"heads.likes.weight", "heads.likes.bias"}
    first, second = (events(run, "epoch")[-1] for run in (drawn, started))
    assert (first["best"], second["best"]) == (False, True)
    assert second["validation"] > 2 * first["validation"]


def test_a_start_that_no_epoch_betters_is_what_the_stage_hands_on(small: str, tmp_path: Path) -> None:
    untrained = _run(small, tmp_path / "untrained", epochs=0, probe_steps=200)
    spoilt = _run(small, tmp_path / "spoilt", epochs=3, patience=2, probe_steps=200, learning_rate=5.0)
    assert [event["best"] for event in events(spoilt, "epoch") if event["stage"] == 2] == [True, False, False]
    expected, found = weights(untrained, "02-likes"), weights(spoilt, "02-likes")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stage_goes_on_from_its_start(small: str, tmp_path: Path) -> None:
    """With hardly any learning rate an epoch leaves the head where it started."""
    untrained = _run(small, tmp_path / "untrained", epochs=0, probe_steps=200)
    trained = _run(small, tmp_path / "trained", epochs=1, probe_steps=200, learning_rate=1e-9)
    weight = "heads.likes.weight"
    torch.testing.assert_close(weights(trained, "02-likes")[weight], weights(untrained, "02-likes")[weight], rtol=0, atol=1e-6)


def test_next_item_tasks_and_sampled_heads_start_as_drawn(small: str, tmp_path: Path) -> None:
    config = settings(small, tasks=("next", "likes", "age"))
    for stage in ("first", "second", "later"):
        config["train"][stage] = {**config["train"][stage], "epochs": 1, "probe_steps": 30}
    config["model"]["heads"] = {"by_task": {"likes": "sampled"}}
    run = train_here(config, tmp_path / "run")
    assert [(event["task"], event["steps"] <= 30) for event in events(run, "linear_probe")] == [("age", True)]


class _Told:
    """A method that tells of a user what `vectors` holds for the first item, or for the user where `by_user`."""

    def __init__(self, labels: int, vectors: Tensor, *, by_user: bool) -> None:
        self.vectors, self.by_user = vectors, by_user
        self._head = Head(vectors.shape[1], labels, generator=torch.Generator().manual_seed(0))

    def mask_index(self, task: str) -> int:
        return 0

    def head(self, task: str) -> Head:
        return self._head

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        assert batch.user_hash is not None
        of_user = torch.from_numpy((batch.user_hash % len(self.vectors)).astype("int64"))
        return self.vectors[of_user if self.by_user else batch.values[batch.row_offsets[:-1].long()].long()]


@pytest.mark.parametrize("by_user", [False, True])
def test_the_candidate_of_least_validation_loss_is_kept(small: str, by_user: bool) -> None:
    """Where representations tell the label, later steps are better; where they tell users apart alone, the first are."""
    dataset = open_dataset(small)
    task = dataset.info.task("gender")
    vectors = 3 * torch.randn(4096, 64, generator=torch.Generator().manual_seed(1))
    method: Any = _Told(task.labels, vectors, by_user=by_user)
    start = fit_linear_probe(method, dataset, task, steps=400, dropout=0.0, smoothing=0.0, seed=0, batch=64, runtime=ALONE)
    assert start.examples == 96
    assert (start.steps == 25) is by_user
    assert (start.validation_loss > 0.69) is by_user
