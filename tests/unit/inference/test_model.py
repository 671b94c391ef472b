"""A trained model in use: the scorer's numbers from raw ids, without the data set, Ray or DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dist_teracon
from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split, users_file
from dist_teracon.errors import ConfigError, DataError, RunError
from dist_teracon.inference.histories import HistoryReader
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.vocabulary import Vocabulary
from dist_teracon.store.manifest import Manifest, Part
from dist_teracon.store.objects import Objects
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.verify import verify


def raw_histories(dataset: Dataset, task: str, split: Split):
    """Yield for each batch of a split its users' histories in raw ids, its labels by user, and the vectors' batch itself."""
    info, items = dataset.info.task(task), dataset.vocabulary("items")["item"].to_pylist()
    for packed in evaluation_batches(dataset, info, split, mask_index=0, batch=512, rank=0, world_size=1, max_users=None, seed=0):
        offsets = packed.row_offsets.tolist()
        rows = [packed.values[low:high].tolist() for low, high in pairwise(offsets)]
        (examples,) = packed.examples
        yield [[items[item] or "nobody-knows-it" for item in row] for row in rows], examples, packed


@pytest.mark.parametrize("task", ["next", "buys", "club"])
def test_vectors_from_raw_ids_are_the_scorers_bit_for_bit(shop, model, task):
    dataset = Dataset(shop.dataset)
    for histories, _, packed in raw_histories(dataset, task, Split.TEST):
        batch = type(packed).from_sequences(
            [packed.values[low:high].numpy() for low, high in pairwise(packed.row_offsets)],
            mask_index=model.method.mask_index(task),
        )
        with torch.no_grad():
            expected = model.method.encode(batch, task).numpy()
        found = model.encode(histories, task)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


def test_loads_without_ray_deepspeed_and_the_data_set(shop, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(shop.run, copy)
    code = (
        "import sys, dist_teracon\n"
        "assert 'torch' not in sys.modules\n"
        f"model = dist_teracon.from_pretrained({str(copy)!r})\n"
        "vectors = model.encode([['p01', 'p02'], ['p07']])\n"
        "model.predict([['p01']], 'buys', top=3)\n"
        "assert vectors.shape == (2, 16), vectors.shape\n"
        "heavy = {name.split('.')[0] for name in sys.modules} & {'ray', 'deepspeed', 'sklearn', 'pandas', 'matplotlib'}\n"
        "assert not heavy, heavy\n"
    )
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(shop.dataset, "/nowhere/at/all"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_histories_in_every_form(shop, model):
    table = pq.read_table(shop.events / "events.parquet")
    read = model.histories(table)
    users = read.users.to_pylist()
    frame = table.to_pandas().query("type == 'view'").sort_values("timestamp")
    lists = [frame[frame.user == user].item.tolist() for user in users]
    expected = model.encode(lists, "buys")
    forms = [
        table, table.to_pandas(), str(shop.events), shop.events / "events.parquet", pa.array(lists), pa.chunked_array([pa.array(lists)]),
        pd.Series(lists), [np.array(history) for history in lists], pa.array(lists, pa.large_list(pa.string())), tuple(map(tuple, lists)),
    ]  # fmt: skip
    for form in forms:
        assert np.array_equal(model.encode(form, "buys"), expected), type(form)
    assert read.last_time.tolist() == [frame[frame.user == user].timestamp.max() for user in users]
    assert read.events.tolist() == [min(len(history), 8) for history in lists]


def test_events_get_the_histories_of_the_data_set(shop, model):
    dataset = Dataset(shop.dataset)
    read = model.histories(str(shop.events))
    own = {user: read.between(row, row + 1).values.tolist() for row, user in enumerate(read.users.to_pylist())}
    seen = 0
    for shard in range(dataset.info.shards):
        data, users = dataset.shard(shard), dataset.table(users_file(shard), ["user_id"])["user_id"].to_pylist()
        for row, user in enumerate(users):
            assert own[user] == data.values[data.offsets[row] : data.offsets[row + 1]].tolist()
            seen += 1
    assert seen == dataset.info.users
    assert read.dropped["events that do not fit the recipe's history"] == 240  # the buys


def test_whole_numbers_are_read_as_texts(shop, model):
    reader = model.reader
    assert reader.read([[7, 12]]).unknown == 2
    assert reader.read([["p01", "p02"]]).unknown == 0
    numbers = HistoryReader(model.info, Vocabulary([None, None, "7", "12"]), known=4)
    for form in ([[7, 12]], [["7", "12"]], [[7, "12"]], [np.array([7, 12])], pa.array([[7, 12]], pa.list_(pa.int32())), [[7.0, 12.0]]):
        read = numbers.read(form)
        assert (read.rows.values.tolist(), read.unknown) == ([2, 3], 0)
    frame = pd.DataFrame({"user": [1, 1], "item": [7, 12], "type": ["view", "view"], "timestamp": [0, 1]})
    assert numbers.read(frame).rows.values.tolist() == [2, 3]


def test_unknown_items_are_the_unseen_one_and_counted(model):
    vectors = model.encode([["p01", "who"], ["p01", "else"], ["p01", "p02"]], "buys")
    assert model.last_unknown == 2
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])
    assert model.histories([["p01", "who"], ["who"]]).unknown_items == ("who",)
    assert "2 of 3 events" in model.histories([["p01", "who"], ["who"]]).notes()[0]


def test_only_the_last_items_count(model):
    long = [f"p{item % 24:02d}" for item in range(40)]
    assert np.array_equal(model.encode([long], "next"), model.encode([long[-8:]], "next"))
    # but all of them are left out where what a user has seen is
    assert set(model.predict([long], "next", top=30).labels[0]) == set(model.labels("next").names) - set(long)


def test_what_shared_is(model):
    histories = [["p01", "p02", "p03"], ["p10"]]
    each = [model.encode(histories, task) for task in model.tasks]
    assert np.allclose(model.encode(histories), np.mean(each, axis=0), atol=1e-7)
    assert np.array_equal(model.encode(histories, "shared", shared="concat"), np.concatenate(each, axis=1))
    opened = model.encode(histories, shared="open")
    assert opened.shape == each[0].shape
    assert not np.allclose(opened, each[0])
    with pytest.raises(ConfigError, match="shared: expected mean, open or concat, got 'sum'"):
        model.encode(histories, shared="sum")


def test_predictions_leave_out_and_choose(model):
    history = ["p01", "p02", "p03"]
    everything = model.predict([history], "next", top=50, exclude_seen=False)
    assert sorted(everything.labels[0]) == sorted(model.labels("next").names)
    assert (np.diff(everything.scores[0]) <= 0).all()
    without = model.predict([history], "next", top=50, exclude_seen=True)
    assert without.labels[0] == [label for label in everything.labels[0] if label not in history]
    assert (without.indices[0, -3:] == -1).all()
    assert np.isnan(without.scores[0, -3:]).all()
    few = model.predict([history, ["p07"]], "next", candidates=["p05", "p02", "p09", "unheard-of"], exclude_seen=True)
    assert [set(row) for row in few.labels] == [{"p05", "p09"}, {"p02", "p05", "p09"}]
    each = model.predict([history, ["p07"]], "next", candidates=[["p05", "p09"], ["p11"]], exclude_seen=False)
    assert [set(row) for row in each.labels] == [{"p05", "p09"}, {"p11"}]
    order = [label for label in everything.labels[0] if label in ("p05", "p09")]
    assert each.labels[0] == few.labels[0] == order


def test_predictions_leave_out_what_is_too_rare_for_the_catalogue(shop, tmp_path):
    """A label that hardly any history holds: the model reads it as unseen, and it is not recommended to those who had it."""
    from shop import make_shop_run, prepare_shop

    events = pq.read_table(shop.events / "events.parquet")
    bought = {"user": ["u001", "u002"], "item": ["rare"] * 2, "timestamp": [1.8e9] * 2, "type": ["buy"] * 2}
    (tmp_path / "events").mkdir()
    pq.write_table(pa.concat_tables([events, pa.table(bought, events.schema)]), tmp_path / "events/events.parquet")
    for name in ("items.csv", "users.csv"):
        shutil.copy(shop.events / name, tmp_path / "events" / name)
    dataset = prepare_shop(tmp_path / "events", tmp_path / "dataset")
    model = dist_teracon.from_pretrained(make_shop_run(dataset, tmp_path / "run"))
    assert "rare" in list(model.labels("buys").names) and "rare" not in list(model.items.names)
    lists = [["p01", "p02"], ["p01", "rare", "p02"], ["unheard-of", "p03"]]
    for form in (lists, pa.array(lists)):
        recommended = model.predict(form, "buys", top=50, batch=2).labels
        assert ["rare" in row for row in recommended] == [True, False, True]
    assert all("rare" in row for row in model.predict(lists, "buys", top=50, exclude_seen=False).labels)
    assert "rare" not in model.predict(model.histories(lists).take([2, 1]), "buys", top=50).labels[1]
    of_users = []
    for number, source in enumerate((str(tmp_path / "events"), dataset)):
        out = tmp_path / f"{number}.parquet"
        assert main(["predict", str(tmp_path / "run"), source, str(out), "--task", "buys", "--top", "50"]) == 0
        of_users.append({row["user"]: "rare" in row["labels"] for row in pq.read_table(out).to_pylist()})
    assert of_users[0] == of_users[1]
    assert [user for user, is_there in of_users[0].items() if not is_there] == ["u000"]


def test_predictions_leave_out_what_the_runs_scores_left_out(shop, model, tmp_path):
    from shop import CONFIG, make_shop_run

    open_run = make_shop_run(shop.dataset, tmp_path / "run", evaluate={**CONFIG["evaluate"], "exclude_seen": False})
    ranked = dist_teracon.from_pretrained(open_run).predict([["p01", "p02"]], "next", top=50)
    assert {"p01", "p02"} <= set(ranked.labels[0])
    assert not {"p01", "p02"} & set(model.predict([["p01", "p02"]], "next", top=50).labels[0])  # by the recipe


def test_probabilities_add_up_over_what_is_ranked(model):
    for options in ({}, {"exclude_seen": True}, {"candidates": ["p05", "p09", "p10"]}):
        found = model.predict([["p01", "p02"], ["p07"]], "next", top=99, normalise=True, **options)
        assert np.allclose(np.nansum(found.scores, axis=1), 1, atol=1e-6)
    classes = model.predict([["p01"]], "club", normalise=True)
    assert sorted(classes.labels[0]) == ["no", "yes"]
    assert [name for name, _ in next(iter(classes))] == classes.labels[0]


def test_predictions_as_a_table(model):
    found = model.predict([["p01", "p02"], ["p07"]], "buys", top=3).to_arrow()
    assert found.column_names == ["user", "labels", "scores"]
    assert [len(row) for row in found["labels"].to_pylist()] == [3, 3]


def test_an_earlier_stage(shop, model):
    first = dist_teracon.from_pretrained(shop.run, stage=1)
    assert list(first.tasks) == ["next"]
    assert list(model.tasks) == ["next", "buys", "club"]
    assert first.fingerprint != model.fingerprint
    assert first.fingerprint == dist_teracon.from_pretrained(shop.run, stage=1).fingerprint
    with pytest.raises(ConfigError, match=r"task 'buys': the model has not learned it.*stage 1 has: next"):
        first.encode([["p01"]], "buys")


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([["p01"], []], r"1 of 2 histories are empty \(numbers 1, counted from 0\)"),
        (["p01", "p02"], "history 0: expected a list of item ids, oldest first, got str"),
        ([None], "history 0: expected a list of item ids"),
        ([["p01", None]], "expected ids that are texts or whole numbers, got None"),
        (pa.array([["p01", None]]), "1 of 2 item ids are null"),
        (pa.array([["p01"], None]), "1 of 2 are null"),
        ([[True]], "expected ids that are texts or whole numbers"),
        ([[1.5]], r"expected ids that are texts or whole numbers, got 1.5 \(float\)"),
        ({"p01": 1}, "expected lists of item ids.*got dict"),
        (pa.array(["p01"]), "expected a list of item ids for each user"),
        (pa.table({"user": ["a"], "thing": ["b"]}), "no column 'item'"),
    ],
)
def test_bad_histories_are_told(model, histories, message):
    with pytest.raises((DataError, ConfigError), match=message):
        model.encode(histories)


def test_bad_questions_are_told(model):
    for task, options, message in (
        ("buy", {}, "did you mean 'buys'"),
        ("club", {"exclude_seen": True}, "are not known to be items of the history"),
        ("next", {"top": 0}, "top: expected 1 or more, got 0"),
        ("next", {"candidates": ["x"]}, "none of 1 ids is a label of task 'next'"),
        ("next", {"candidates": [["p01"], ["p02"]]}, "expected a list for each of 1 users, got 2"),
        ("next", {"candidates": "p01"}, "expected a list of ids"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            model.predict([["p01"]], task, **options)


def test_runs_that_cannot_be_loaded(shop, tmp_path):
    with pytest.raises(RunError, match="no such run"):
        dist_teracon.from_pretrained(tmp_path / "nothing")
    with pytest.raises(RunError, match="stage 9 is not finished"):
        dist_teracon.from_pretrained(shop.run, stage=9)
    half = tmp_path / "half"
    shutil.copytree(shop.run, half, ignore=shutil.ignore_patterns("state.json"))
    with pytest.raises(RunError, match="is not finished"):
        dist_teracon.from_pretrained(half)
    newer = tmp_path / "newer"
    shutil.copytree(shop.run, newer)
    state = next(newer.glob("stages/*/state.json"))
    state.write_text(json.dumps({**json.loads(state.read_text()), "format_version": 99}))
    with pytest.raises(RunError, match=r"written by a newer version of dist-teracon \(format 99"):
        dist_teracon.from_pretrained(newer)
    damaged = tmp_path / "damaged"
    shutil.copytree(shop.run, damaged)
    weights = sorted(damaged.glob("stages/*/model.safetensors"))[-1]
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="damaged"):
        dist_teracon.from_pretrained(damaged)


def test_an_older_run_reads_the_names_from_its_data_set(shop, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(shop.run, older, ignore=shutil.ignore_patterns("vocab"))
    assert dist_teracon.from_pretrained(older).predict([["p01"]], "buys").labels[0]
    config = older / "config.yaml"
    config.write_text(config.read_text().replace(shop.dataset, str(tmp_path / "gone")))
    with pytest.raises(RunError, match="has no names of items of its own"):
        dist_teracon.from_pretrained(older).encode([["p01"]])


def test_a_copy_on_a_store(shop, model, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))
    store = fsspec.filesystem("memory")
    store.put(str(shop.run) + "/", "/runs/shop", recursive=True)
    try:
        loaded = dist_teracon.from_pretrained("memory://runs/shop")
        assert isinstance(loaded, PretrainedModel)
        assert loaded.fingerprint == model.fingerprint
        assert np.array_equal(loaded.encode([["p01", "p02"]]), model.encode([["p01", "p02"]]))
        # the weights of the other stages stay there, and a second load fetches none
        assert len(list(tmp_path.glob("runs/*/stages/*/model.safetensors"))) == 1
        store.rm("/runs/shop/stages/03-club/model.safetensors")
        assert dist_teracon.from_pretrained("memory://runs/shop").fingerprint == model.fingerprint
        assert dist_teracon.from_pretrained("memory://runs/shop", stage=1).stage == 1
        with pytest.raises(RunError, match="is no run"):
            dist_teracon.from_pretrained("memory://runs/nothing")
    finally:
        store.rm("/runs", recursive=True)


def test_a_device_that_is_not_there(shop):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{device}': cannot be used here"):
            dist_teracon.from_pretrained(shop.run, device=device)


def test_vocabularies_are_checked_and_renewed(shop, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(shop.run, copy)
    names = {path for path, problem in verify(str(copy)) if not problem}
    assert {str(copy / "vocab" / f"{name}.parquet") for name in ("items", "buys", "club")} <= names
    (copy / "vocab" / "items.parquet").write_bytes(b"cut off")
    damaged = {path: problem for path, problem in verify(str(copy)) if problem and "/vocab/" in path}
    assert damaged == {str(copy / "vocab" / "items.parquet"): "is not the data set's; it is renewed when the run goes on"}
    assert dist_teracon.from_pretrained(copy).encode([["p01"]]).shape == (1, 16)  # the data set still has the names
    dataset = Dataset(shop.dataset)
    RunFolder(copy).keep_vocabularies(dataset, dataset.info.tasks[:2])
    assert (copy / "vocab" / "items.parquet").read_bytes() == (shop.run / "vocab" / "items.parquet").read_bytes()


def under_recipe(model, *, notes=None, **changes):
    """A reader of histories for a data set that was prepared by the shop's recipe with changes."""
    recipe = {**model.info.source["recipe"], **changes}
    info = replace(model.info, source={**model.info.source, "recipe": recipe}, notes={**model.info.notes, **(notes or {})})
    return HistoryReader(info, model.items, known=model.num_items)


