"""`bench workers`: how its ways are written, and what it reads of a run."""

from __future__ import annotations

import json

import pytest

from dist_teracon.bench.workers import Way, outcome_of
from dist_teracon.errors import ConfigError


def test_ways_become_commands(tmp_path):
    command = Way.parse("torchrun:2").command("c.yaml", tmp_path, ["seed=1"])
    assert command[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dist_teracon.launch.torchrun", "--"),
        *("c.yaml", "--run", str(tmp_path), "--no-report", "--set", "seed=1"),
    ]
    assert "launch.workers=3" in Way.parse("ray:3").command("c.yaml", tmp_path, [])
    assert "--launcher" not in Way.parse("local").command("c.yaml", tmp_path, [])


@pytest.mark.parametrize("name", ["local:2", "torchrun", "ray:0", "ray:two", "mpi:2"])
def test_other_ways_are_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' is none of local, torchrun:N, ray:N"):
        Way.parse(name)


def test_a_runs_rate_is_examples_by_the_seconds_of_epochs(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"tasks": ["a", "b"], "scores": [[0.5], [0.4, 0.3]]}))
    tasks = [{"name": "a", "examples": [80, 5, 15]}, {"name": "b", "examples": [40, 5, 5]}]
    (tmp_path / "dataset.json").write_text(json.dumps({"tasks": tasks}))
    events = [
        {"event": "epoch", "task": "a", "epoch": 0, "seconds": 9.0},  # the start, before anything is trained
        {"event": "epoch", "task": "a", "epoch": 1, "seconds": 2.0},
        {"event": "step", "task": "a", "epoch": 1},
        {"event": "epoch", "task": "b", "epoch": 1, "seconds": 1.0},
        {"event": "epoch", "task": "b", "epoch": 2, "seconds": 1.0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    outcome, names = outcome_of(tmp_path, 7.0)
    assert names == ["a", "b"]
    assert outcome.rate == 160 / 4
    assert outcome.scores == (0.4, 0.3)
