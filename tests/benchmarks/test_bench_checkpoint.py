"""`bench checkpoint`: what it reads of a run, and what it makes of pairs of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_teracon.bench.checkpoint import Outcome, cells, outcome_of
from dist_teracon.errors import RunError


def test_a_checkpoints_seconds_are_medians_of_pairs_over_the_time_between_two() -> None:
    pairs = [
        (Outcome(20.0, 4, 2.0, 3 << 20), Outcome(12.0, 0, 0.0, 3 << 20)),
        (Outcome(30.0, 4, 4.0, 3 << 20), Outcome(26.0, 0, 0.0, 3 << 20)),
    ]
    # .5 and 1 s without a step, 2 and 1 s longer; of 600 s
    assert cells(pairs, 10) == ["3.0", "4", "0.750", "0.12%", "1.500", "0.25%"]


def test_a_run_too_short_for_a_checkpoint_is_told() -> None:
    with pytest.raises(RunError, match="give more --steps, or fewer to --every"):
        cells([(Outcome(1.0, 0, 0.0, 1), Outcome(1.0, 0, 0.0, 1))], 10)


def test_a_runs_log_has_the_seconds_of_its_checkpoints(tmp_path: Path) -> None:
    events = [
        {"event": "epoch", "epoch": 0, "seconds": 9.0},  # the start, before anything is trained
        {"event": "step", "timing": {"checkpoints": {"count": 2, "seconds": 0.5}}},
        {"event": "step", "timing": {"users_per_s": 3.0}},
        {"event": "step"},
        {"event": "step", "timing": {"checkpoints": {"count": 1, "seconds": 0.25}}},
        {"event": "epoch", "epoch": 1, "seconds": 2.0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    stage = tmp_path / "stages" / "01-next"
    stage.mkdir(parents=True)
    (stage / "model.safetensors").write_bytes(b"12345")
    assert outcome_of(tmp_path) == Outcome(2.0, 3, 0.75, 5)
