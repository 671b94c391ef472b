"""What users took before their histories begin, where these are cut: kept, so that rankings leave it out too."""

from __future__ import annotations

import shutil
import sys
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


def by_row(dataset: Dataset) -> dict[str, tuple[list[str], list[str], int]]:
    """Return by each row's name its items, what was taken before these, and when the first of them was."""
    names, found = dataset.vocabulary("items")["item"].to_pylist(), {}
    for shard in range(dataset.info.shards):
        rows = pq.read_table(Path(dataset.uri) / f"users/shard-{shard:05d}.parquet").to_pylist()
        values, offsets = dataset.earlier(shard)
        for row, first, end in zip(rows, offsets[:-1], offsets[1:], strict=True):
            found[row["user_id"]] = ([names[i] for i in row["sequence"]], [names[i] for i in values[first:end]], row["times"][0])
    return found


def views(events: dict, user: str, *, before: int) -> list[str]:
    rows = zip(*events.values(), strict=True)
    return [item for name, item, time, kind in rows if name == user and kind == "view" and time < before]


@pytest.mark.parametrize("split", [PARTS, {"by": "last", **PARTS}, {**TIMES, **PARTS}], ids=["users", "last", "time"])
def test_each_row_has_what_was_taken_before_it(tmp_path, split):
    said: list[str] = []
    dataset, events = made(tmp_path / "data", split=split, log=said.append), table()
    catalogue, cut, again = set(dataset.vocabulary("items")["item"].to_pylist()) - {None}, 0, 0
    for name, (items, earlier, first) in by_row(dataset).items():
        taken = views(events, name.partition("@")[0], before=first)
        assert len(earlier) == len(set(earlier))
        assert set(earlier) == set(taken) & catalogue
        assert len(items) == LENGTH or not taken
        cut += bool(taken)
        again += bool(set(items) & set(earlier))
    assert dataset.info.notes["cut_histories"] == cut > 20 and again > 5
    assert sum(line.startswith("repeats: rankings leave out what a user has taken; ") for line in said) == 1


@pytest.mark.parametrize("split", [PARTS, {"by": "last", **PARTS}, {**TIMES, **PARTS}], ids=["users", "last", "time"])
@pytest.mark.parametrize("task", ["next", "buys"])
def test_rankings_and_popularity_leave_it_out(tmp_path, split, task):
    """By hand, from the raw events: all views of a user that came before what is predicted."""
    dataset, events = made(tmp_path / "data", split=split), table()
    label_of, names = dataset.label_of_item(task), dataset.vocabulary("items")["item"].to_pylist()
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
        taken = {names.index(item) for item in views(events, row["user_id"].partition("@")[0], before=end) if item in names}
        expected = {int(label_of[item]) for item in taken} - {-1}
        assert found == expected == set(popularity.labels[popularity.offsets[number] : popularity.offsets[number + 1]].tolist())
        checked += len(taken) > LENGTH
    assert checked > 3


def test_it_is_kept_where_it_is_needed_alone(tmp_path):
    free = {**HISTORY, "repeats": True}
    never = made(tmp_path / "never", history=free, buys={**BUYS, "repeats": True})
    assert never.earlier(0) is None and not any(path.startswith("earlier/") for path in never.info.files)
    assert "events before these are ranked" in taken_but_ranked(never.info)
    whole = made(tmp_path / "whole", history={**HISTORY, "length": 100})
    assert whole.earlier(0) is None and taken_but_ranked(whole.info) is None
    one = made(tmp_path / "one", history=free)
    assert one.earlier(0) is not None and taken_but_ranked(one.info) is None
    # sequences, labels and splits are those of the data set without
    same = [path for path in never.info.files if not path.startswith("earlier/")]
    assert {path: one.info.files[path] for path in same} == {path: never.info.files[path] for path in same}


def test_filled_up_sequences_keep_it(tmp_path):
    plain, padded = (by_row(made(tmp_path / kind, history={**HISTORY, "padding": kind})) for kind in ("none", "token"))
    assert {name: set(row[1]) for name, row in plain.items()} == {name: set(row[1]) for name, row in padded.items()}


def test_versions_keep_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"history": HISTORY, "tasks": {"buys": BUYS}, "split": PARTS}
    made(tmp_path / "early", events=table(until=700))
    made(tmp_path / "late")
    (tmp_path / "recipe.yaml").write_text(str({**recipe, "tasks": {"buys": BUYS, "more": {**BUYS, "min_count": 2}}}))
    for name, options in (("refreshed", ["--refresh"]), ("grown", [])):
        arguments = ["prepare", "events", "late", name, "--recipe", "recipe.yaml", "--append", "early/out", *options]
        assert main(arguments) == 0
    early, late, refreshed, grown = (by_row(Dataset(name)) for name in ("early/out", "late/out", "refreshed", "grown"))
    known = set(Dataset("refreshed").vocabulary("items")["item"].to_pylist())
    assert {name: set(row[1]) for name, row in refreshed.items()} == {name: set(row[1]) & known for name, row in late.items()}
    for name, (items, earlier, _) in grown.items():
        before = early.get(name) or late[name]
        assert items == before[0] and set(earlier) == set(before[1]) & set(Dataset("grown").vocabulary("items")["item"].to_pylist())
