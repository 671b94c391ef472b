"""A finished run learns one more task, from a later version of its data set with more users and items."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import ALONE, checked, events, results, run_worlds, settings, small_tables, train_here, weights, what_lasts

from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.registry import resolve_method
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import read_item_vectors
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import SplitRule
from dist_teracon.errors import ConfigError, DataError, RunError, TeraconError
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.item_growth import grown_tensors
from dist_teracon.train.run_folder import RunFolder

ITEMS = "backbone.item_embedding.weight"
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


def vectors_file(path: Path, dataset: str, **columns: Any) -> str:
    """Vectors of width 3 of all items and of one that is not in the data set; `columns` replace the file's."""
    items = [*Dataset(dataset).vocabulary("items")["item"].to_pylist()[2:], "elsewhere"]
    drawn = np.random.default_rng(0).normal(size=(len(items), 3))
    pq.write_table(pa.table({"item": items, "vector": drawn.tolist(), **columns}), path)
    return str(path)


@pytest.fixture(scope="module")
def runs(versions: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, and copies of it to which `gender` was added: undisturbed, killed three times, with neighbours."""
    folder = tmp_path_factory.mktemp("runs")
    old, new = versions
    run_worlds([{"config": config_of(old), "run": str(folder / "base")}], folder)
    for name in ("whole", "killed", "neighbours", "text"):
        shutil.copytree(folder / "base", folder / name)
    killed: dict[str, Any] = {"config": config_of(new), "run": str(folder / "killed"), "added": ["gender", "unseen"]}
    jobs = [{**killed, "run": str(folder / "whole")}, *({**killed, "moment": moment} for moment in MOMENTS), killed, killed]
    jobs.append({"config": config_of(new), "run": str(folder / "neighbours"), "added": ["gender", "neighbours"]})
    text = {"config": config_of(new), "run": str(folder / "text"), "added": ["gender", "text", vectors_file(folder / "v.parquet", new)]}
    jobs += [{**text, "moment": "checkpoint:3:1"}, text]
    codes = run_worlds(jobs, folder)
    assert [code[-1] for code in codes] == [0, *[-9] * len(MOMENTS), 0, 0, 0, -9, 0]
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
    assert (before[ITEMS].shape[0], after[ITEMS].shape[0]) == (OLD_ITEMS, NEW_ITEMS)
    assert after["heads.next.weight"].shape == before["heads.next.weight"].shape
    state = json.loads((runs / "whole" / "stages" / "03-gender" / "state.json").read_text())
    assert state["growth"] == {"items_before": OLD_ITEMS, "items": NEW_ITEMS, "new_items": "unseen", "started": 0}
    assert json.loads((runs / "neighbours" / "stages" / "03-gender" / "state.json").read_text())["growth"]["started"] == 2


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
    method = kind(MethodContext(model=config.model, seed=config.seed, num_items=dataset.info.items, tasks=tasks, training=training), chosen)
    for task in tasks[:2]:
        method.begin_task(task)
        method.end_task()
    return method


def test_predictions_of_old_tasks_stay_until_training(runs: Path, versions: tuple[str, str], pack: Any) -> None:
    old, new = (Dataset(uri) for uri in versions)
    tensors = weights(runs / "base", "02-likes")
    before = method_of(runs / "base", old, ["next", "likes"])
    before.load_state_dict(tensors)
    after = method_of(runs / "base", new, ["next", "likes", "gender"])
    grown, report = grown_tensors(tensors, [ITEMS], new, task="gender", new_items="unseen", runtime=ALONE)
    after.load_state_dict(grown)
    rows = [[5, 42, 9, 43], [2, 3, 4], [NEW_ITEMS - 1]]
    unseen = [[item if item < OLD_ITEMS else 1 for item in row] for row in rows]
    assert report["items"] == NEW_ITEMS
    with torch.no_grad():
        for number, task in enumerate(("next", "likes")):
            mask_indices = [number] * len(rows)
            expected = before.head(task)(before.encode(pack(unseen, tasks=mask_indices), task))
            assert torch.equal(after.head(task)(after.encode(pack(rows, tasks=mask_indices), task)), expected)
        after.begin_task(new.info.task("gender"))
        for number, task in enumerate(("next", "likes")):
            mask_indices = [number] * len(rows)
            expected = before.head(task)(before.encode(pack(unseen, tasks=mask_indices), task))
            torch.testing.assert_close(after.head(task)(after.encode(pack(rows, tasks=mask_indices), task)), expected, rtol=1e-5, atol=1e-6)


def test_neighbours_are_the_known_items_beside_a_new_one(versions: tuple[str, str]) -> None:
    new = Dataset(versions[1])
    table = torch.randn(OLD_ITEMS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, report = grown_tensors({ITEMS: table, "x": table}, [ITEMS], new, task="gender", new_items="neighbours", runtime=ALONE)
    beside: dict[int, list[int]] = {item: [] for item in range(OLD_ITEMS, NEW_ITEMS)}
    for shard in range(new.info.shards):
        data, labels = new.shard(shard), new.labels("gender", shard)
        for user, split in zip(labels.users.tolist(), labels.split.tolist(), strict=True):
            sequence = data.values[data.offsets[user] : data.offsets[user + 1]].tolist()
            for left, right in zip(sequence, sequence[1:], strict=False):  # noqa: RUF007
                for one, other in ((left, right), (right, left)):
                    if split == 0 and one in beside and 2 <= other < OLD_ITEMS:
                        beside[one].append(other)
    assert torch.equal(found[ITEMS][:OLD_ITEMS], table)
    assert torch.equal(found["x"], table)
    for item, others in beside.items():
        wanted = table[others].mean(0) if others else table[1]
        torch.testing.assert_close(found[ITEMS][item], wanted, rtol=1e-12, atol=1e-12)
    assert report["started"] == sum(bool(others) for others in beside.values()) > 0


def test_given_vectors_reach_new_rows_by_the_map_that_fits_the_known_ones(versions: tuple[str, str], tmp_path: Path) -> None:
    """Known rows that are a linear map of their vectors, and an intercept: the new rows are that map of theirs."""
    new = Dataset(versions[1])
    uri = vectors_file(tmp_path / "v.parquet", versions[1])
    given = read_item_vectors(uri, new)
    assert (given.items.tolist(), given.unknown) == (list(range(2, NEW_ITEMS)), 1)
    turn = np.random.default_rng(1).normal(size=(3, 5))
    rows = torch.from_numpy(given.vectors.astype(np.float64) @ turn + 2.0)
    table = torch.cat([torch.full((2, 5), 7.0, dtype=torch.float64), rows[: OLD_ITEMS - 2]])
    found, report = grown_tensors({ITEMS: table}, [ITEMS], new, task="gender", new_items="text", runtime=ALONE, vectors=uri)
    assert torch.equal(found[ITEMS][:OLD_ITEMS], table)
    torch.testing.assert_close(found[ITEMS][OLD_ITEMS:], rows[OLD_ITEMS - 2 :], rtol=0, atol=0.1)
    assert (report["started"], report["mapped_from"], report["given_unknown"]) == (NEW_ITEMS - OLD_ITEMS, OLD_ITEMS - 2, 1)
    assert report["explained"] > 0.99


def test_vectors_of_new_items_alone_are_taken_as_they_are(versions: tuple[str, str], tmp_path: Path) -> None:
    new = Dataset(versions[1])
    last = new.vocabulary("items").to_pylist()[-1]
    assert last["index"] == NEW_ITEMS - 1
    pq.write_table(pa.table({"item": [last["item"]], "vector": [[1.0, 2.0, 3.0]]}), tmp_path / "v.parquet")
    table = torch.arange(OLD_ITEMS * 3.0).view(-1, 3)
    options: dict[str, Any] = {"task": "gender", "new_items": "text", "runtime": ALONE, "vectors": str(tmp_path / "v.parquet")}
    found, report = grown_tensors({ITEMS: table}, [ITEMS], new, **options)
    assert found[ITEMS][OLD_ITEMS:].tolist() == [table[1].tolist(), [1.0, 2.0, 3.0]]
    assert report["started"] == 1
    with pytest.raises(RunError, match="vectors are 3 wide and the model 4"):
        grown_tensors({ITEMS: torch.zeros(OLD_ITEMS, 4)}, [ITEMS], new, **options)


def test_a_run_that_grew_by_given_vectors_says_so_and_survives_a_kill(runs: Path) -> None:
    growth = json.loads((runs / "text" / "stages" / "03-gender" / "state.json").read_text())["growth"]
    assert (growth["new_items"], growth["started"], growth["mapped_from"]) == ("text", NEW_ITEMS - OLD_ITEMS, OLD_ITEMS - 2)
    (listed,) = json.loads((runs / "text" / "additions.json").read_text())
    assert listed["vectors"] == hashlib.sha256((runs / "v.parquet").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"vector": [[1.0, 2.0]] * (NEW_ITEMS - 2) + [[1.0]]}, "item 'elsewhere' has a vector of 1 numbers, the first of 2"),
        ({"vector": [[1.0]] * (NEW_ITEMS - 2) + [[float("nan")]]}, "item 'elsewhere' has a number that is not finite"),
        ({"vector": [1.0] * (NEW_ITEMS - 1)}, "column 'vector': expected a list of numbers, got double"),
        ({"vector": [[None]] * (NEW_ITEMS - 1)}, "column 'vector': expected a list of numbers, got list<"),
        ({"item": ["twice"] * (NEW_ITEMS - 1)}, "item 'twice': expected one vector an item, got several"),
        ({"item": [1.5] * (NEW_ITEMS - 1)}, "column 'item': expected ids as text or whole numbers, got 1.5"),
        ({"item": [None, *map(str, range(NEW_ITEMS - 2))]}, "row 1: no item id"),
    ],
)
def test_damaged_vectors_are_named(versions: tuple[str, str], tmp_path: Path, columns: dict[str, Any], text: str) -> None:
    uri = vectors_file(tmp_path / "v.parquet", versions[1], **columns)
    with pytest.raises(DataError, match=rf"v\.parquet: .*{text}"):
        read_item_vectors(uri, Dataset(versions[1]))


@pytest.mark.usefixtures("alone")
def test_vectors_that_cannot_serve_are_refused_and_change_nothing(runs: Path, versions: tuple[str, str], tmp_path: Path) -> None:
    _, new = versions
    run = tmp_path / "run"
    shutil.copytree(runs / "base", run)

    def refused(file: Path, text: str) -> None:
        with pytest.raises(TeraconError, match=text):
            train_here(config_of(new), run, added=AddedTask("gender", "text", str(file)))
        assert not (run / "additions.json").exists()

    refused(tmp_path / "none.parquet", "no such file")
    (tmp_path / "no.parquet").write_bytes(b"no")
    refused(tmp_path / "no.parquet", "cannot be read as Parquet")
    pq.write_table(pa.table({"item": ["x"], "v": [1]}), tmp_path / "v.parquet")
    refused(tmp_path / "v.parquet", "has no column 'vector'")
    pq.write_table(pa.table({"item": ["x"], "vector": [[1.0]]}), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "has no vector of a new item")
    other = vectors_file(tmp_path / "other.parquet", new, item=[f"y{n}" for n in range(NEW_ITEMS - 1)])
    with pytest.raises(RunError, match=r"with other vectors than .*other\.parquet holds"):
        train_here(config_of(new), runs / "text", added=AddedTask("gender", "text", other))
    for vectors in ({"new_items": "text"}, {"vectors": "v.parquet"}):
        with pytest.raises(ConfigError, match="go together"):
            AddedTask("gender", **vectors)


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
    refused("seed was 0 and is now 7", seed=7)
    stage = {**config_of(new)["train"], "later": {**config_of(new)["train"]["later"], "epochs": 1}}
    refused(r"train.later.epochs was 2 and is now 1 \(stage 3, task 'gender'\)", train=stage)
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


def test_an_addition_that_was_killed_before_it_began_leaves_nothing_to_another(
    alone: None, versions: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = ({**settings(version, method="fineall", max_steps=2), "tasks": ["next"]} for version in versions)
    run, never = train_here(old, tmp_path / "run"), tmp_path / "never"
    shutil.copytree(run, never)
    write = RunFolder.write_json

    def dying(folder: RunFolder, name: str, value: Any) -> None:
        write(folder, name, value)
        if name == "additions.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_json", dying)
        train_here(new, run, added=AddedTask("gender", "neighbours"))
    for folder in (run, never):
        train_here(old, folder, added=AddedTask("likes"))
        train_here(old, folder)  # finds all of it finished
        train_here(new, folder, added=AddedTask("gender", "unseen"))
    assert json.loads((run / "additions.json").read_text()) == json.loads((never / "additions.json").read_text())
    assert what_lasts(run) == what_lasts(never)


def test_the_plain_command_finds_a_run_with_an_addition_finished(runs: Path, versions: tuple[str, str], tmp_path: Path) -> None:
    run, config = tmp_path / "run", config_of(versions[0])
    shutil.copytree(runs / "whole", run)
    before = what_lasts(run)
    run_worlds([{"config": config, "run": str(run)}], tmp_path)
    assert what_lasts(run) == before
    other = {**config, "train": {**config["train"], "first": {**config["train"]["first"], "learning_rate": 0.5}}}
    shutil.rmtree(run / "stages" / "03-gender")
    jobs = [{"config": other, "run": str(run), "fails": True}, {"config": config, "run": str(run), "fails": True}]
    assert [code[-1] for code in run_worlds(jobs, tmp_path)] == [2, 2]


def test_tasks_alone_that_were_begun_with_the_added_one_go_on_with_the_same_command(
    alone: None, versions: tuple[str, str], tmp_path: Path
) -> None:
    old, new = ({**settings(version, method="popularity", max_steps=1), "tasks": None} for version in versions)
    train_here(old, tmp_path / "run")
    for workers in (2, 3):  # where a run trains may change
        train_here({**new, "launch": {"workers": workers}}, tmp_path / "run", added=AddedTask("gender", "unseen"), with_single_task=True)
    assert len(results(tmp_path / "run")["single_task"]) == 3
    assert not (tmp_path / "run/single-task/additions.json").exists()


def test_tasks_alone_of_the_run_before_get_the_added_one(alone: None, versions: tuple[str, str], tmp_path: Path) -> None:
    old, new = ({**settings(version, method="popularity", max_steps=1), "tasks": None} for version in versions)
    train_here(old, tmp_path / "run", with_single_task=True)
    for _ in range(2):
        train_here(new, tmp_path / "run", added=AddedTask("gender", "unseen"), with_single_task=True)
    assert len(results(tmp_path / "run")["single_task"]) == 3
    assert [entry["task"] for entry in json.loads((tmp_path / "run/single-task/additions.json").read_text())] == ["gender"]
