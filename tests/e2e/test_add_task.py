"""A finished run learns one more task, from a later version of its data set with more users and items."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ALONE, checked, events, results, run_worlds, settings, small_tables, train_here, weights, what_lasts

from dist_teracon.continual.method import Setup, resolve_method
from dist_teracon.data.append import append
from dist_teracon.data.prepare import write_dataset
from dist_teracon.data.schema import SplitRule
from dist_teracon.data.shards import Dataset
from dist_teracon.errors import RunError
from dist_teracon.train.growth import AddedTask, grown_tensors

RULE = SplitRule(train=0.6, validation=0.2, test=0.2)
OLD_ITEMS, NEW_ITEMS = 42, 44
MOMENTS = ("pseudo:3:5", "checkpoint:3:1", "finished:3")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """160 users, 40 items and the tasks next and likes; then 60 more users, 2 more items and the task gender."""
    folder = tmp_path_factory.mktemp("versions")
    tables = small_tables()
    write_dataset(replace(tables, labels=tables.labels[:1]), str(folder / "old"), RULE, shards=8)
    write_dataset(small_tables(users=220, items=47), str(folder / "added"), RULE, shards=8)
    append(str(folder / "old"), str(folder / "added"), str(folder / "new"))
    return str(folder / "old"), str(folder / "new")


def config_of(dataset: str) -> dict[str, Any]:
    return {**settings(dataset, zero=2), "tasks": None}


@pytest.fixture(scope="module")
def runs(versions: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, and copies of it to which `gender` was added: undisturbed, killed three times, with neighbours."""
    folder = tmp_path_factory.mktemp("runs")
    old, new = versions
    run_worlds([{"config": config_of(old), "run": str(folder / "base")}], folder)
    for name in ("whole", "killed", "neighbours"):
        shutil.copytree(folder / "base", folder / name)
    killed: dict[str, Any] = {"config": config_of(new), "run": str(folder / "killed"), "added": ["gender", "unseen"]}
    jobs = [{**killed, "run": str(folder / "whole")}, *({**killed, "moment": moment} for moment in MOMENTS), killed, killed]
    jobs.append({"config": config_of(new), "run": str(folder / "neighbours"), "added": ["gender", "neighbours"]})
    codes = run_worlds(jobs, folder)
    assert [code[-1] for code in codes] == [0, *[-9] * len(MOMENTS), 0, 0, 0]
    return folder


def test_the_new_task_is_one_more_row_and_the_old_ones_stay(runs: Path) -> None:
    base, grown = results(runs / "base"), results(runs / "whole")
    assert grown["tasks"] == ["next", "likes", "gender"]
    assert grown["scores"][:2] == base["scores"]
    assert len(grown["scores"][2]) == 3
    for stage in ("01-next", "02-likes"):
        for path in (runs / "base" / "stages" / stage).rglob("*.*"):
            if path.is_file():
                assert (
                    runs / "whole" / "stages" / stage / path.relative_to(runs / "base" / "stages" / stage)
                ).read_bytes() == path.read_bytes()
    assert len(json.loads((runs / "whole" / "baselines.json").read_text())["popularity"]) == 3


def test_item_tables_grow_and_heads_of_old_tasks_do_not(runs: Path) -> None:
    before, after = weights(runs / "base", "02-likes"), weights(runs / "whole", "03-gender")
    assert (before["backbone.items"].shape[0], after["backbone.items"].shape[0]) == (OLD_ITEMS, NEW_ITEMS)
    assert after["heads.next.weight"].shape == before["heads.next.weight"].shape
    state = json.loads((runs / "whole" / "stages" / "03-gender" / "state.json").read_text())
    assert state["growth"] == {"items_before": OLD_ITEMS, "items": NEW_ITEMS, "new_items": "unseen", "from_neighbours": 0}
    assert json.loads((runs / "neighbours" / "stages" / "03-gender" / "state.json").read_text())["growth"]["from_neighbours"] == 2


def test_killed_at_three_moments_it_ends_bit_for_bit_as_undisturbed(runs: Path) -> None:
    assert what_lasts(runs / "killed") == what_lasts(runs / "whole")
    assert len(events(runs / "killed", "stage")) == 3
    for name in ("config.yaml", "dataset.json", "additions.json"):
        assert (runs / "killed" / name).read_bytes() == (runs / "whole" / name).read_bytes()
    assert not list((runs / "killed").glob("stages/*/progress"))


def method_of(run: Path, dataset: Dataset, names: list[str]) -> Any:
    """A method that has begun and ended tasks, its weights still fresh."""
    config = checked(config_of(dataset.uri))
    kind, chosen = resolve_method(config, where="test")
    tasks = tuple(dataset.info.task(name) for name in names)
    training = tuple(config.train.stage(number, task.name) for number, task in enumerate(tasks))
    method = kind(Setup(model=config.model, seed=config.seed, items=dataset.info.items, tasks=tasks, training=training), chosen)
    for task in tasks[:2]:
        method.begin_task(task)
        method.end_task()
    return method


