"""`split.by: time`: training ends before validation begins, and nothing of it sees what came later."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.inspection import inspect_lines
from dist_teracon.data.loader import TrainingLoader
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import Split
from dist_teracon.data.summary import dataset_lines
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.labels_file import labels_of_task
from dist_teracon.models.item_init import cooccurrence_vectors

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))
from event_tables import csv

DAY, START = 86_400, 1_600_000_000
# 100 days: labels of training from day 40, validation from day 60, test from day 80
DATES = {"labels_from": START + 40 * DAY, "validation_from": START + 60 * DAY, "test_from": START + 80 * DAY}
RECIPE = {
    "history": {"events": {"type": "view"}, "length": 5, "keep": ["time", "type"]},
    "tasks": {"buys": {"kind": "item", "events": {"type": "buy"}}, "club": {"kind": "profile"}},
    "split": {"by": "time", "train": 0.5, "validation": 0.25, "test": 0.25, **DATES},
}
USERS = 60


def events(*, future: int = 0) -> dict[str, list]:
    """Events of 60 users on the days 0 to 99; those from day 60 on are of other items with `future`, which only that time may have."""
    draw, rows = np.random.default_rng(0), []
    for user in range(USERS):
        for day in sorted(draw.choice(100, size=20, replace=False).tolist()):
            kind, item = ("view", "buy")[int(draw.random() < 0.3)], int(draw.integers(12))
            if day >= 60 and future:
                item = (item + future) % 14
            rows.append((f"u{user:02d}", f"i{item:02d}", START + day * DAY, kind))
    return dict(zip(("user", "item", "timestamp", "type"), map(list, zip(*rows, strict=True)), strict=True))


def made(folder, table, recipe=RECIPE, **options):
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "events.csv").write_bytes(csv(table))
    people = {"user": [f"u{user:02d}" for user in range(USERS)], "club": ["ab"[user % 2] for user in range(USERS)]}
    (folder / "raw" / "users.csv").write_bytes(csv(people))
    prepare("events", str(folder / "raw"), str(folder / "out"), recipe=parse_recipe(recipe), shards=2, **options)
    return Dataset(str(folder / "out"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return made(tmp_path_factory.mktemp("time"), events())


def rows_of(dataset):
    """Return each row's items and times by its name, and its labels of a task with their splits."""
    folder, items = Path(dataset.uri), dataset.vocabulary("items")["item"].to_pylist()
    histories, labels = {}, {task.name: {} for task in dataset.info.tasks}
    for shard in range(dataset.info.shards):
        users = pq.read_table(folder / f"users/shard-{shard:05d}.parquet").to_pylist()
        for row in users:
            histories[row["user_id"]] = [(items[item], time) for item, time in zip(row["sequence"], row["times"], strict=True)]
        for task in dataset.info.tasks:
            names = items[2:] if task.predicts_next else dataset.vocabulary(task.name)["label"].to_pylist()
            for row in pq.read_table(folder / f"tasks/{task.name}/shard-{shard:05d}.parquet").to_pylist():
                pairs = [(names[label], split) for label, split in zip(row["labels"], row["split"], strict=True)]
                labels[task.name][users[row["row"]]["user_id"]] = pairs
    return histories, labels


def of_user(table, user, kind, *, low=0, high=10**12):
    rows = zip(*table.values(), strict=True)
    return [(item, time) for name, item, time, of in rows if name == user and of == kind and low <= time < high]


