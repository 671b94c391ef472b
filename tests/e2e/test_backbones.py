"""Every backbone with every method, and what the trainer does for a backbone that it knows by the contract alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ALONE, UNTRAINED, events, results, run_worlds, settings, train_here, weights, what_lasts

from dist_teracon.continual.registry import METHODS
from dist_teracon.data.dataset import Dataset
from dist_teracon.models.backbone import BACKBONES
from dist_teracon.train.item_growth import grown_tensors
from dist_teracon.train.restore import restore_method

ITEMS = "backbone.item_embedding.weight"
SMALL = {"nextitnet": {"dilations": [1, 2]}, "sasrec": {"layers": 2, "max_positions": 16}}


def values_of(dataset: str, backbone: str, *, method: str = "teracon", tasks: tuple[str, ...] = ("next", "likes"), **train: Any) -> Any:
    """Return a small run's configuration for a backbone."""
    values = settings(dataset, method=method, tasks=tasks, **train)
    values["model"] = {**values["model"], "backbone": {"name": backbone, **SMALL[backbone]}}
    return values


def test_every_registered_backbone_is_tried() -> None:
    assert SMALL.keys() == BACKBONES.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_method_learns_two_tasks_on_a_backbone(alone: None, small: str, tmp_path: Path, backbone: str, method: str) -> None:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 2, "weight_decay": 0.1, "pretrained_lr_scale": 0.5, "probe_steps": 10}
    run = train_here(values_of(small, backbone, method=method, first={**stage, "probe_steps": 0}, second=stage), tmp_path / "run")
    scores = results(run)["scores"]
    assert [len(row) for row in scores] == [1, 2]
    assert all(0 <= score <= 1 for row in scores for score in row)
    if method in UNTRAINED:
        return
    losses = [event["loss"]["class/next"] for event in events(run, "epoch") if event["stage"] == 1 and event["epoch"]]
    assert losses[1] < losses[0]
    assert [event["task"] for event in events(run, "linear_probe")] == ["likes"]
    restored = restore_method(run)
    assert all(torch.equal(value, weights(run, "02-likes")[name]) for name, value in restored.state_dict().items())


@pytest.fixture(scope="module")
def sasrec(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages on SASRec with weight decay in the first."""
    first = {"learning_rate": 0.01, "batch": 32, "epochs": 2, "weight_decay": 0.5}
    values = values_of(small, "sasrec", tasks=("next", "likes", "age"), first=first)
    return train_here(values, tmp_path_factory.mktemp("sasrec") / "run")


def test_decay_acts_on_the_matrices_that_a_backbone_names(alone: None, small: str, sasrec: Path, tmp_path: Path) -> None:
    first = {"learning_rate": 0.01, "batch": 32, "epochs": 2}
    plain = train_here(values_of(small, "sasrec", tasks=("next",), first=first), tmp_path / "plain")
    free, pulled = weights(plain, "01-next"), weights(sasrec, "01-next")
    names = [ITEMS, *(f"backbone.{part}_weight" for part in ("in", "out", "inner", "outer")), "heads.next.weight"]
    for name in names:
        assert pulled[name].norm() < free[name].norm(), name


def test_a_stage_starts_with_past_outputs_as_the_teacher_had_them(sasrec: Path) -> None:
    """Retention begins at zero on a backbone that the method does not look into."""
    first = next(event for event in events(sasrec, "step") if event["stage"] == 2)
    assert first["loss"]["retention/next"] == pytest.approx(0, abs=1e-6)
    assert [event["past"] for event in events(sasrec, "pseudo_labels")] == ["next", "next", "likes"]


def test_item_tables_of_a_backbone_grow(small: str, sasrec: Path) -> None:
    method = restore_method(sasrec)
    assert method.item_tables() == [ITEMS]
    table = method.state_dict()[ITEMS]
    fewer = {**method.state_dict(), ITEMS: table[:-3]}
    grown, report = grown_tensors(fewer, method.item_tables(), Dataset(small), task="age", new_items="unseen", runtime=ALONE)
    assert (grown[ITEMS].shape, report["items"] - report["items_before"]) == (table.shape, 3)
    method.load_state_dict(grown)


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 1), ("bf16", 2)])
def test_sasrec_trains_in_bf16_and_under_zero(alone: None, small: str, tmp_path: Path, precision: str, zero: int) -> None:
    run = train_here(values_of(small, "sasrec", precision=precision, zero=zero), tmp_path / "run")
    losses = [event["loss"]["class/next"] for event in events(run, "epoch") if event["stage"] == 1 and event["epoch"]]
    assert losses[1] < losses[0]


def test_sasrec_takes_sparse_updates(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here(values_of(small, "sasrec", tasks=("next",), sparse_updates="on"), tmp_path / "run")
    assert results(run)["scores"][0][0] > 0


def test_a_killed_run_on_sasrec_ends_bit_for_bit_as_undisturbed(small: str, tmp_path: Path) -> None:
    config = values_of(small, "sasrec", checkpoint_every={"steps": 3})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    jobs: list[dict[str, Any]] = [{"config": config, "run": str(whole)}]
    jobs += [{"config": config, "run": str(killed), "moment": moment} for moment in ("step:1:5", "step:2:8")]
    run_worlds([*jobs, {"config": config, "run": str(killed)}], tmp_path)
    assert what_lasts(killed) == what_lasts(whole)


def test_a_restored_stage_is_the_one_asked_for_and_needs_no_data_set(sasrec: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(sasrec, moved)
    method = restore_method(moved, stage=2)
    assert method.learned == ["next", "likes"]
    assert all(torch.equal(value, weights(sasrec, "02-likes")[name]) for name, value in method.state_dict().items())
