"""Learning rates that change while a stage trains: what its log says of them, and that a killed run goes on with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_runs import ALONE, checked, events, settings, timeless, train_here, what_lasts

from dist_teracon.console import Console
from dist_teracon.errors import ConfigError
from dist_teracon.train import phase as phase_module
from dist_teracon.train.early_stopping import EarlyStopping
from dist_teracon.train.run import train


class Told(Console):
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        super().__init__(active=False)
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def _config(small: str, *, first: dict[str, Any], **train: Any) -> dict[str, Any]:
    return settings(small, method="sinmo", tasks=("next",), first={"learning_rate": 0.01, "batch": 32, **first}, **train)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Validation scores that epochs are said to have, in their order, before training too."""
    told: list[float] = []
    real = EarlyStopping.update

    def update(self: EarlyStopping, score: float | None, epoch: int) -> bool:
        return real(self, told[epoch], epoch)

    monkeypatch.setattr(EarlyStopping, "update", update)
    yield told


def _rates(run: Path) -> dict[int, set[float]]:
    """Learning rates of each epoch's steps."""
    found: dict[int, set[float]] = {}
    for event in events(run, "step"):
        found.setdefault(event["epoch"], set()).add(event["learning_rate"])
    return found


def test_where_no_epoch_improves_the_rate_is_cut_and_in_the_end_the_stage_ends(
    alone: None, small: str, tmp_path: Path, scores: list[float]
) -> None:
    scores += [0.0, 0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5, 0.9]
    plateau = {"epochs": 20, "patience": 2, "schedule": "plateau", "plateau_factor": 0.1, "plateau_cuts": 2}
    console, run = Told(), tmp_path / "run"
    train(checked(_config(small, first=plateau)), ALONE, run, where="test", console=console)
    cuts = [line.rpartition(" · ")[2] for line in console.lines if "learning rate" in line]
    assert cuts == [f"no better score for 2 epochs: learning rate {rate}" for rate in ("0.001", "0.0001")]
    rates = _rates(run)
    # epochs 2 and 3 are no better than 1, 5 and 6 no better than 4, nor 7 and 8 at the last rate
    assert {epoch: next(iter(of)) for epoch, of in rates.items()} == pytest.approx(
        {1: 0.01, 2: 0.01, 3: 0.01, 4: 1e-3, 5: 1e-3, 6: 1e-3, 7: 1e-4, 8: 1e-4}
    )
    assert all(len(of) == 1 for of in rates.values())
    assert [event["epoch"] for event in events(run, "epoch") if event["best"]][-1] == 4


def test_a_run_killed_behind_a_cut_goes_on_at_the_lower_rate(
    alone: None, small: str, tmp_path: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores += [0.0, *[0.5] * 9]
    plateau = {"epochs": 20, "patience": 2, "schedule": "plateau", "plateau_cuts": 1}
    config = _config(small, first=plateau)
    whole = train_here(config, tmp_path / "whole")

    class Killed(BaseException):
        """Stands for a kill."""

    real = phase_module.PhaseTrainer._run_epoch

    def dying(self: phase_module.PhaseTrainer, state: phase_module.PhaseState) -> None:
        if state.epoch == 3:
            raise Killed
        real(self, state)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(phase_module.PhaseTrainer, "_run_epoch", dying)
        train_here(config, tmp_path / "killed")
    train_here(config, tmp_path / "killed")
    assert what_lasts(tmp_path / "killed") == what_lasts(whole)
    assert [timeless(event) for event in events(tmp_path / "killed")] == [timeless(event) for event in events(whole)]
    assert len({rate for of in _rates(whole).values() for rate in of}) == 2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_fall_is_over_the_steps_of_all_epochs_or_of_a_trial(alone: None, small: str, tmp_path: Path, schedule: str) -> None:
    falling = {"epochs": 3, "patience": 0, "schedule": schedule}
    whole = [event["learning_rate"] for event in events(train_here(_config(small, first=falling), tmp_path / "whole"), "step")]
    trial = [event["learning_rate"] for event in events(train_here(_config(small, first=falling, max_steps=4), tmp_path / "trial"), "step")]
    for rates in (whole, trial):
        assert rates[0] == 0.01
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 0.01 / len(rates) * 1.01
        assert rates[len(rates) // 2] == pytest.approx(0.005, rel=0.3)
    assert len(whole) > len(trial) == 4


def test_a_constant_rate_is_what_it_was(alone: None, small: str, tmp_path: Path) -> None:
    run = train_here(_config(small, first={"epochs": 2}), tmp_path / "run")
    assert {event["learning_rate"] for event in events(run, "step")} == {0.01}


@pytest.mark.parametrize(
    ("first", "own"),
    [({"patience": 0, "schedule": "plateau"}, {}), ({"patience": 0}, {"schedule": "plateau"}), ({"schedule": "plateau"}, {"patience": 0})],
)
def test_a_plateau_without_patience_is_refused(
    alone: None, small: str, tmp_path: Path, first: dict[str, Any], own: dict[str, Any]
) -> None:  # fmt: skip
    config = _config(small, first={"epochs": 2, **first}, by_task={"next": own})
    with pytest.raises(ConfigError, match=r"train\.first or train\.by_task\.next: schedule plateau .* patience is 0"):
        train_here(config, tmp_path / "run")


def test_a_warmup_that_never_ends_is_told(alone: None, small: str, tmp_path: Path) -> None:
    console, run = Told(), tmp_path / "run"
    train(checked(_config(small, first={"epochs": 1, "warmup_steps": 10_000})), ALONE, run, where="test", console=console)
    rates = [event["learning_rate"] for event in events(run, "step")]
    assert rates == pytest.approx([0.01 * number / 10_000 for number in range(1, len(rates) + 1)])
    told = f"warmup_steps 10,000 are more than its {len(rates)} steps: the learning rate does not reach its value"
    assert [line.rpartition(" · ")[2] for line in console.lines if "warmup" in line] == [told]