def test_each_row_holds_what_came_before_its_period(dataset):
    table, (histories, labels) = events(), rows_of(dataset)
    t0, t1, t2 = DATES.values()
    checked = Counter()
    for user in sorted(set(table["user"])):
        for name, end, begin, until, split in (
            ("@training", t0, t0, t1, 0), ("", t1, None, None, 0), ("@validation", t1, t1, t2, 1), ("@test", t2, t2, 10**12, 2),
        ):  # fmt: skip
            history = of_user(table, user, "view", high=end)[-5:]
            assert histories.get(user + name, []) == history
            if begin is not None:
                bought = Counter(dict.fromkeys((item for item, _ in of_user(table, user, "buy", low=begin, high=until)), 1))
                assert Counter(item for item, _ in labels["buys"].get(user + name, [])) == (bought if history else Counter())
                assert {part for _, part in labels["buys"].get(user + name, [])} <= {split}
                checked[split] += len(labels["buys"].get(user + name, []))
        # the next item: the last before t1 is trained on, the first of each later period is told from all before it
        assert labels["next"][user] == [(histories[user][-1][0], 0)]
        for name, begin, until, split in (("@validation-next", t1, t2, 1), ("@test-next", t2, 10**12, 2)):
            first = of_user(table, user, "view", low=begin, high=until)[:1]
            before = of_user(table, user, "view", high=begin)
            assert histories.get(user + name, []) == ([*before, *first][-5:] if first else [])
            assert labels["next"].get(user + name, []) == [(item, split) for item, _ in first]
        clubs = [name for name in (user, f"{user}@validation", f"{user}@test") if name in labels["club"]]
        assert len(clubs) == 1
        assert labels["club"][clubs[0]] == [("ab"[int(user[1:]) % 2], ["", "@validation", "@test"].index(clubs[0][3:]))]
    assert tuple(checked[split] for split in range(3)) == dataset.info.task("buys").examples
    assert dataset.info.task("club").examples == (30, 15, 15)
    assert (dataset.info.split.by, dataset.info.format_version) == ("time", 2)


def test_the_future_changes_nothing_of_what_is_trained_on(dataset, tmp_path):
    other = made(tmp_path, events(future=5))
    assert rows_of(other) != rows_of(dataset)
    for name in ("items", "buys", "club"):  # names, order and counts
        assert other.vocabulary(name).equals(dataset.vocabulary(name))
    assert "i13" not in other.vocabulary("items")["item"].to_pylist()
    assert other.info.notes["matched"]["items"]["left_out"] == {"after validation_from alone: unseen": 2}
    assert other.table("vocab/_types.parquet").equals(dataset.table("vocab/_types.parquet"))
    for task in dataset.info.tasks:
        assert np.array_equal(dataset.train_counts(task.name), other.train_counts(task.name))
        one, two = (
            list(TrainingLoader(data, [task], mask_index=0, batch=16, seed=0, rank=0, world_size=1).epoch(1)) for data in (dataset, other)
        )
        assert len(one) == len(two)
        for mine, theirs in zip(one, two, strict=True):
            for field in ("values", "times", "types", "row_offsets"):
                assert torch.equal(getattr(mine, field), getattr(theirs, field)), field
            assert torch.equal(mine.examples[0].labels, theirs.examples[0].labels)
    task = dataset.info.task("next")
    assert torch.equal(*(cooccurrence_vectors(data, task, 4, seed=0) for data in (dataset, other)))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"by": "time", "test_from": 5}, "requires validation_from and test_from"),
        ({"by": "time", "validation_from": 9, "test_from": 5, "labels_from": 1}, "must lie one after the other"),
        ({"by": "time", "validation_from": 5, "test_from": 9}, r"'by: time' with tasks of items \(buys\) requires labels_from"),
        ({"test_from": 5}, "test_from is for 'by: time'"),
    ],
)
def test_dates_that_do_not_fit_are_refused(split, said):
    with pytest.raises(ConfigError, match=said):
        parse_recipe({**RECIPE, "split": split})


def test_dates_outside_of_the_events_and_empty_parts_are_refused(tmp_path):
    beyond = {**RECIPE, "split": {**RECIPE["split"], "test_from": START + 200 * DAY}}
    with pytest.raises(ConfigError, match=r"split.test_from: lies outside of the events; they run from 2020-09-13 to 2020-12-21"):
        made(tmp_path, events(), beyond)
    table = events()
    kinds = ["view" if time >= DATES["test_from"] else kind for kind, time in zip(table["type"], table["timestamp"], strict=True)]
    late = {**table, "type": kinds}
    with pytest.raises(DataError, match="task 'buys': has no test example"):
        made(tmp_path, late)
    untimed = {name: values for name, values in table.items() if name != "timestamp"}
    without = {**RECIPE, "history": {"events": {"type": "view"}}}
    with pytest.raises(ConfigError, match=r"split.by: the events have no timestamps"):
        made(tmp_path, untimed, without)
    with pytest.raises(ConfigError, match="--split users: the recipe splits by time"):
        made(tmp_path, table, split="users")


