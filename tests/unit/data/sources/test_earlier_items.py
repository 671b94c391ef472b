"""What users took and sequences do not tell, as it came before or is too rare: kept, so that rankings leave it out too."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import Split
from dist_teracon.data.summary import taken_but_ranked
from dist_teracon.evaluate.baseline_table import _left_out
from dist_teracon.evaluate.candidates import items_left_out

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
from event_tables import csv

START, LENGTH, USERS = 1_600_000_000, 5, 50
TIMES = {"by": "time", "labels_from": START + 400, "validation_from": START + 600, "test_from": START + 800}
HISTORY = {"events": {"type": "view"}, "length": LENGTH, "min_count": 3, "keep": ["time"], "repeats": False}
BUYS = {"kind": "item", "events": {"type": "buy"}, "repeats": False}
PARTS = {"train": 0.5, "validation": 0.25, "test": 0.25}


def table(*, until: int = 1000) -> dict[str, list]:
    """Events of 50 users, 4 to 29 each, at moments of their own; some items are too rare for the catalogue."""
    draw, rows = np.random.default_rng(3), []
    for user in range(USERS):
        moments = sorted(draw.choice(1000, size=int(draw.integers(4, 30)), replace=False).tolist())
        for moment in moments:
            kind, item = ("view", "buy")[int(draw.random() < 0.2)], int(draw.geometric(0.08))
            rows.append((f"u{user:02d}", f"i{item:02d}", START + moment, kind))
    kept = [row for row in rows if row[2] < START + until]
    return dict(zip(("user", "item", "timestamp", "type"), map(list, zip(*kept, strict=True)), strict=True))


def made(
    folder: Path, *, split: dict = PARTS, history: dict = HISTORY, buys: dict = BUYS, events: dict | None = None, **options
) -> Dataset:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "events.csv").write_bytes(csv(events or table()))
    recipe = parse_recipe({"history": history, "tasks": {"buys": buys}, "split": split})
    prepare("events", str(folder), str(folder / "out"), recipe=recipe, shards=2, **options)
    return Dataset(str(folder / "out"))


def by_row(dataset: Dataset) -> dict[str, tuple[list[str | None], list[str], int, int]]:
    """Return by each row's name its items (None for unseen ones), what is kept beside, and when the first and the last of them were."""
    names, found = [*dataset.vocabulary("items")["item"].to_pylist(), *dataset.earlier_items()], {}
    for shard in range(dataset.info.shards):
        rows = pq.read_table(Path(dataset.uri) / f"users/shard-{shard:05d}.parquet").to_pylist()
        values, offsets = dataset.earlier(shard)
        for row, first, end in zip(rows, offsets[:-1], offsets[1:], strict=True):
            found[row["user_id"]] = (
                [names[i] for i in row["sequence"]],
                [names[i] for i in values[first:end]],
                row["times"][0],
                row["times"][-1],
            )
    return found


def views(events: dict, user: str, *, before: int) -> list[str]:
    rows = zip(*events.values(), strict=True)
    return [item for name, item, time, kind in rows if name == user and kind == "view" and time < before]


@pytest.mark.parametrize("split", [PARTS, {"by": "last", **PARTS}, {**TIMES, **PARTS}], ids=["users", "last", "time"])
def test_each_row_has_what_was_taken_before_it(tmp_path, split):
    said: list[str] = []
    dataset, events = made(tmp_path / "data", split=split, log=said.append), table()
    catalogue, cut, again, strange = set(dataset.vocabulary("items")["item"].to_pylist()) - {None}, 0, 0, set()
    rare = 0
    for name, (items, earlier, first, last) in by_row(dataset).items():
        user = name.partition("@")[0]
        taken, inside = views(events, user, before=first), views(events, user, before=last + 1)[-len(items) :]
        assert len(earlier) == len(set(earlier))
        assert set(earlier) == {*taken, *(item for item in inside if item not in catalogue)}
        rare += bool(set(earlier) - set(taken))
        strange |= set(earlier) - catalogue
        assert len(items) == LENGTH or not taken
        cut += bool(taken)
        again += bool(set(items) & set(earlier))
    assert dataset.info.notes["cut_histories"] == cut > 20 and again > 5 and rare > 5
    assert strange == set(dataset.earlier_items()) != set()
    assert sum(line.startswith("repeats: rankings leave out what a user has taken; ") for line in said) == 1


