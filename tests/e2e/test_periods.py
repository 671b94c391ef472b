"""`evaluate.period`: on which period of a test that has several a run is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ALONE, results, settings, train_here

import dist_teracon
from dist_teracon.cli import main
from dist_teracon.config.run import EvaluateConfig
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import Split
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.baseline_table import baseline_table
from dist_teracon.evaluate.metrics import parse_metric
from dist_teracon.evaluate.periods import period_of
from dist_teracon.evaluate.scorer import score_task
from dist_teracon.inference.evaluate import evaluate
from dist_teracon.inference.model import from_pretrained
from dist_teracon.inference.sources import of_dataset
from dist_teracon.train.restore import restore_method

DAY, START = 86_400, 1_600_000_000
RECIPE = {
    "history": {"events": {"type": "view"}, "length": 8},
    "tasks": {"buys": {"kind": "item", "events": {"type": "buy"}}},
    "split": {"by": "time", "labels_from": START + 40 * DAY, "validation_from": START + 60 * DAY, "test_from": START + 80 * DAY},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` with one test period, `two` with two."""
    folder, draw = tmp_path_factory.mktemp("periods"), np.random.default_rng(0)
    rows = [
        f"u{user:02d},i{(user % 4 * 3 + draw.integers(6) + 2 * (day >= 90)) % 12:02d},{START + day * DAY},{('view', 'buy')[day % 3 == 0]}"
        for user in range(60)
        for day in sorted(draw.choice(100, size=24, replace=False).tolist())
    ]
    (folder / "raw").mkdir()
    (folder / "raw" / "events.csv").write_text("user,item,timestamp,type\n" + "\n".join(rows) + "\n")
    for name, periods in (("one", []), ("two", [START + 90 * DAY])):
        recipe = {**RECIPE, "split": {**RECIPE["split"], "test_periods": periods}}
        prepare("events", str(folder / "raw"), str(folder / name), recipe=parse_recipe(recipe), shards=2)
    return folder


def config_of(dataset: Path, period: str) -> dict[str, Any]:
    once = {"first": {"epochs": 1, "batch": 32}, "second": {"epochs": 1, "batch": 32}}
    return {**settings(str(dataset), **once), "tasks": None, "evaluate": {"period": period, "metrics": ["mrr@5"]}}


def test_the_present_period_is_scored_after_every_stage(sets: Path, alone: None, tmp_path: Path) -> None:
    run, dataset = train_here(config_of(sets / "two", "present"), tmp_path / "run"), Dataset(str(sets / "two"))
    scores = results(run)["scores"]

    @torch.no_grad()
    def score(stage: int, task: str, period: int | None) -> float | None:
        metrics = [parse_metric("mrr@5")]
        method = restore_method(run, stage)
        return score_task(
            method, dataset, task, Split.TEST, metrics=metrics, runtime=ALONE, batch=512, max_users=None, seed=0, period=period
        ).value  # fmt: skip

    assert scores == [[score(1, "next", 0)], [score(2, "next", 1), score(2, "buys", 1)]]
    assert score(2, "next", 0) != score(2, "next", 1) != score(2, "next", None)
    # what stands beside the final scores is of their period
    tables = [
        baseline_table(dataset, dataset.info.tasks, metrics=["mrr@5"], seed=0, log=print, periods=periods)["popularity"]
        for periods in ((1, 1), (0, 1))
    ]
    assert json.loads((run / "baselines.json").read_text())["popularity"] == tables[0] != tables[1]
    told: list[str] = []
    (whole,) = evaluate(from_pretrained(run), tasks=["next"], period="all", log=told.append)
    assert whole.values == {"mrr@5": score(2, "next", None)}
    assert told == ["the test has 2 periods; all are scored together (--period all)"]
    (note,) = of_dataset(from_pretrained(run), str(sets / "two"), log=print).notes
    assert note.endswith(f"as u1 and u1@test ({dataset.info.users} rows of 60 users)")


def test_evaluate_takes_the_runs_period_or_another(sets: Path, alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_here(config_of(sets / "two", "present"), tmp_path / "run")
    model, dataset = dist_teracon.from_pretrained(run), Dataset(str(sets / "two"))
    by_period = {
        period: {score.task: score for score in evaluate(model, period=period)} for period in (None, "present", "own", "all")
    }  # fmt: skip
    assert [score.values["mrr@5"] for score in by_period[None].values()] == results(run)["scores"][-1]
    assert by_period["present"] == by_period[None]
    assert {task: score.period for task, score in by_period[None].items()} == {"next": 1, "buys": 1}
    assert {task: score.period for task, score in by_period["own"].items()} == {"next": 0, "buys": 1}
    assert evaluate(dist_teracon.from_pretrained(run, 1), period="present")[0].period == 0
    for task, places in (("next", (0, 1)), ("buys", (1, 0))):
        parts = [dataset.labels(task, shard) for shard in range(2)]
        users = [sum(len(part.of(Split.TEST, period=place).users) for part in parts) for place in places]
        assert by_period["own"][task].users == users[0]
        hashes = [dataset.shard(shard).user_hash[parts[shard].of(Split.TEST).users] for shard in range(2)]
        # a user is a row in each period, and counts once
        assert by_period["all"][task].users == len(np.unique(np.concatenate(hashes))) < sum(users)
    assert main(["evaluate", str(run), "--period", "own", "--json", str(tmp_path / "s.json")]) == 0
    shown = capsys.readouterr()
    assert "the test has 2 periods; each task is scored on that of its own stage (--period: own)" in shown.out + shown.err
    assert [line.split()[-1] for line in shown.out.splitlines()[-3:]] == ["period", "1", "2"]
    found = json.loads((tmp_path / "s.json").read_text())["tasks"]
    assert {task: value["test_period"] for task, value in found.items()} == {"next": 1, "buys": 2}
    with pytest.raises(ConfigError, match="--period: the test alone has periods"):
        evaluate(model, split="validation", period="own")
    with pytest.raises(ConfigError, match=r"--period: .*'present' scores .* has one test period"):
        evaluate(model, str(sets / "one"), period="present")
    assert evaluate(model, str(sets / "one"))[0].period is None


def test_a_stage_has_the_period_of_its_number_and_later_ones_the_last(sets: Path) -> None:
    two = Dataset(str(sets / "two")).info
    by_setting = {
        setting: [[period_of(EvaluateConfig(period=setting), two, task=i, stage=stage) for i in range(stage + 1)] for stage in range(3)]
        for setting in ("own", "present")
    }  # fmt: skip
    assert by_setting == {"own": [[0], [0, 1], [0, 1, 1]], "present": [[0], [1, 1], [1, 1, 1]]}
    assert period_of(EvaluateConfig(), Dataset(str(sets / "one")).info, task=0, stage=1) is None


def test_a_data_set_without_periods_is_refused(sets: Path, alone: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.period: 'present' .* has one test period; prepare it with split: .*test_periods"):
        train_here(config_of(sets / "one", "present"), tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
