"""Runs that read histories as a whole: what is kept in the run, use on users never trained on, later versions, ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import run_worlds, settings, small_tables, train_here, weights

import dist_teracon
from dist_teracon.config.model import ModelConfig
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.moments import Moments
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError
from dist_teracon.inference.evaluate import evaluate
from dist_teracon.models.history_start import history_start
from dist_teracon.train.add_task import AddedTask

RULE = SplitRule(train=0.6, validation=0.2, test=0.2)
FACTORS = "backbone.history_features.factors"
HISTORY = [{"item": f"i{3 * place}", "time": 10**9 + 86_400 * place, "type": ("view", "buy")[place % 2]} for place in range(6)]


def timed_tables(**options: Any) -> Any:
    """Small tables whose events are seconds to days apart, of two types; of three with `users`."""
    tables = small_tables(**options)
    draw, count = np.random.default_rng(1), len(tables.sequences.values)
    names = ["view", "buy", *(["sell"] if "users" in options else [])]
    times = 1_600_000_000 + np.cumsum(2 ** draw.integers(0, 18, count))
    columns = EventColumns(times, draw.integers(0, len(names) + 1, count).astype(np.int32))
    return replace(tables, sequences=replace(tables.sequences, columns=columns), types=names)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`timed` with two tasks, and `later`, a version of it with more users, items and types, and the task `gender`."""
    folder, tables = tmp_path_factory.mktemp("sets"), timed_tables()
    write_dataset(replace(tables, labels=[tables.labels[1]]), str(folder / "timed"), RULE, shards=4)
    write_dataset(timed_tables(users=220, items=44), str(folder / "more"), RULE, shards=4)
    append(str(folder / "timed"), str(folder / "more"), str(folder / "later"))
    return folder


def config_of(dataset: Path, *features: str, **changes: Any) -> dict[str, Any]:
    once = {"first": {"epochs": 1, "batch": 32}, "second": {"epochs": 1, "batch": 32}, "later": {"epochs": 1, "batch": 32}}
    value = {**settings(str(dataset), **{**once, **changes}), "tasks": None}
    return {**value, "model": {**value["model"], "history_features": list(features), "history_svd": 6}}


@pytest.fixture(scope="module")
def run(sets: Path, alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(config_of(sets / "timed", "svd", "counts", "types", "recency"), tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("method", ["sinmo", {"name": "mtl", "start": "scratch"}])
def test_a_run_of_several_networks_keeps_them_in_each(sets: Path, alone: None, tmp_path: Path, method: Any) -> None:
    config = {**config_of(sets / "timed", "svd"), "method": {"name": method} if isinstance(method, str) else method}
    found = weights(train_here(config, tmp_path / "run"), "02-age")
    first, second = (value for name, value in found.items() if name.endswith("history_features.factors"))
    assert first.any() and np.array_equal(first, second)


def test_tasks_alone_have_them_too(sets: Path, alone: None, tmp_path: Path) -> None:
    run = train_here(config_of(sets / "timed", "svd"), tmp_path / "run", with_single_task=True)
    assert None not in json.loads((run / "results.json").read_text())["single_task"]


def test_they_are_kept_in_the_run_and_serve_users_never_trained_on(run: Path, sets: Path) -> None:
    dataset = Dataset(str(sets / "timed"))
    model = dist_teracon.from_pretrained(run)
    assert set(model.event_columns) == {"times", "types"}
    assert weights(run, "02-age")["heads.age.weight"].shape == (3, 16 + 2 + 8 + 1 + 6)
    dataset.moments = Moments.of_dataset(dataset.info, dataset.last_event(range(4)))
    start = history_start(dataset, dataset.info.tasks[0], model.config.model, seed=model.config.seed)
    assert start.factors is not None and start.factors.any()
    for stage in ("01-next", "02-age"):
        assert np.array_equal(weights(run, stage)[FACTORS], start.factors)
    scores = json.loads((run / "results.json").read_text())["scores"][1]
    assert [next(iter(score.values.values())) for score in evaluate(model)] == pytest.approx(scores, abs=1e-9)
    now = HISTORY[-1]["time"] + 86_400
    strange = model.encode([HISTORY], "age", at=now)
    assert not np.array_equal(strange, model.encode([HISTORY], "age", at=now + 86_400 * 30))
    assert np.isfinite(strange).all() and strange[0, 16:].any()
    state = model.state(HISTORY[:4], "age", at=now)
    for event in HISTORY[4:]:
        state = model.extend(state, event, at=now)
    np.testing.assert_allclose(state.vector, strange[0], atol=1e-6)


def test_a_later_version_keeps_them_and_its_new_items_weigh_nothing(run: Path, sets: Path) -> None:
    before = weights(run, "02-age")[FACTORS]
    train_here(config_of(sets / "later", "counts", "types", "recency", "svd"), run, added=AddedTask("gender"))
    after = weights(run, "03-gender")[FACTORS]
    assert len(after) > len(before)
    assert np.array_equal(after[: len(before)], before)
    assert not after[len(before) :].any()


def test_what_is_not_there_is_refused_before_anything_runs(sets: Path, alone: None, tmp_path: Path, monkeypatch: Any) -> None:
    tables = timed_tables()
    plain = replace(tables, sequences=replace(tables.sequences, columns=tables.sequences.columns.only(())), types=())
    write_dataset(plain, str(tmp_path / "plain"), RULE, shards=4)
    said = r"model.history_features: 'types' reads types of events, and data set .small. keeps none .*history.keep: \[type\]"
    with pytest.raises(ConfigError, match=said):
        train_here(config_of(tmp_path / "plain", "types"), tmp_path / "run")
    assert ModelConfig(history_features=("svd", "counts")).history_features == ("counts", "svd")
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.slow
def test_any_number_of_ranks_begins_with_the_same_numbers(run: Path, sets: Path, tmp_path: Path) -> None:
    config = config_of(sets / "timed", "svd", "counts", "types", "recency")
    run_worlds([{"world": 2, "config": config, "run": str(tmp_path / "two")}], tmp_path)
    for part in ("factors", "shift", "scale"):
        name = f"backbone.history_features.{part}"
        assert np.array_equal(weights(tmp_path / "two", "01-next")[name], weights(run, "01-next")[name])