def test_recipes_without_dates_are_stored_as_ever():
    assert set(parse_recipe({}).to_json()["split"]) == {"by", "seed", "train", "validation", "test", "folds", "fold"}


def test_a_class_of_held_out_users_alone_is_no_class(tmp_path):
    whole = made(tmp_path / "whole", events())
    (held,) = (row for row in rows_of(whole)[1]["club"].items() if row[0] == "u07@test")
    assert held[1][0][1] == 2
    raw = tmp_path / "whole" / "raw" / "users.csv"
    raw.write_text(raw.read_text().replace("u07,b", "u07,z"))
    prepare("events", str(raw.parent), str(tmp_path / "other"), recipe=parse_recipe(RECIPE), shards=2)
    other = Dataset(str(tmp_path / "other"))
    assert other.vocabulary("club").equals(whole.vocabulary("club"))
    assert other.info.notes["matched"]["tasks"]["club"]["left_out"] == {"classes that no user has who is trained on": 1}


def test_a_user_whose_id_is_that_of_a_row_is_named(tmp_path):
    table = events()
    named = {**table, "user": ["u01@test" if user == "u02" else user for user in table["user"]]}
    with pytest.raises(DataError, match="the row 'u01@test' of user 'u01' has the name of another user of the data"):
        made(tmp_path, named)


PERIODS = (START + 80 * DAY, START + 87 * DAY, START + 93 * DAY)
IN_PERIODS = {**RECIPE, "split": {**RECIPE["split"], "test_periods": list(PERIODS[1:])}}


def test_each_test_period_is_told_from_what_came_before_it(dataset, tmp_path):
    said = []
    parted = made(tmp_path, events(), IN_PERIODS, log=said.append)
    assert parted.info.test_periods == PERIODS
    assert dataset.info.test_periods == ()
    table, (histories, labels) = events(), rows_of(parted)
    for user in sorted(set(table["user"])):
        for number, (begin, until) in enumerate(zip(PERIODS, (*PERIODS[1:], 10**12), strict=True)):
            name = f"{user}@test-{number + 1}" if number else f"{user}@test"
            assert histories[name] == of_user(table, user, "view", high=begin)[-5:]
            bought = {item for item, _ in of_user(table, user, "buy", low=begin, high=until)}
            assert Counter(labels["buys"].get(name, [])) == Counter((item, 2 + number) for item in bought)
            first = of_user(table, user, "view", low=begin, high=until)[:1]
            assert labels["next"].get(f"{name}-next", []) == [(item, 2 + number) for item, _ in first]
            tested = f"{user}@test" in labels["club"]
            assert labels["club"].get(name) == ([("ab"[int(user[1:]) % 2], 2 + number)] if tested else None)
    # what is not tested is as it is with one period
    for task in dataset.info.tasks:
        assert parted.info.task(task.name).examples[:2] == task.examples[:2]
    for shard in range(2):
        found, whole = parted.labels("buys", shard), parted.labels("buys", shard).of(Split.TEST)
        assert set(found.split.tolist()) == {0, 1, 2}
        parts = [found.of(Split.TEST, period=period) for period in range(3)]
        assert sum(len(part.values) for part in parts) == len(whole.values)
        assert [set(part.period.tolist()) for part in parts] == [{0}, {1}, {2}]
    probed = labels_of_task(parted, "club")  # a user of the test is one user, whatever the periods
    assert sorted(probed.users) == sorted(name for name in labels["club"] if "@test-" not in name)
    assert np.bincount(probed.split, minlength=3).tolist() == list(dataset.info.task("club").examples)
    views = [time for time, kind in zip(table["timestamp"], table["type"], strict=True) if kind == "view" and time >= PERIODS[0]]
    counted = parted.info.notes["split_by_time"]["tests"]
    assert [part["from"] for part in counted] == list(PERIODS)
    assert sum(part["events"] for part in counted) == len(views)
    assert any(line.startswith("test period 2, from 2020-12-09 12:26:40 UTC on: ") for line in said)


