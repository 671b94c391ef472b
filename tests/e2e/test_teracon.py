"""TERACON's stages as a run shows them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from small_runs import TASKS, events, results, settings, train_here, weights

from dist_teracon.continual.target_store import read_shard
from dist_teracon.continual.teracon import Teracon
from dist_teracon.continual.teracon_settings import TeraconSettings
from dist_teracon.data.batches import PackedBatch

ONE_EPOCH = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
SHORT = {"first": ONE_EPOCH, "second": ONE_EPOCH, "later": ONE_EPOCH}


@pytest.fixture(scope="module")
def run(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four tasks."""
    method = {"name": "teracon", "retention": {"minimum": 1}}
    return train_here(settings(small, method=method, tasks=TASKS), tmp_path_factory.mktemp("teracon") / "run")


def _steps(run: Path, stage: int) -> list[dict[str, Any]]:
    return [event for event in events(run, "step") if event["stage"] == stage]


def _retention(event: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in event["loss"].items() if name.startswith("retention/")}


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_past_tasks_are_as_taught_at_a_stages_first_step(run: Path, stage: int) -> None:
    first, *_, last = _steps(run, stage)
    assert list(_retention(first)) == [f"retention/{task}" for task in TASKS[: stage - 1]]
    assert all(0 <= value < 1e-9 for value in _retention(first).values())
    assert max(_retention(last).values()) > 1e-7


def test_past_tasks_jump_where_relations_are_drawn_anew(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "teracon", "relation_init": "reinit"}
    run = train_here(settings(small, method=method, tasks=TASKS[:2], **SHORT), tmp_path / "run")
    assert _retention(_steps(run, 2)[0])["retention/next"] > 1e-7


@pytest.mark.usefixtures("alone")
def test_losses_of_past_tasks_may_be_divided_by_the_variance_of_their_logits(run: Path, small: str, tmp_path: Path) -> None:
    normal = train_here(settings(small, method={"name": "teracon", "retention": {"minimum": 1, "normalise": True}}, tasks=TASKS), tmp_path)
    told = {(event["stage"], event["past"]): event["variance"] for event in events(normal, "pseudo_labels")}
    assert set(told) == {(stage, past) for stage in (2, 3, 4) for past in TASKS[: stage - 1]}
    stored = sorted(normal.glob("stages/04-gender/pseudo_labels/age/*.arrow"))
    logits = np.concatenate([read_shard(path)[1][:256] for path in stored]).astype(np.float64)
    variance = ((logits - logits.mean(axis=1, keepdims=True)) ** 2).mean()
    assert told[4, "age"] == pytest.approx(variance, rel=1e-6)
    # the first step that has a loss follows the same weights with and without
    plain, divided = (_retention(_steps(where, 2)[1])["retention/next"] for where in (run, normal))
    assert divided == pytest.approx(plain / told[2, "next"], rel=0.05)


def test_masks_may_be_annealed_once_over_a_stage() -> None:
    options = TeraconSettings(annealing="stage", annealing_epochs=2)
    method = cast(Teracon, SimpleNamespace(options=options))
    batches = [cast(PackedBatch, SimpleNamespace(epoch=epoch, step=step, steps=3)) for epoch in (1, 2, 3) for step in range(3)]
    scales = [Teracon._scale(method, batch) for batch in batches]
    assert scales[0] == 1 / 50
    assert scales[:6] == pytest.approx([1 / 50 + (50 - 1 / 50) * n / 5 for n in range(6)])
    assert scales[5:] == [50] * 4


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_every_pairs_rate_is_logged_and_rows_follow_from_it(run: Path, stage: int) -> None:
    for event in _steps(run, stage):
        assert list(event["rho"]) == list(event["rows"]) == list(TASKS[: stage - 1])
        assert all(0 < rate < 1 for rate in event["rho"].values())
        assert event["rows"] == {task: max(1, round(rate * 32)) for task, rate in event["rho"].items()}


def test_large_heads_are_stored_as_representations_and_small_ones_as_logits(run: Path) -> None:
    widths = {path.parent.name: read_shard(path)[1].shape[1] for path in run.glob("stages/04-gender/pseudo_labels/*/shard-00002.arrow")}
    assert widths == {"next": 16, "likes": 12, "age": 3}  # representations of 16 numbers; 40, 12 and 3 labels


@pytest.mark.parametrize(("strategy", "choose"), [("minimum", min), ("all", lambda rates: 1.0)])
def test_sampling_strategies_choose_the_rows(alone: None, small: str, tmp_path: Path, strategy: str, choose: Any) -> None:
    method = {"name": "teracon", "retention": {"sampling": strategy, "minimum": 1}}
    run = train_here(settings(small, method=method, tasks=TASKS[:3], **SHORT), tmp_path / "run")
    for event in _steps(run, 3):
        assert set(event["rows"].values()) == {max(1, round(choose(event["rho"].values()) * 32))}


