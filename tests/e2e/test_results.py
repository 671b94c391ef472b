"""What a run writes of itself, and how it is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import TASKS, events, results, settings, train_here, what_lasts

from dist_teracon.train.run_folder import RunFolder

KEYS = [
    "format_version", "method", "seed", "tasks", "metrics", "scores", "scores_by_metric", "single_task", "fwt", "bwt", "fwt_absolute",
    "bwt_absolute", "data_versions", "test_examples", "unseen_targets",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks with every task alone beside it."""
    values = settings(small, tasks=("next", "likes", "gender"))
    return train_here(values, tmp_path_factory.mktemp("results") / "run", with_single_task=True)


def test_results_hold_the_lower_triangle_of_scores(run: Path) -> None:
    found = results(run)
    assert list(found) == KEYS
    assert found["metrics"] == ["mrr@5", "mrr@5", "accuracy"]
    assert [len(row) for row in found["scores"]] == [1, 2, 3]
    assert found["scores_by_metric"] == {
        "mrr@5": [row[:2] + [None] * len(row[2:]) for row in found["scores"]],
        "accuracy": [[None], [None, None], [None, None, found["scores"][2][2]]],
    }
    assert all(0 <= score <= 1 for row in found["scores"] for score in row)
    assert found["seed"] == 0
    assert found["test_examples"][0] == found["test_examples"][2] == 32


def test_transfer_follows_from_the_scores(run: Path) -> None:
    found = results(run)
    scores, single = found["scores"], found["single_task"]
    last = scores[-1]
    for task in range(3):
        own, alone = scores[task][task], single[task]
        forward = None if not task else pytest.approx(100 * (own - alone) / alone) if alone else None
        backward = None if task == 2 else pytest.approx(100 * (last[task] - own) / own) if own else None
        assert found["fwt"][task] == forward
        assert found["bwt"][task] == backward
        assert found["fwt_absolute"][task] == (pytest.approx(own - alone) if task else None)
        assert found["bwt_absolute"][task] == (pytest.approx(last[task] - own) if task < 2 else None)


def test_single_task_scores_are_sinmos(alone: None, small: str, run: Path, tmp_path: Path) -> None:
    sinmo = results(train_here(settings(small, method="sinmo", tasks=("next", "likes", "gender")), tmp_path / "run"))
    assert results(run)["single_task"] == [row[-1] for row in sinmo["scores"]] == sinmo["single_task"]


def test_a_second_run_gives_the_same_bytes_and_without_single_tasks_there_is_no_forward_transfer(
    alone: None, small: str, run: Path, tmp_path: Path
) -> None:
    again = train_here(settings(small, tasks=("next", "likes", "gender")), tmp_path / "run")
    assert results(again)["single_task"] is results(again)["fwt"] is None
    train_here(settings(small, tasks=("next", "likes", "gender")), tmp_path / "run", with_single_task=True)
    assert what_lasts(again) == what_lasts(run)


def test_tasks_alone_have_the_weight_decay_of_a_network_from_scratch(alone: None, small: str, tmp_path: Path) -> None:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
    values = settings(small, tasks=("next", "gender"), first={**stage, "weight_decay": 0.5}, second=stage)
    run = train_here(values, tmp_path / "run", with_single_task=True)
    decays = {
        folder: [RunFolder(folder).config().train.stage(position, task).weight_decay for position, task in enumerate(("next", "gender"))]
        for folder in (run, run / "single-task")
    }
    assert decays == {run: [0.5, 0.0], run / "single-task": [0.5, 0.5]}
    # one that was begun without goes on without
    older = train_here(values, tmp_path / "older")
    train_here({**values, "method": {"name": "sinmo"}}, older / "single-task", until_stage=1)
    train_here(values, older, with_single_task=True)
    assert RunFolder(older / "single-task").config().train.stage(1, "gender").weight_decay == 0.0
    assert results(older)["fwt"] is not None


def test_trials_are_cut_to_users_and_steps(alone: None, small: str, tmp_path: Path) -> None:
    values = {**settings(small, tasks=TASKS[:3], max_steps=3), "evaluate": {"max_users": 5}}
    run = train_here(values, tmp_path / "run")
    count = results(run)["test_examples"]
    assert (count[0], count[2]) == (5, 5)
    assert 5 <= count[1] <= 15  # up to three labels a user
    assert [len([e for e in events(run, "step") if e["stage"] == stage]) for stage in (1, 2, 3)] == [3, 3, 3]
