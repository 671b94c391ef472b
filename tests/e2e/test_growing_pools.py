"""The store of pseudo-labels in whole runs: exact, extended where rates outgrow it, in fp16, and with frozen past heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ALONE, checked, events, settings, train_here, weights, what_lasts, write_small

from dist_teracon.console import Console
from dist_teracon.continual import replayed_users
from dist_teracon.continual.pseudo_labels import plain_batch
from dist_teracon.continual.target_store import read_shard
from dist_teracon.continual.teracon import Teracon
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.train import phase
from dist_teracon.train.restore import restore_method
from dist_teracon.train.run import train

pytestmark = pytest.mark.usefixtures("alone")


def _values(small: str, *, stages: int = 2, **retention: Any) -> dict[str, Any]:
    method = {"name": "teracon", "retention": {"minimum": 4, "refresh_every": 1, **retention}}
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 3, "patience": 0}
    tasks = ("next", "likes", "age")[:stages]
    return settings(small, method=method, tasks=tasks, first={**stage, "epochs": 1}, second=stage, later=stage)


def _stored(run: Path, past: str, stage: str = "02-likes") -> list[tuple[np.ndarray, np.ndarray]]:
    return [read_shard(path) for path in sorted(run.glob(f"stages/{stage}/pseudo_labels/{past}/*.arrow"))]


def test_what_is_stored_is_what_the_teacher_says_at_s_max_a_row_at_a_time(small: str, tmp_path: Path) -> None:
    run = train_here(_values(small, stages=3), tmp_path / "run")
    teacher, dataset = restore_method(run, stage=2), Dataset(small)
    for past, of_logits in (("next", False), ("likes", True)):
        for shard, (rows, targets) in enumerate(_stored(run, past, "03-age")):
            data = dataset.shard(shard)
            for row, target in zip(rows, targets, strict=True):
                batch = plain_batch(take_rows(data.values, data.offsets, np.array([row])), teacher.mask_index(past))
                with torch.no_grad():
                    hidden = teacher.encode(batch, past)
                    said = (teacher.head(past)(hidden) if of_logits else hidden)[0]
                assert target.dtype == np.float32
                np.testing.assert_allclose(target, said.numpy(), rtol=0, atol=1e-6)


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that grow from .02 to .3 after four steps, and a task that is not small."""
    monkeypatch.setattr(replayed_users, "SMALL_TASK", 10)
    monkeypatch.setattr(Teracon, "_largest_rate", lambda method: 0.3 if method.steps_taken > 4 else 0.02)


@pytest.mark.usefixtures("growing")
def test_pools_grow_with_rho_and_a_killed_run_ends_with_the_same_bits(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = Console(active=False)
    monkeypatch.setattr(console, "log", said.append)
    values = _values(small, minimum=2)  # less of a batch of 32 than four times .02
    config, whole, killed = checked(values), tmp_path / "whole", tmp_path / "killed"
    train(config, ALONE, whole, where="test", console=console)
    (began,) = events(whole, "pseudo_labels")
    grown = sum(len(rows) for rows, _ in _stored(whole, "next"))
    assert began["share"] == 4 * 0.02
    assert began["rows"] < grown
    assert [line for line in said if line.startswith("ρ has grown")] == [
        f"ρ has grown to 0.3: pools hold {grown} rows of past tasks instead of {began['rows']}"
    ]
    taken, step = [], phase.train_step

    def dies(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) in (12, 18):
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(phase, "train_step", dies)
    every = checked({**values, "train": {**values["train"], "checkpoint_every": {"minutes": None, "steps": 2}}})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(every, ALONE, killed, where="test", console=Console(active=False))
    train(every, ALONE, killed, where="test", console=Console(active=False))
    assert what_lasts(killed) == what_lasts(whole)


def test_a_run_killed_within_an_epoch_grows_its_pools_where_the_undisturbed_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates have grown by then, and the epoch that is resumed began with smaller ones; of two past tasks rows would lie otherwise."""
    monkeypatch.setattr(replayed_users, "SMALL_TASK", 10)
    monkeypatch.setattr(Teracon, "_largest_rate", lambda method: 0.02 * (1 + method.steps_taken / 3))
    values = _values(write_small(tmp_path / "set", users=640), stages=3, minimum=2)
    values["train"]["second"] = {**values["train"]["second"], "epochs": 1}
    every = {**values, "train": {**values["train"], "checkpoint_every": {"minutes": None, "steps": 1}}}
    whole, killed = train_here(values, tmp_path / "whole"), tmp_path / "killed"
    said: list[str] = []
    monkeypatch.setattr(Console, "log", lambda _self, text: said.append(text))
    taken, step = [], phase.train_step

    def dies(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        taken.append(len(method.learned) == 3)
        if sum(taken) == 11:
            raise KeyboardInterrupt
        return step(engine, method, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phase, "train_step", dies)
        train_here(every, killed)
    assert not [line for line in said if line.startswith("ρ has grown")]
    train_here(every, killed)
    assert [line for line in said if line.startswith("ρ has grown")]
    assert what_lasts(killed) == what_lasts(whole)


def test_frozen_heads_stay_and_targets_in_fp16_are_half_as_large(small: str, tmp_path: Path) -> None:
    run = train_here(_values(small, stages=3, heads="frozen", store="fp16"), tmp_path / "run")
    first, last = weights(run, "01-next"), weights(run, "03-age")
    for name in ("heads.next.weight", "heads.next.bias"):
        assert torch.equal(first[name], last[name])
    assert not torch.equal(weights(run, "02-likes")["heads.likes.weight"], torch.zeros(()))
    assert torch.equal(weights(run, "02-likes")["heads.likes.weight"], last["heads.likes.weight"])
    assert any(not torch.equal(first[name], last[name]) for name in first if name.startswith("backbone."))
    assert {targets.dtype for _, targets in _stored(run, "next", "03-age")} == {np.dtype(np.float16)}
    losses = [event["loss"] for event in events(run, "step") if event["stage"] == 3]
    assert all(0 <= losses[0][f"retention/{past}"] < 1e-9 for past in ("next", "likes"))
    assert max(loss["retention/next"] for loss in losses) > 1e-7