def test_dates_of_the_recipe_apply_or_not(shop, model):
    events = pq.read_table(shop.events / "events.parquet").to_pandas()
    end = 1.7e9 + 50_500
    reader = under_recipe(model, history={**model.info.source["recipe"]["history"], "events": {"type": "view", "until": end}})
    read = reader.read(shop.events)
    assert len(read) == 51
    assert max(read.last_time) < end
    assert read.dropped["users without an event that fits the recipe's history"] == 69
    views = events[events.type == "view"]
    assert read.dropped["events that do not fit the recipe's history"] == len(events) - len(views)
    (outside,) = (count for kind, count in read.dropped.items() if "dates=False" in kind)
    assert outside == (views.timestamp >= end).sum() > 0
    assert len(reader.read(shop.events, dates=False)) == 120


def test_times_are_left_aside_where_preparation_left_them(shop, model):
    """A stored recipe has every field, so that a column of times that is null by intent is known from the notes."""
    table = pa.table({"user": ["a"] * 3, "item": ["p01", "p02", "p03"], "type": ["view"] * 3, "timestamp": [3e9 / 2, 1e9, 2e9 / 2 + 5]})
    by_time, by_file = under_recipe(model), under_recipe(model, notes={"times": {"column": "none"}})
    names = [model.items.names[index] for index in by_time.read(table).rows.values]
    assert names == ["p02", "p03", "p01"]
    assert [model.items.names[index] for index in by_file.read(table).rows.values] == ["p01", "p02", "p03"]
    assert by_file.read(table).last_time is None


