"""Methods of other shapes fit behind the contract, each as one class, with the trainer left alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_methods
from small_runs import TASKS, events, results, settings, timeless, train_here, weights, what_lasts

from dist_teracon.train import phase as phase_module

ITEMS = "backbone.item_embedding.weight"
CONV = "backbone.conv_weight"
STAGES = [f"{number:02d}-{task}" for number, task in enumerate(TASKS, start=1)]


@pytest.fixture(scope="module")
def conure(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the CONURE-shaped method."""
    return train_here(settings(small, method="toy-conure", tasks=TASKS), tmp_path_factory.mktemp("conure") / "run")


def test_frozen_weights_of_old_tasks_stay_bit_equal_through_all_later_stages(conure: Path) -> None:
    stages = [weights(conure, stage) for stage in STAGES]
    for number, (before, after) in enumerate(pairwise(stages), start=1):
        frozen = before["owner"] > 0
        assert torch.equal(before[CONV][frozen], after[CONV][frozen])
        new = after["owner"] == number + 1
        assert new.any()
        assert (after[CONV][new] != 0).any()
        assert torch.equal(before[ITEMS], after[ITEMS])
        for task in TASKS[:number]:
            assert torch.equal(before[f"heads.{task}.weight"], after[f"heads.{task}.weight"])


def test_backward_transfer_is_exactly_zero_where_old_weights_are_frozen(conure: Path) -> None:
    scores = results(conure)["scores"]
    for task in range(len(TASKS)):
        assert len({row[task] for row in scores[task:]}) == 1
    assert results(conure)["bwt_absolute"] == [0.0, 0.0, 0.0, None]
    assert scores[1][1] != scores[0][0]  # the scores are no constant


def test_phases_run_in_their_order_and_the_pruned_network_is_scored_before_it_trains_again(conure: Path) -> None:
    told = [(event["phase"], event["epoch"]) for event in events(conure, "epoch") if event["stage"] == 2]
    assert told == [("train", 0), ("train", 1), ("train", 2), ("prune", 0), ("retrain", 0), ("retrain", 1), ("retrain", 2)]


@pytest.mark.parametrize("zero", [1, 2])
def test_frozen_weights_stay_bit_equal_on_masters_in_bf16(alone: None, small: str, tmp_path: Path, zero: int) -> None:
    values = settings(small, method="toy-conure", tasks=("next", "likes"), zero=zero, precision="bf16")
    run = train_here(values, tmp_path / "run")
    before, after = weights(run, STAGES[0]), weights(run, STAGES[1])
    frozen = before["owner"] > 0
    assert torch.equal(before[CONV][frozen], after[CONV][frozen])
    assert torch.equal(before[ITEMS], after[ITEMS])
    assert (before[ITEMS].bfloat16().float() != before[ITEMS]).any()  # they were no bf16 numbers to begin with
    assert results(run)["bwt_absolute"] == [0.0, None]


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


@pytest.mark.parametrize(("phase", "step"), [("train", 5), ("retrain", 2), ("retrain", 9)])
def test_a_run_stopped_in_any_phase_ends_bit_for_bit_as_undisturbed(
    alone: None, small: str, conure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    real, seen = phase_module.train_step, []
    begin = toy_methods.ToyConure.begin_phase

    def begin_phase(self: Any, now: Any) -> None:
        self.phase_name = now.name
        begin(self, now)

    def dying_step(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(method.learned) == 2 and method.phase_name == phase)
        if sum(seen) == step:
            raise Killed
        return real(engine, method, *arguments, **options)

    values = settings(small, method="toy-conure", tasks=TASKS)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(toy_methods.ToyConure, "begin_phase", begin_phase)
        patch.setattr(phase_module, "train_step", dying_step)
        train_here(values, tmp_path / "run")
    train_here(values, tmp_path / "run")
    assert what_lasts(tmp_path / "run") == what_lasts(conure)
    assert [timeless(event) for event in events(tmp_path / "run")] == [timeless(event) for event in events(conure)]


def test_joint_tasks_are_learned_in_one_stage_and_later_stages_train_nothing(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here(settings(small, method="toy-mtl", tasks=TASKS, first={"epochs": 1, "batch": 32}), tmp_path / "run")
    steps = events(run, "step")
    assert {event["stage"] for event in steps} == {1, 2}
    assert list(steps[-1]["loss"]) == ["class/likes", "class/age", "class/gender"]
    assert weights(run, STAGES[1]).keys() == weights(run, STAGES[3]).keys()
    assert all(torch.equal(value, weights(run, STAGES[3])[name]) for name, value in weights(run, STAGES[1]).items())
    untrained, trained = (
        weights(run, STAGES[0])[ITEMS],
        weights(run, STAGES[1])[ITEMS],
    )
    assert not torch.equal(untrained, trained)
    assert results(run)["bwt_absolute"][1:] == [0.0, 0.0, None]
    assert events(run, "epoch")[-1]["validation"] > 0.4  # all three are learnable