def test_the_online_teacher_teaches_at_the_steps_scale_without_a_store(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "teracon", "retention": {"teacher": "online"}}
    run = train_here(settings(small, method=method, tasks=TASKS[:3]), tmp_path / "run")
    assert not list(run.glob("stages/*/pseudo_labels"))
    for stage in (2, 3):
        first, *_, last = _steps(run, stage)
        assert len(_retention(first)) == stage - 1
        assert max(_retention(last).values()) > 1e-7
        assert "rho" in first


def test_without_retention_past_heads_stay_and_nothing_is_replayed(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "teracon", "retention": {"alpha": 0}}
    run = train_here(settings(small, method=method, tasks=TASKS[:2], **SHORT), tmp_path / "run")
    assert not list(run.glob("stages/*/pseudo_labels"))
    assert all(list(event["loss"]) == ["class/likes"] for event in _steps(run, 2))
    before, after = weights(run, "01-next"), weights(run, "02-likes")
    assert torch.equal(before["heads.next.weight"], after["heads.next.weight"])
    assert not torch.equal(before["backbone.conv_weight"], after["backbone.conv_weight"])


@pytest.mark.parametrize("zero", [1, 2])
def test_task_embeddings_stay_bounded_in_bf16_only_because_they_are_projected(
    alone: None, small: str, tmp_path: Path, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {"learning_rate": 3.0, "batch": 32, "epochs": 1}
    values = settings(small, tasks=TASKS[:2], zero=zero, precision="bf16", first=fast, second=fast, later=fast)

    def largest(run: Path) -> float:
        return max(float(value.abs().max()) for name, value in weights(run, "02-likes").items() if name.startswith("masks.embeddings"))

    assert largest(train_here(values, tmp_path / "bounded")) <= 6
    monkeypatch.setattr(Teracon, "project", lambda self, engine: None)
    assert largest(train_here(values, tmp_path / "free")) > 6


def test_the_mask_regulariser_weighs_the_same_under_accumulation(alone: None, small: str, tmp_path: Path) -> None:
    method = {"name": "teracon", "mask_regulariser": 0.75}
    told = []
    for accumulation in (1, 2):
        values = settings(small, method=method, tasks=TASKS[:1], accumulation=accumulation, **SHORT)
        told.append(_steps(train_here(values, tmp_path / str(accumulation)), 1)[0]["loss"]["masks"])
    assert told[0] == pytest.approx(told[1], abs=1e-6)


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("scale", 1 / 2500), ("decay", 1.0)])
def test_masks_of_later_tasks_may_be_regularised(alone: None, small: str, tmp_path: Path, schedule: str, factor: float) -> None:
    """At a stage's first step s = 1/s_max, where a mask of any embedding is near one half."""
    method = {"name": "teracon", "mask_regulariser": 0.5, "regularised": "all", "regulariser_schedule": schedule}
    run = train_here(settings(small, method=method, tasks=TASKS[:2], **SHORT), tmp_path / "run")
    for stage in (1, 2):
        assert _steps(run, stage)[0]["loss"]["masks"] == pytest.approx(0.5 * 0.5 * factor, rel=0.03)


def test_masks_may_learn_at_a_rate_of_their_own(alone: None, small: str, tmp_path: Path) -> None:
    """After one step of Adam every parameter has moved by its own learning rate."""
    start, moved = {}, {}
    for scale in (1.0, 10.0):
        method = {"name": "teracon", "mask_lr_scale": scale, "gate": "all", "embedding_range": [-1.0, 1.0], "gradient_compensation": True}
        for steps in (1, 2):
            values = settings(small, method=method, tasks=TASKS[:1], max_steps=steps, **SHORT)
            found = weights(train_here(values, tmp_path / f"{scale}-{steps}"), "01-next")
            (start if steps == 1 else moved)[scale] = found
    for name, factor in (("masks.embeddings.0", 10), ("heads.next.weight", 1)):
        changes = [(moved[scale][name] - start[scale][name]).abs().median() for scale in (1.0, 10.0)]
        assert float(changes[1] / changes[0]) == pytest.approx(factor, rel=0.35)


def test_gate_all_is_refused_where_there_is_nothing_to_add_to() -> None:
    for other in ({"relation": "none"}, {"relation_init": "reinit"}):
        with pytest.raises(ValueError, match="gate: all"):
            TeraconSettings.model_validate({"gate": "all", **other})


def test_the_next_item_task_may_come_later(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here(settings(small, tasks=("likes", "next"), **SHORT), tmp_path / "run")
    assert 0 <= _retention(_steps(run, 2)[0])["retention/likes"] < 1e-9


def test_fineall_begins_as_sinmo_and_single_scores_never_change(alone: None, small: str, tmp_path: Path) -> None:
    sinmo, fineall = (train_here(settings(small, method=name, tasks=TASKS), tmp_path / name) for name in ("sinmo", "fineall"))
    one, other = weights(sinmo, "01-next"), weights(fineall, "01-next")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for run in (sinmo, fineall):
        scores = results(run)["scores"]
        assert all(row[: len(previous)] == previous for previous, row in pairwise(scores))
    assert _steps(sinmo, 2)[0]["loss"] != _steps(fineall, 2)[0]["loss"]  # FineAll starts from what T1 has learned
