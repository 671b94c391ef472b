"""Every method's steps are the same with two processes as with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import BACKBONES, events, run_worlds, settings, write_small

METHODS: dict[str, dict[str, Any]] = {
    "mtl": {"name": "mtl"},
    "peterrec": {"name": "peterrec"},
    "piggyback": {"name": "piggyback"},
    "hat": {"name": "hat"},
    "conure": {"name": "conure"},
    "lowrank": {"name": "lowrank", "rank": 2},
    "teracon on a budget": {"name": "teracon", "retention": {"budget": 0.2, "tasks_per_step": 1, "refresh_every": 3}},
}
# those of which a third stage is another thing than a second
THREE = ("mtl", "lowrank", "teracon on a budget")
# every method on a backbone, and ZeRO cutting the optimiser's state on one of the two; the others are slow
CASES = [
    *((method, "nextitnet") for method in ("mtl", "piggyback", "conure", "teracon on a budget")),
    *((method, "sasrec") for method in ("peterrec", "hat", "lowrank", "teracon on a budget")),
]
ZERO = {"nextitnet": 2, "sasrec": 0}
STEPS = 5


def _config(dataset: str, method: str, backbone: str, *, zero: int) -> dict[str, Any]:
    stage = {"learning_rate": 1e-3, "batch": 16, "epochs": 2, "patience": 0, "weight_decay": 0.1}
    tasks = ("next", "age", "likes") if method in THREE else ("next", "likes")
    stages = {"first": stage, "second": stage, "later": stage}
    values = settings(dataset, method=METHODS[method], tasks=tasks, max_steps=STEPS, zero=zero, accumulation=1 + zero // 2, **stages)
    values["model"] = {**values["model"], "backbone": BACKBONES[backbone], "dropout": 0.2}
    return values


def _train(folder: Path, cases: Sequence[tuple[str, str]]) -> None:
    """Train each case with one process and with two."""
    dataset = write_small(folder / "set", users=96, shards=4)
    jobs: list[dict[str, Any]] = []
    for method, backbone in cases:
        zero, run = ZERO[backbone], str(folder / f"{method} {backbone}")
        jobs.append({"config": _config(dataset, method, backbone, zero=0), "run": f"{run} alone"})
        jobs.append({"config": _config(dataset, method, backbone, zero=zero), "run": run, "world": 2})
    run_worlds(jobs, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of one and of two processes."""
    folder = tmp_path_factory.mktemp("systems")
    _train(folder, CASES)
    return folder


@pytest.mark.parametrize(("method", "backbone"), CASES)
def test_losses_of_two_processes_equal_one_processs(runs: Path, method: str, backbone: str) -> None:
    _check(runs, method, backbone)


@pytest.mark.slow
def test_losses_of_the_other_methods_and_backbones(tmp_path: Path) -> None:
    others = [(method, backbone) for method in METHODS for backbone in BACKBONES if (method, backbone) not in CASES]
    _train(tmp_path, others)
    assert len(others) + len(CASES) == len(METHODS) * len(BACKBONES)
    for method, backbone in others:
        _check(tmp_path, method, backbone)


def _check(runs: Path, method: str, backbone: str) -> None:
    one, two = (events(runs / f"{method} {backbone}{which}", "step") for which in (" alone", ""))
    phases = {"mtl": 2, "conure": 4}.get(method, 3 if method in THREE else 2)
    assert len(one) == len(two)
    assert STEPS * phases - 2 <= len(one) <= STEPS * phases  # a small task's two epochs have fewer
    for expected, found in zip(one, two, strict=True):
        assert (found["stage"], found["phase"]) == (expected["stage"], expected["phase"])
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5, rel=0)
        assert found.get("rows") == expected.get("rows")


def test_a_budget_holds_in_every_step(runs: Path) -> None:
    for backbone in BACKBONES:
        steps = [event for event in events(runs / f"teracon on a budget {backbone}", "step") if event["stage"] > 1]
        assert {sum(event["rows"].values()) for event in steps} == {3}  # a fifth of 16
        assert {tuple(event["rows"].values()) for event in steps if event["stage"] == 3} == {(3, 0), (0, 3)}  # in turns