def test_predictions_of_old_tasks_stay_until_training(runs: Path, versions: tuple[str, str], pack: Any) -> None:
    old, new = (Dataset(uri) for uri in versions)
    tensors = weights(runs / "base", "02-likes")
    before = method_of(runs / "base", old, ["next", "likes"])
    before.load_tensors(tensors)
    after = method_of(runs / "base", new, ["next", "likes", "gender"])
    grown, report = grown_tensors(tensors, new, task="gender", new_items="unseen", runtime=ALONE)
    after.load_tensors(grown)
    rows = [[5, 42, 9, 43], [2, 3, 4], [NEW_ITEMS - 1]]
    unseen = [[item if item < OLD_ITEMS else 1 for item in row] for row in rows]
    assert report["items"] == NEW_ITEMS
    with torch.no_grad():
        for number, task in enumerate(("next", "likes")):
            slots = [number] * len(rows)
            expected = before.head(task)(before.encode(pack(unseen, tasks=slots), task))
            assert torch.equal(after.head(task)(after.encode(pack(rows, tasks=slots), task)), expected)
        after.begin_task(new.info.task("gender"))
        for number, task in enumerate(("next", "likes")):
            slots = [number] * len(rows)
            expected = before.head(task)(before.encode(pack(unseen, tasks=slots), task))
            torch.testing.assert_close(after.head(task)(after.encode(pack(rows, tasks=slots), task)), expected, rtol=1e-5, atol=1e-6)


def test_neighbours_are_the_known_items_beside_a_new_one(versions: tuple[str, str]) -> None:
    new = Dataset(versions[1])
    table = torch.randn(OLD_ITEMS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, report = grown_tensors({"backbone.items": table, "x": table}, new, task="gender", new_items="neighbours", runtime=ALONE)
    beside: dict[int, list[int]] = {item: [] for item in range(OLD_ITEMS, NEW_ITEMS)}
    for shard in range(new.info.shards):
        data, labels = new.shard(shard), new.labels("gender", shard)
        for user, split in zip(labels.users.tolist(), labels.split.tolist(), strict=True):
            sequence = data.values[data.offsets[user] : data.offsets[user + 1]].tolist()
            for left, right in zip(sequence, sequence[1:], strict=False):  # noqa: RUF007
                for one, other in ((left, right), (right, left)):
                    if split == 0 and one in beside and 2 <= other < OLD_ITEMS:
                        beside[one].append(other)
    assert torch.equal(found["backbone.items"][:OLD_ITEMS], table)
    assert torch.equal(found["x"], table)
    for item, others in beside.items():
        wanted = table[others].mean(0) if others else table[1]
        torch.testing.assert_close(found["backbone.items"][item], wanted, rtol=1e-12, atol=1e-12)
    assert report["from_neighbours"] == sum(bool(others) for others in beside.values()) > 0


@pytest.mark.usefixtures("alone")
def test_an_addition_goes_on_only_as_it_began(runs: Path, versions: tuple[str, str]) -> None:
    _, new = versions
    with pytest.raises(RunError, match="was added with --new-items unseen; use that again"):
        train_here(config_of(new), runs / "whole", added=AddedTask("gender", "neighbours"))


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_added_is_refused_and_changes_nothing(runs: Path, versions: tuple[str, str], tmp_path: Path) -> None:
    _, new = versions
    run = tmp_path / "run"
    shutil.copytree(runs / "base", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    def refused(text: str, dataset: str = new, task: str = "gender", folder: Path = run, **changes: Any) -> None:
        values = config_of(dataset)
        with pytest.raises(RunError, match=text):
            train_here({**values, **changes}, folder, added=AddedTask(task))

    refused("is no run yet", folder=tmp_path / "none")
    refused("has learned 'likes' already", task="likes")
    refused("differ in: seed", seed=7)
    tables = small_tables()
    write_dataset(replace(tables, name="another"), str(tmp_path / "other"), RULE, shards=8)
    refused("neither the one of this run nor a version of it", dataset=str(tmp_path / "other"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before
    (run / "stages" / "02-likes" / "state.json").unlink()
    refused("stage 'likes' is not finished")
    assert not (run / "additions.json").exists()


@pytest.mark.usefixtures("alone")
def test_a_task_that_the_data_set_has_already_is_added_without_a_new_version(small: str, tmp_path: Path) -> None:
    """Two tasks and then a third end as three tasks learned at once, for nothing of the third was known before."""
    run = train_here(settings(small, tasks=("next", "likes")), tmp_path / "added")
    train_here(settings(small, tasks=("next", "likes")), run, added=AddedTask("age"))
    whole = train_here(settings(small, tasks=("next", "likes", "age")), tmp_path / "whole")
    assert results(run) == results(whole)
    ours, theirs = weights(run, "03-age"), weights(whole, "03-age")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert np.isfinite(results(run)["scores"][2]).all()