def test_lines_on_the_data_say_rows_of_users_and_who_has_none(tmp_path):
    """All events of u00 happen after the last date, so there is nothing that they are told from; some of u02 are of a type of that time."""
    table, told, end = events(), [], DATES["test_from"]
    for place, user in enumerate(table["user"]):
        if user == "u00":
            table["timestamp"][place] = end + place
        elif user == "u02" and table["timestamp"][place] >= end:
            table["type"][place] = "new"
    recipe = {**RECIPE, "history": {**RECIPE["history"], "events": {"type": ["view", "new"]}}}
    dataset = made(tmp_path, table, recipe, log=told.append)
    histories, _ = rows_of(dataset)
    people = {name.split("@")[0] for name in histories}
    assert "u00" not in people
    notes = dataset.info.notes
    assert notes["split_by_time"]["users"] == len(people) < notes["split_by_time"]["rows"] == len(histories)
    users = notes["matched"]["users"]
    assert users["kept"] == len(people)
    assert users["left_out"] == {"no history with an event ahead of a period of the split": USERS - len(people)}
    whole = f"{len(histories):,} rows of {len(people):,} users, "
    assert any(line.startswith(f"writing {whole}") for line in told)
    assert whole in dataset_lines(dataset.info)[0]
    assert whole in inspect_lines(dataset, users=1)[0]
    assert any(line.split()[:5] == ["task", "kind", "labels", "rows", "training"] for line in inspect_lines(dataset, users=1))
    assert not any("training" in line and "0.5" in line for line in inspect_lines(dataset, users=1)[:3])
    assert any("have types that no training row has (new)" in line for line in told), told


def test_periods_without_examples_are_named(tmp_path):
    table, said = events(), []
    table["type"] = ["view" if time >= PERIODS[2] else kind for time, kind in zip(table["timestamp"], table["type"], strict=True)]
    made(tmp_path, table, IN_PERIODS, log=said.append)
    assert [line for line in said if "has no example in test period" in line] == [
        "warning: task 'buys' has no example in test period 3: a stage that is scored on it has no score of the task"
    ]


def test_new_items_of_a_test_period_are_counted(tmp_path):
    (period,) = made(tmp_path, events(future=5)).info.notes["split_by_time"]["tests"]
    views = [
        item
        for time, item, kind in zip(*(events(future=5)[name] for name in ("timestamp", "item", "type")), strict=True)
        if kind == "view" and time >= PERIODS[0]
    ]
    assert (period["events"], period["of_new_items"]) == (len(views), sum(item in ("i12", "i13") for item in views))
    assert 0 < period["of_new_items"] < len(views)


def test_periods_lie_behind_the_test_date():
    with pytest.raises(ConfigError, match="must lie one after the other"):
        parse_recipe({**RECIPE, "split": {**RECIPE["split"], "test_periods": [PERIODS[2], PERIODS[1]]}})
    with pytest.raises(ConfigError, match="test_periods is for 'by: time'"):
        parse_recipe({"split": {"test_periods": "2026-01-01"}})


@pytest.mark.parametrize(
    ("until", "said"),
    [(80, r"task 'buys': has no test example .* rows\); move split.validation_from or split.test_from"), (0, "'buys': no user of 60 has")],
)
def test_a_task_without_a_part_is_told_what_to_move_and_of_how_many_people(tmp_path, until, said):
    table = events()
    keep = [kind == "view" or time < START + until * DAY for kind, time in zip(table["type"], table["timestamp"], strict=True)]
    few = {name: [value for value, kept in zip(values, keep, strict=True) if kept] for name, values in table.items()}
    if not until:  # a type that no event has is another mistake
        few = {name: [*values, extra] for (name, values), extra in zip(few.items(), ("u00", "i00", START, "buy"), strict=True)}
    with pytest.raises(DataError, match=said):
        made(tmp_path, few)
