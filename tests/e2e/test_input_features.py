"""Runs that read side features: what learns, what a task never sees, what grows, what is refused, what stays as ever without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import events, settings, small_tables, train_here, weights

from dist_teracon.continual.method import Method
from dist_teracon.continual.open_inputs import closed_features
from dist_teracon.continual.pseudo_labels import write_pseudo_labels
from dist_teracon.continual.registry import method_class
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.continual.replayed_users import PastPool, pool_of_users
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.input_features import CLOSED, FeatureColumn, InputTables
from dist_teracon.data.loader import TrainingLoader, evaluation_batches
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.tables import Tables
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.errors import ConfigError
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.restore import restore_method

RULE = SplitRule(train=0.6, validation=0.2, test=0.2)
NAMES = ["age", "region", "kind"]


def with_features(tables: Tables, *, shuffled: bool = False, regions: int = 3) -> Tables:
    """Return tables with users' `age`, which is the label of the task, and `region`, and items' `kind`; `age` shuffled where asked."""
    draw, users = np.random.default_rng(3), len(tables.sequences.user_ids)
    (label,) = (table for table in tables.labels if table.name == "age")
    age = np.zeros(users, dtype=np.int32)
    age[label.users] = 1 + label.values
    region = draw.integers(0, regions + 1, users).astype(np.int32)
    if shuffled:
        age = draw.permutation(age)
    inputs = InputTables(
        user=[FeatureColumn("age", ["c0", "c1", "c2"]), FeatureColumn("region", [f"r{n}" for n in range(regions)])],
        item=[FeatureColumn("kind", ["a", "b"])],
        item_values=(np.arange(len(tables.items), dtype=np.int32) % 3)[:, None],
        closed={"age": ("age",), "gender": ("region",)},
    )
    return replace(tables, sequences=replace(tables.sequences, features=np.stack([age, region], axis=1)), inputs=inputs)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bare`; `fed` with features; `shuffled`, the same with another `age`; `more` users and regions; `later`, a version of two tasks."""
    folder, tables = tmp_path_factory.mktemp("sets"), small_tables()
    two = replace(tables, labels=[tables.labels[1]])
    made = {
        "bare": two, "fed": with_features(tables), "shuffled": with_features(tables, shuffled=True), "two": with_features(two),
        "more": with_features(small_tables(users=220, items=44), regions=4),
    }  # fmt: skip
    for name, part in made.items():
        write_dataset(part, str(folder / name), RULE, shards=4)
    append(str(folder / "two"), str(folder / "more"), str(folder / "later"))
    return folder


def config_of(dataset: Path, features: Sequence[str] | str = "all", *, method: str = "teracon", tasks: Any = None) -> dict[str, Any]:
    value = {**settings(str(dataset), method=method), "tasks": tasks}
    for stage in ("first", "second", "later"):
        value["train"][stage]["epochs"] = 1
    return {**value, "model": {**value["model"], "input_features": features, "dropout": 0.1}}