def test_other_names_of_columns(shop, model):
    reader = under_recipe(model, columns={"user": "who", "item": "what", "timestamp": "at", "timestamp_unit": "ms"})
    table = pa.table({"who": [7, 7], "what": ["p02", "p01"], "type": ["view"] * 2, "at": [1_700_000_001_000, 1_700_000_000_000]})
    read = reader.read(table)
    assert [model.items.names[index] for index in read.rows.values] == ["p01", "p02"]
    assert (read.users.to_pylist(), read.last_time.tolist()) == (["7"], [1_700_000_001.0])


def test_a_run_that_was_written_on_a_store(shop, model, tmp_path, monkeypatch):
    """The newest state's small files and one stage's weights are brought, and nothing else."""
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path))
    objects = Objects(f"memory://bucket/{uuid4().hex}/run")
    files = {}
    for path in shop.run.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            objects.write(f"parts/{sha256}", content)
            files[path.relative_to(shop.run).as_posix()] = Part(f"parts/{sha256}", sha256, len(content))
    manifest = Manifest(1, "id", files, {})
    assert objects.create(manifest.key, manifest.to_bytes())
    objects.delete([files["stages/02-buys/model.safetensors"].key])  # would be missed if it were asked for
    loaded = dist_teracon.from_pretrained(objects.uri)
    assert loaded.fingerprint == model.fingerprint
    assert np.array_equal(loaded.encode([["p01", "p02"]]), model.encode([["p01", "p02"]]))
    assert loaded.predict([["p01"]], "buys").labels == model.predict([["p01"]], "buys").labels
    assert dist_teracon.from_pretrained(objects.uri, stage=1).stage == 1
    with pytest.raises(RunError, match="stage 7 is not finished"):
        dist_teracon.from_pretrained(objects.uri, stage=7)
