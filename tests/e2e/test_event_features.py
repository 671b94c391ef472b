"""Runs that read times and types of events: what learns, what stays as ever without, what grows, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import ALONE, checked, events, settings, small_tables, train_here, weights

import dist_teracon
from dist_teracon.compare.plan import read_plan
from dist_teracon.console import Console
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import EventColumns
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.run import train

RULE = SplitRule(train=0.6, validation=0.2, test=0.2)
TABLE = "backbone.event_embedding.type_weight"


def timed_tables(**options: Any) -> Any:
    """Small tables whose events are some seconds to days apart, of two types; of three with `users`."""
    tables = small_tables(**options)
    draw, count = np.random.default_rng(1), len(tables.sequences.values)
    times = 1_600_000_000 + np.cumsum(2 ** draw.integers(0, 18, count))
    names = ["view", "buy", *(["sell"] if "users" in options else [])]
    columns = EventColumns(times, draw.integers(0, len(names) + 1, count).astype(np.int32))
    return replace(tables, sequences=replace(tables.sequences, columns=columns), types=names)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, `timed` with two tasks, and `later`, a version of it with more users, types, and the task `gender`."""
    folder, tables = tmp_path_factory.mktemp("sets"), timed_tables()
    tables = replace(tables, labels=tables.labels[:1])
    write_dataset(tables, str(folder / "timed"), RULE, shards=4)
    plain = replace(tables, sequences=replace(tables.sequences, columns=EventColumns()), types=())
    write_dataset(plain, str(folder / "plain"), RULE, shards=4)
    write_dataset(timed_tables(users=220), str(folder / "more"), RULE, shards=4)
    append(str(folder / "timed"), str(folder / "more"), str(folder / "later"))
    return folder


def config_of(dataset: Path, *features: str, **changes: Any) -> dict[str, Any]:
    value = {**settings(str(dataset), **changes), "tasks": None}
    return {**value, "model": {**value["model"], "event_features": list(features), "dropout": 0.1}}


@pytest.fixture(scope="module")
def run(sets: Path, alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that reads gaps, types and recency; replayed rows of the first task have them, too."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train_here(config_of(sets / "timed", "gaps", "types", "recency"), folder)
    return folder


def test_features_are_learned_and_used(run: Path, sets: Path) -> None:
    learned = weights(run, "02-likes")
    assert learned["backbone.event_embedding.gap_weight"].shape == (33, 8)
    moved = learned["backbone.event_embedding.gap_weight"].abs().sum(1).nonzero().flatten().tolist()
    assert moved == [0, *range(2, 20)]  # of 1 to 2¹⁷ seconds
    assert (learned[TABLE].abs().sum(1) > 0).all()
    assert learned["backbone.event_embedding.recency_weight"][2:20].abs().sum(1).all()
    state, timed = json.loads((run / "stages/02-likes/state.json").read_text()), Dataset(str(sets / "timed"))
    assert (state["types"], state["moment"]) == (3, timed.last_event(range(4)))
    model = dist_teracon.from_pretrained(run)
    assert model.reader.reads.types.names == [None, "view", "buy"]
    scores = json.loads((run / "results.json").read_text())
    from dist_teracon.inference.evaluate import evaluate

    found = {score.task: score.values["mrr@5"] for score in evaluate(model)}
    assert found == pytest.approx(dict(zip(("next", "likes"), scores["scores"][1], strict=True)))


def test_without_features_a_run_is_that_on_items_alone(sets: Path, alone: None, tmp_path: Path) -> None:
    made = []
    for name in ("plain", "timed"):
        train_here(config_of(sets / name, first={"epochs": 1, "batch": 32}, second={"epochs": 1, "batch": 64}), tmp_path / name)
        made.append((tmp_path / name / "stages/02-likes/model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_a_later_versions_types_get_rows_of_their_own(run: Path, sets: Path) -> None:
    train_here(config_of(sets / "later", "gaps", "types", "recency"), run, added=AddedTask("gender"))
    assert [weights(run, stage)[TABLE].shape[0] for stage in ("02-likes", "03-gender")] == [3, 4]
    model = dist_teracon.from_pretrained(run)
    assert (model.num_types, model.reader.reads.types.names[3]) == (4, "sell")
    before = dist_teracon.from_pretrained(run, stage=2)
    assert before.num_types == 3
    history = [{"item": "i3", "time": 5, "type": "view"}, {"item": "i4", "time": 9, "type": "sell"}]
    unknown = [history[0], {**history[1], "type": None}]
    assert np.array_equal(before.encode([history]), before.encode([unknown]))
    assert not np.array_equal(model.encode([history]), model.encode([unknown]))


def test_a_data_set_without_the_column_is_refused_with_what_to_write(sets: Path, alone: None, tmp_path: Path) -> None:
    said = r"model.event_features: 'gaps' reads times of events, and data set .small. keeps none .*history.keep: \[time\]"
    with pytest.raises(ConfigError, match=said):
        train_here(config_of(sets / "plain", "gaps"), tmp_path / "run")
    biased = config_of(sets / "plain")
    biased["model"]["backbone"] = {"name": "sasrec", "time_bias": "learned"}
    with pytest.raises(
        ConfigError, match=r"model.backbone.time_bias: reads times of events, .*history.keep: \[time\].*leave time_bias out"
    ):
        train_here(biased, tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
    assert Dataset(str(sets / "plain")).info.history.names == ()
    assert checked(config_of(sets / "plain", "gaps")).model.event_features == ("gaps",)


@pytest.mark.parametrize("variant", ["gaps-time-bias", "recency", "published"])
def test_a_cell_of_the_leave_one_out_plan_runs(alone: None, tmp_path: Path, variant: str) -> None:
    tables = timed_tables(users=40)
    write_dataset(replace(tables, labels=[]), str(tmp_path / "last"), SplitRule(by="last", train=0.6, validation=0.2, test=0.2), shards=2)
    _, cells = read_plan("configs/compare/ml-1m-last.yaml")
    (config,) = [cell.config for cell in cells if (cell.variant, cell.seed) == (variant, 0)]
    assert (config.model.backbone["max_positions"], config.model.heads.tied) == (197, ("next",))
    first = config.train.first.model_copy(update={"epochs": 1})
    small = config.model_copy(
        update={
            "dataset": str(tmp_path / "last"),
            "model": config.model.model_copy(update={"channels": 8}),
            "train": config.train.model_copy(update={"first": first}),
        }
    )
    train(small, ALONE, tmp_path / "run", where="test", console=Console(active=False))
    state = json.loads((tmp_path / "run/stages/01-next/state.json").read_text())
    assert [event["metric"] for event in events(tmp_path / "run", "epoch")] == ["ndcg@10"] * 2
    assert state["test_examples"] == [40]
    (ndcg,), (hits,) = state["scores_by_metric"]["ndcg@10"], state["scores_by_metric"]["hr@10"]
    assert 0 < ndcg < hits <= 1
