"""Runs whose first head is tied to the item embeddings: what learns and is stored, labels of later items, resuming, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import checked, events, settings, train_here, weights, what_lasts, write_small

import dist_teracon
from dist_teracon.errors import ConfigError
from dist_teracon.train.phase import PhaseTrainer
from dist_teracon.train.restore import restore_method, take_up

ITEMS = "backbone.item_embedding.weight"


def config_of(dataset: str, *, heads: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    value = settings(dataset, **more)
    own = {
        "pooling": "last",
        "backbone": {"name": "sasrec", "layers": 1, "max_positions": 16},
        "heads": {"tied": ["next"], **(heads or {})},
    }
    return {**value, "model": {**value["model"], **own, **(model or {})}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("set") / "small", shards=2)


@pytest.fixture(scope="module")
def run(dataset: str, alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with drawn labels and row-sparse updates in its first stage."""
    heads = {"by_task": {"next": "gbce"}, "gbce": {"negatives": 8}}
    second = {"learning_rate": 0.01, "batch": 64, "epochs": 1}
    config = config_of(dataset, tasks=("next", "likes"), sparse_updates="on", heads=heads, second=second)
    return train_here(config, tmp_path_factory.mktemp("tied") / "run")


def test_it_learns_is_stored_once_and_past_outputs_begin_as_the_teachers(run: Path) -> None:
    losses = [event["loss"]["class/next"] for event in events(run, "epoch") if event["stage"] == 1 and event["epoch"]]
    assert losses[1] < losses[0]
    assert [name for name in weights(run, "02-likes") if name.startswith("heads.next")] == ["heads.next.bias"]
    first = next(event for event in events(run, "step") if event["stage"] == 2)
    assert first["loss"]["retention/next"] == pytest.approx(0, abs=1e-6)
    method = restore_method(run)
    assert torch.equal(method.head("next").weight, weights(run, "02-likes")[ITEMS][2:])


def test_labels_are_exported_as_the_items_rows(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from dist_teracon.inference.export import ExportOptions, export
    from dist_teracon.inference.sources import of_dataset

    model = dist_teracon.from_pretrained(run)
    source = of_dataset(model, model.config.dataset, log=print)
    export(model, source, str(tmp_path / "out"), ExportOptions(tasks=("next",), labels=("next",)))
    table = pq.read_table(tmp_path / "out" / "labels_next.parquet")
    vectors = np.stack(table["vector"].to_pylist())
    assert np.array_equal(vectors, weights(run, "02-likes")[ITEMS][2:].numpy())
    user = pq.read_table(tmp_path / "out" / "users").to_pylist()[0]
    assert vectors.shape[1] == len(user["vector_next"])


def test_labels_of_later_items_have_the_items_rows_and_the_least_bias(run: Path) -> None:
    old, tensors = restore_method(run), weights(run, "02-likes")
    tasks = tuple(replace(task, labels=42) if task.name == "next" else task for task in old.context.tasks)
    new = type(old)(replace(old.context, tasks=tasks, num_items=44), old.settings)
    grown = {**tensors, ITEMS: torch.cat([tensors[ITEMS], torch.ones(2, 8)])}
    take_up(new, tasks, grown)
    assert torch.equal(new.head("next").weight[:40], old.head("next").weight)
    assert (new.head("next").weight[40:] == 1).all()
    assert (new.head("next").bias[40:] == old.head("next").bias.min()).all()


def test_a_stage_that_was_broken_off_ends_with_the_same_bits(
    alone: None, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 and under ZeRO, whose partitions hold the table once."""
    config = config_of(dataset, tasks=("next",), precision="bf16", zero=2, checkpoint_every={"minutes": None, "steps": 2})
    train_here(config, tmp_path / "whole")
    save, left = PhaseTrainer._save, [2]

    def breaking(self: PhaseTrainer, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(PhaseTrainer, "_save", breaking)
    with pytest.raises(KeyboardInterrupt):
        train_here(config, tmp_path / "broken")
    train_here(config, tmp_path / "broken")
    assert what_lasts(tmp_path / "broken") == what_lasts(tmp_path / "whole")
    losses = [event["loss"]["class/next"] for event in events(tmp_path / "whole", "epoch") if event["stage"] == 1 and event["epoch"]]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": {"tied": ["likes"]}}, "model.heads.tied: expected a task that predicts the next item.*'likes' is of kind item"),
        ({"heads": {"tied": ["nxt"]}}, "model.heads.tied: .*no task 'nxt'; did you mean 'next'"),
        ({"model": {"pooling": "concat"}}, r"takes the items' 8 numbers .*model.pooling: concat has more; take pooling last or mean"),
        ({"method": {"name": "teracon", "retention": {"heads": "frozen"}}}, "method.retention.heads: .*'next' is tied"),
    ],
)
def test_what_cannot_be_tied_is_refused(alone: None, dataset: str, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train_here(config_of(dataset, **changes), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))
    assert checked(config_of(dataset, **changes)).model.heads.tied
