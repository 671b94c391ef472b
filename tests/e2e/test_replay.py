"""A run that comes to a value that is not finite keeps the batch, and `replay` finds where it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from small_runs import events, run_worlds, settings, train_here, write_small

from dist_teracon.cli import main
from dist_teracon.errors import TrainingError
from dist_teracon.models.heads import Head
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.failure import load_failure
from dist_teracon.train.phase import PhaseTrainer

GOOD = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
# the decay multiplies weights by 1 - 9.9 · 10 at every step, so some forward pass overflows
BAD = {"learning_rate": 9.9, "weight_decay": 10.0, "batch": 8, "epochs": 1}


def config(dataset: str, second: dict[str, Any]) -> dict[str, Any]:
    """Return a run of two tasks, the second with replayed users."""
    method = {"name": "teracon", "retention": {"minimum": 8}}
    return settings(dataset, method=method, tasks=("next", "likes"), first=GOOD, second=second, log_every=7)


def test_the_batch_of_the_first_bad_step_of_two_processes_is_kept_and_its_module_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (codes,) = run_worlds(
        [{"config": config(write_small(tmp_path / "set"), BAD), "run": str(run), "world": 2, "fails": True}], tmp_path
    )  # fmt: skip
    assert codes == [2, 2]
    (failed,) = events(run, "failure")
    step = failed["step"]
    assert step % 7  # it is seen where steps are logged, and yet this step's batch is kept
    files = sorted((run / "failures").iterdir())
    assert [file.name for file in files] == [f"02-likes-phase-0-step-{step:08d}-rank-{rank}.safetensors" for rank in (0, 1)]
    failure, batch = load_failure(files[1])
    assert (failure.stage, failure.task, failure.step, failure.rank, failure.world_size) == (2, "likes", step, 1, 2)
    assert batch.step + 1 == step
    assert [part.task for part in batch.examples] == ["likes"]
    assert [part.task for part in batch.retention] == ["next"]
    before = sorted(str(path) for path in run.rglob("*"))
    capsys.readouterr()
    assert main(["replay", str(files[1])]) == 0
    said = capsys.readouterr().out
    assert "forward: the first module whose result is not finite: heads.likes (Head): " in said
    assert "; the first operation: aten.addmm.default\n" in said
    assert "loss, class/likes: nan   <- not finite" in said
    assert sorted(str(path) for path in run.rglob("*")) == before  # the run is as it was
    # elsewhere by now
    moved = files[0].rename(tmp_path / "kept.safetensors")
    assert main(["replay", str(moved)]) == 2
    assert "name the run by --run RUN" in capsys.readouterr().err
    assert main(["replay", str(moved), "--run", str(run)]) == 0
    moved.write_bytes(moved.read_bytes()[:-9])
    assert main(["replay", str(moved), "--run", str(run)]) == 2
    assert "is no batch that a run has kept, or is damaged" in capsys.readouterr().err


def test_a_step_of_a_task_that_was_added_is_replayed(alone: None, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {**config(small, BAD), "tasks": ["next"]}
    run = train_here(values, tmp_path / "run")
    with pytest.raises(TrainingError, match="not a finite number"):
        train_here(values, run, added=AddedTask("likes"))
    (kept,) = (run / "failures").iterdir()
    assert main(["replay", str(kept)]) == 0
    assert "not finite: heads.likes (Head): " in capsys.readouterr().out


def test_a_run_on_a_store_stops_at_the_bad_step_and_is_replayed_from_there(
    alone: None, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head's bias becomes infinite at the third step: on one process that step's own loss ends the run."""
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIST_TERACON_SCRATCH", str(tmp_path / "scratch"))
    uri = f"memory://runs/{uuid4().hex}"
    real = PhaseTrainer._looks

    def spoil(self: PhaseTrainer, steps: int) -> bool:
        if self.events.stage["stage"] == 2 and steps == 2:
            head = self.method.head("likes")
            assert isinstance(head, Head)
            with torch.no_grad():
                head.bias[1] = float("inf")
        return real(self, steps)

    monkeypatch.setattr(PhaseTrainer, "_looks", spoil)
    with pytest.raises(TrainingError) as error:
        train_here(config(small, GOOD), uri)  # type: ignore[arg-type]
    assert "task 'likes', phase 'train', step 3: the loss class/likes is not a finite number" in str(error.value)
    file = f"{uri}/failures/02-likes-phase-0-step-00000003.safetensors"
    assert f"`dist-teracon replay {file}`" in str(error.value)
    monkeypatch.setenv("DIST_TERACON_SCRATCH", str(tmp_path / "another machine"))
    capsys.readouterr()
    assert main(["replay", file]) == 0
    said = capsys.readouterr().out
    assert "before the step, not finite: heads." in said
    assert "bias" in said
    monkeypatch.setattr(PhaseTrainer, "_looks", real)  # where the cause is gone
    assert main(["replay", file]) == 1
    assert "every value is finite here" in capsys.readouterr().out
    fsspec.filesystem("memory").rm(uri.removeprefix("memory:/"), recursive=True)
