"""Several processes take the steps that one process takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import events, run_worlds, settings, weights, write_small

from dist_teracon.continual.target_store import read_shard
from dist_teracon.train.stage_folder import load_tensors

STEPS = 20
USERS = 480  # so many that twenty steps are one or two epochs: each ends with a validation and a checkpoint
STAGES = ("next", "likes", "age")
# name: (its one-process run, processes, ZeRO stage, micro-batches)
TOGETHER = {
    "zero 0": ("all", 2, 0, 1),
    "zero 2, 3 processes on 8 shards": ("all", 3, 2, 1),
    "zero 2, a task's users on one rank, rows shared": ("one-shard", 2, 2, 1),
    "zero 2, all replayed rows on one rank": ("small-pool", 2, 2, 1),
    "zero 1, accumulation 2, dropout and weight decay": ("dropout", 2, 1, 2),
    "zero 0, accumulation 2, lazy tables, a task's users on one rank": ("lazy", 2, 0, 2),
}
TOGETHER_SLOW = {
    "zero 1, accumulation 2": ("all", 2, 1, 2),
    "zero 2, a task's users on one rank": ("one-shard", 2, 2, 1),
    "zero 1": ("all", 2, 1, 1),
    "zero 1, one process": ("all", 1, 1, 1),
    "zero 2": ("all", 2, 2, 1),
    "zero 0, accumulation 2": ("all", 2, 0, 2),
    "zero 2, accumulation 2": ("all", 2, 2, 2),
    "zero 0, 3 processes on 8 shards": ("all", 3, 0, 1),
    "zero 0, a task's users on one rank": ("one-shard", 2, 0, 1),
    "zero 0, all replayed rows on one rank": ("small-pool", 2, 0, 1),
}


def _config(kind: str, folder: Path, *, zero: int, accumulation: int) -> dict[str, Any]:
    method: dict[str, Any] = {"name": "teracon", "mask_regulariser": 0.5, "retention": {"refresh_every": 3, "minimum": 64}}
    if kind == "small-pool":
        method["retention"]["pool"] = 0.011
    stage = {"learning_rate": 1e-3, "batch": 8, "epochs": 20, "patience": 0}
    dataset = str(folder / {"one-shard": "one-shard", "lazy": "one-shard", "small-pool": "few"}.get(kind, "all"))
    config = settings(
        dataset, method=method, tasks=STAGES, first=stage, second=stage, later=stage,
        max_steps=STEPS, zero=zero, accumulation=accumulation,
    )  # fmt: skip
    if kind == "lazy":
        config["train"] = {**config["train"], "sparse_updates": "on", "first": {**config["train"]["first"], "weight_decay": 0.5}}
        config["model"] = {**config["model"], "heads": {"default": "sampled", "sampled": {"negatives": 5}}}
    if kind == "dropout":
        config["model"] = {**config["model"], "dropout": 0.3, "item_init": "svd"}
        scheduled = {"weight_decay": 0.5, "schedule": "cosine", "warmup_steps": 4}
        config["train"]["later"] = config["train"]["first"] = {**config["train"]["first"], **scheduled}
    return config


def _train(folder: Path, together: dict[str, tuple[str, int, int, int]], further: Sequence[dict[str, Any]] = ()) -> Path:
    write_small(folder / "all", users=USERS)
    write_small(folder / "few")
    write_small(folder / "one-shard", users=USERS, likes_in_shard=3)
    kinds = dict.fromkeys(kind for kind, *_ in together.values())
    jobs = [{"config": _config(kind, folder, zero=0, accumulation=1), "run": str(folder / f"alone {kind}")} for kind in kinds]
    for name, (kind, world, zero, accumulation) in together.items():
        config = _config(kind, folder, zero=zero, accumulation=accumulation)
        config["train"]["balance"] = "machine" if "shared" in name else "shards"
        jobs.append({"config": config, "run": str(folder / name), "world": world})
    run_worlds([*jobs, *further], folder)
    return folder


def _further(folder: Path) -> list[dict[str, Any]]:
    """Return what else is trained: runs that end after a checkpoint, a bf16 one, and heads fitted before training."""
    jobs: list[dict[str, Any]] = []
    for name, world, zero, accumulation in (("moments alone", 1, 0, 1), ("moments", 2, 2, 2)):
        config = _config("all", folder, zero=zero, accumulation=accumulation)
        jobs.append({"config": config, "run": str(folder / name), "world": world, "moment": "checkpoint:2:1", "rank": 0})
    fast = {"learning_rate": 3.0, "batch": 48, "epochs": 1}
    values = settings(str(folder / "all"), tasks=STAGES[:2], first=fast, second=fast, zero=2, precision="bf16")
    jobs.append({"config": values, "run": str(folder / "bf16"), "world": 2})
    for world in (1, 3):
        still = {"learning_rate": 1e-3, "batch": 16, "epochs": 0}
        values = settings(str(folder / "few"), tasks=STAGES[:2], first=still, second={**still, "probe_steps": 40})
        jobs.append({"config": values, "run": str(folder / f"head start {world}"), "world": world})
    return jobs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by name."""
    folder = tmp_path_factory.mktemp("same-losses")
    return _train(folder, TOGETHER, _further(folder))