@pytest.mark.parametrize("split", [PARTS, {"by": "last", **PARTS}, {**TIMES, **PARTS}], ids=["users", "last", "time"])
@pytest.mark.parametrize("task", ["next", "buys"])
def test_rankings_and_popularity_leave_it_out(tmp_path, split, task):
    """By hand, from the raw events: all views of a user that came before what is predicted."""
    dataset, events = made(tmp_path / "data", split=split), table()
    label_of, names = dataset.label_of_item(task), dataset.vocabulary("items")["item"].to_pylist()
    labels = names[2:] if task == "next" else dataset.vocabulary(task)["label"].to_pylist()
    label_by_name = {label: place for place, label in enumerate(labels)}
    info, checked = dataset.info.task(task), 0
    batches = evaluation_batches(
        dataset, info, Split.TEST, mask_index=0, batch=7, rank=0, world_size=1, max_users=None, seed=0, with_earlier=True
    )
    left_out = [items_left_out(b.values.numpy(), b.row_offsets.numpy(), label_of, earlier=b.earlier) for b in batches]
    every = [
        set(part.labels[low:high].tolist()) for part in left_out for low, high in zip(part.offsets[:-1], part.offsets[1:], strict=True)
    ]
    parts = [dataset.labels(task, shard).of(Split.TEST) for shard in range(dataset.info.shards)]
    rows = [
        (pq.read_table(Path(dataset.uri) / f"users/shard-{shard:05d}.parquet").slice(int(user), 1).to_pylist()[0])
        for shard, part in enumerate(parts)
        for user in part.users
    ]
    popularity = _left_out(dataset, info, parts)
    for number, (row, found) in enumerate(zip(rows, every, strict=True)):
        end = row["times"][-1] + (task == "buys")  # the last event is the first task's label
        taken = views(events, row["user_id"].partition("@")[0], before=end)
        expected = {label_by_name[item] for item in taken if item in label_by_name}
        assert found == expected == set(popularity.labels[popularity.offsets[number] : popularity.offsets[number + 1]].tolist())
        checked += len(taken) > LENGTH
    assert checked > 3


def test_it_is_kept_where_it_is_needed_alone(tmp_path):
    free = {**HISTORY, "repeats": True}
    never = made(tmp_path / "never", history=free, buys={**BUYS, "repeats": True})
    assert never.earlier(0) is None and not any(path.startswith("earlier/") for path in never.info.files)
    assert "events before these are ranked" in taken_but_ranked(never.info)
    whole = made(tmp_path / "whole", history={**HISTORY, "length": 100, "min_count": 1})
    assert whole.earlier(0) is None and taken_but_ranked(whole.info) is None
    one = made(tmp_path / "one", history=free)
    assert one.earlier(0) is not None and taken_but_ranked(one.info) is None
    # sequences, labels and splits are those of the data set without
    same = [path for path in never.info.files if not path.startswith("earlier/")]
    assert {path: one.info.files[path] for path in same} == {path: never.info.files[path] for path in same}


def test_filled_up_sequences_keep_it(tmp_path):
    plain, padded = (by_row(made(tmp_path / kind, history={**HISTORY, "padding": kind})) for kind in ("none", "token"))
    assert {name: set(row[1]) for name, row in plain.items()} == {name: set(row[1]) for name, row in padded.items()}


@pytest.mark.parametrize("named", [True, False], ids=["old-tasks-named", "old-tasks-left-out"])
def test_versions_keep_it(tmp_path, monkeypatch, named):
    """By hand, over a chain: refreshed, then a task more, then refreshed again; today's recipe may leave old tasks out."""
    monkeypatch.chdir(tmp_path)
    history = {**HISTORY, "repeats": not named}
    made(tmp_path / "early", events=table(until=500), history=history)
    for name, until in (("middle", 700), ("late", 1000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.csv").write_bytes(csv(table(until=until)))
    chain = [("middle", "early/out", "v1", True), ("middle", "v1", "v2", False), ("late", "v2", "v3", True)]
    for number, (source, parent, name, refresh) in enumerate(chain):
        tasks = {f"more{number}": {"kind": "item", "events": {"type": "buy"}}, **({"buys": BUYS} if named else {})}
        (tmp_path / "recipe.yaml").write_text(str({"history": history, "tasks": tasks, "split": PARTS}))
        options = ["--recipe", "recipe.yaml", "--append", parent, *(["--refresh"] if refresh else [])]
        assert main(["prepare", "events", source, name, *options]) == 0
    for name, until in (("v1", 700), ("v2", 700), ("v3", 1000)):
        dataset, checked = Dataset(name), 0
        for user, (items, earlier, first, last) in by_row(dataset).items():
            taken, before = (views(table(until=until), user, before=moment) for moment in (last + 1, first))
            assert {*earlier, *filter(None, items)} == set(taken), (name, user)
            assert set(before) <= set(earlier)
            checked += bool(before)
        assert dataset.info.excludes_seen("buys", None) and checked > 10
        assert not set(dataset.earlier_items()) & set(dataset.vocabulary("items")["item"].to_pylist())


def test_a_version_of_a_data_set_that_did_not_keep_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    free, again = {**HISTORY, "repeats": True}, {**BUYS, "repeats": True}
    made(tmp_path / "early", events=table(until=700), history=free, buys=again)
    recipe = {"history": free, "tasks": {"buys": again, "more": BUYS}, "split": PARTS}
    made(tmp_path / "late", history=free)
    (tmp_path / "recipe.yaml").write_text(str(recipe))
    assert main(["prepare", "events", "late", "grown", "--recipe", "recipe.yaml", "--append", "early/out"]) == 0
    (last,) = Dataset("grown").info.notes["appended"]
    assert last["left_out"]["old users with a full history, of whom it is not known what they took before"] > 10


def test_what_an_earlier_program_prepared_is_told(tmp_path):
    info = made(tmp_path / "data").info
    before = replace(info, files={path: entry for path, entry in info.files.items() if not path.startswith("earlier/")})
    assert "an earlier program prepared it: to leave them out, prepare it anew" in taken_but_ranked(before)
    by_time = made(tmp_path / "time", split={**TIMES, **PARTS}, history={**HISTORY, "repeats": True}, buys={**BUYS, "repeats": True}).info
    assert "the items of events before these are ranked; to leave them out, prepare it with `repeats: false`" in taken_but_ranked(by_time)