@pytest.fixture(scope="module")
def run(sets: Path, alone: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    return train_here(config_of(sets / "fed", tasks=["next", "age", "gender"]), folder)


def opened(uri: Path, method: str = "teracon") -> Dataset:
    dataset = Dataset(str(uri))
    dataset.read_inputs(NAMES, closed=closed_features(dataset.info, method_class(method), ["next", "age", "gender"]))
    return dataset


@torch.no_grad()
def logits(method: Method, dataset: Dataset, task: str) -> torch.Tensor:
    batches = evaluation_batches(
        dataset,
        dataset.info.task(task),
        Split.TEST,
        mask_index=method.mask_index(task),
        batch=64,
        rank=0,
        world_size=1,
        max_users=None,
        seed=0,
    )
    return torch.cat([method.head(task)(method.encode(batch, task)) for batch in batches])


def test_features_are_learned_in_the_first_stage_and_after(run: Path) -> None:
    learned = weights(run, "01-next")
    assert learned["backbone.user_features.tables.0"].shape == (4, 8)
    assert learned["heads.next.weight"].shape == (40, 16 + 8)
    for name in ("user_features.tables.0", "user_features.tables.1", "item_features.tables.0"):
        assert (learned[f"backbone.{name}"].abs().sum(1) > 0).all(), name
    state = json.loads((run / "stages/03-gender/state.json").read_text())
    assert state["input_values"] == {"age": 4, "region": 4, "kind": 3}
    assert {event["past"] for event in events(run, "pseudo_labels")} == {"next", "age"}


def test_shuffling_a_tasks_own_attribute_changes_none_of_its_logits(run: Path, sets: Path) -> None:
    method, fed, shuffled = restore_method(run), opened(sets / "fed"), opened(sets / "shuffled")
    assert torch.equal(logits(method, fed, "age"), logits(method, shuffled, "age"))
    for other in ("next", "gender"):
        assert not torch.equal(logits(method, fed, other), logits(method, shuffled, other)), other
    # it is not seen because it is closed: opened, it tells
    for dataset in (fed, shuffled):
        dataset.read_inputs(NAMES, closed={})
    assert not torch.equal(logits(method, fed, "age"), logits(method, shuffled, "age"))


def test_what_is_excluded_is_closed_too(run: Path, sets: Path) -> None:
    dataset, method = opened(sets / "fed"), restore_method(run)
    expected = logits(method, dataset, "gender")
    for index in range(dataset.info.shards):
        features = dataset.shard(index).features
        assert features is not None
        features[:, 1] = np.roll(features[:, 1], 1)
    assert torch.equal(logits(method, dataset, "gender"), expected)


def test_replayed_rows_and_pseudo_labels_hold_what_is_open_to_the_past_task(sets: Path, tmp_path: Path) -> None:
    dataset, seen = opened(sets / "fed"), []

    def teach(batch: PackedBatch, parts: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
        assert batch.user_features is not None
        seen.extend(zip((task for task, rows in parts for _ in range(rows)), batch.user_features.tolist(), strict=True))
        return [torch.zeros(rows, 2) for _, rows in parts]

    pools = [PastPool(past, place, pool_of_users(dataset, "gender", past, seed=0, share=1)) for place, past in enumerate(("next", "age"))]
    list(write_pseudo_labels(teach, dataset, pools, folder=tmp_path, shards=range(4), batch=7))
    assert {age == CLOSED for task, (age, _) in seen if task == "age"} == {True}
    assert CLOSED not in {age for task, (age, _) in seen if task == "next"}
    assert CLOSED not in {region for _, (_, region) in seen}
    for pool in pools:
        stream = ReplayStream(dataset, pool.rows, None, key="k", seed=0, shards=range(4), task=pool.task)
        rows, _, _ = stream.draw(50)
        assert rows.features is not None
        assert (rows.features[:, 0] == CLOSED).all() == (pool.task == "age")


def test_rows_that_several_tasks_share_lack_what_is_closed_to_one(sets: Path) -> None:
    dataset = opened(sets / "fed", "mtl")
    assert dataset.closed == {"age": {"age", "region"}, "gender": {"age", "region"}}
    tasks = [dataset.info.task(name) for name in ("age", "gender")]
    for batch in TrainingLoader(dataset, tasks, mask_index=0, batch=64, seed=0, rank=0, world_size=1).epoch(1):
        assert batch.user_features is not None
        assert (batch.user_features == CLOSED).all()
    plain = opened(sets / "fed")
    assert plain.closed == {"age": {"age"}, "gender": {"region"}}


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sinmo", "fineall", "peterrec", "piggyback", "hat", "conure", "lowrank")]


@pytest.mark.parametrize("method", ["mtl", *_SLOW])
def test_every_method_reads_them(method: str, sets: Path, alone: None, tmp_path: Path) -> None:
    train_here(config_of(sets / "fed", method=method, tasks=["next", "age", "gender"]), tmp_path / "run")
    learned = restore_method(tmp_path / "run")
    fed, shuffled = opened(sets / "fed", method), opened(sets / "shuffled", method)
    assert torch.equal(logits(learned, fed, "age"), logits(learned, shuffled, "age"))
    assert not torch.equal(logits(learned, fed, "next"), logits(learned, shuffled, "next"))


def test_without_features_a_run_is_that_on_a_data_set_without(sets: Path, alone: None, tmp_path: Path) -> None:
    made = []
    for name in ("bare", "two"):
        train_here(config_of(sets / name, []), tmp_path / name)
        made.append((tmp_path / name / "stages/02-age/model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_a_later_versions_items_and_values_are_learned(sets: Path, alone: None, tmp_path: Path) -> None:
    run = train_here(config_of(sets / "two"), tmp_path / "run")
    train_here(config_of(sets / "later"), run, added=AddedTask("gender"))
    before, after = weights(run, "02-age"), weights(run, "03-gender")
    assert [part["backbone.user_features.tables.1"].shape[0] for part in (before, after)] == [4, 5]
    assert [part["backbone.item_features.values"].shape[0] for part in (before, after)] == [42, 44]
    values = Dataset(str(sets / "later"))
    values.read_inputs(["kind"])
    assert torch.equal(after["backbone.item_features.values"], torch.from_numpy(values.item_features()))
    assert restore_method(run, stage=2).context.inputs.user == (4, 4)
    assert restore_method(run).context.inputs.user == (4, 5)


@pytest.mark.parametrize(
    ("dataset", "features", "said"),
    [
        ("bare", "all", r"model.input_features: data set 'small' has no features of users or items; declare them as `inputs`"),
        ("two", ["regoin"], r"has no feature 'regoin'; did you mean 'region'\? \(it has: age, region, kind\)"),
    ],
)
def test_features_that_a_data_set_does_not_have_are_refused(
    dataset: str, features: Any, said: str, sets: Path, alone: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_here(config_of(sets / dataset, features), tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