def _check(alone: Path, together: Path) -> None:
    for stage, terms in ((1, 2), (2, 2), (3, 3)):  # a task's own term, and the mask's or a term a past task
        one, several = ([event for event in events(run, "step") if event["stage"] == stage] for run in (alone, together))
        assert len(one) == len(several) == STEPS
        assert len(one[0]["loss"]) == terms
        assert one[0]["loss"] != one[-1]["loss"]
        for expected, found in zip(one, several, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5, rel=0)
            assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
            assert found.get("rows") == expected.get("rows")
            assert found.get("rho") == (expected.get("rho") and pytest.approx(expected["rho"], abs=1e-5))


@pytest.mark.parametrize("name", list(TOGETHER))
def test_losses_and_rates_of_the_first_steps_equal_one_processs(runs: Path, name: str) -> None:
    _check(runs / f"alone {TOGETHER[name][0]}", runs / name)


def test_a_head_starts_as_with_one_process(runs: Path) -> None:
    one, three = (weights(runs / f"head start {world}", "02-likes") for world in (1, 3))
    told = [[(event["examples"], event["steps"]) for event in events(runs / f"head start {world}", "linear_probe")] for world in (1, 3)]
    assert len(told[0]) == 1
    assert told[0] == told[1]
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=0, atol=1e-6, msg=name)


def test_gradients_have_one_processs_size(runs: Path) -> None:
    """Adam's steps do not tell: they are the same for gradients of any size."""
    state = "stages/02-likes/progress/phase-0-epoch-00001/engine.safetensors"
    alone, together = (load_tensors(runs / name / state) for name in ("moments alone", "moments"))
    assert alone.keys() == together.keys()
    for name in alone:
        if name.startswith("exp_avg"):
            scale = float(alone[name].abs().max())
            torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=max(1e-4 * scale, 1e-12), msg=name)


def test_task_embeddings_stay_bounded_on_masters_spread_over_ranks(runs: Path) -> None:
    embeddings = [value for name, value in weights(runs / "bf16", "02-likes").items() if name.startswith("masks.embeddings")]
    largest = [float(value.abs().max()) for value in embeddings]
    assert len(largest) == 2
    assert max(largest) == 6  # steps of 3 have carried some of them to the bound, and none past it


@pytest.mark.slow
def test_more_combinations_of_processes_zero_and_accumulation(tmp_path: Path) -> None:
    _train(tmp_path, TOGETHER_SLOW)
    for name, (kind, *_) in TOGETHER_SLOW.items():
        _check(tmp_path / f"alone {kind}", tmp_path / name)


def test_the_small_pool_lies_on_one_rank(runs: Path) -> None:
    stored = sorted((runs / "zero 2, all replayed rows on one rank" / "stages/02-likes/pseudo_labels/next").glob("*.arrow"))
    ranks = {number % 2 for number, path in enumerate(stored) if len(read_shard(path)[0])}
    assert len(stored) == 8
    assert len(ranks) == 1
