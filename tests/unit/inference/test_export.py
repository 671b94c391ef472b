"""Exports: every user's vectors in any format and type, resumable, refused where they do not fit, turned into an old space."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import dist_teracon
from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import ConfigError, DataError, RunError
from dist_teracon.inference import export as export_module
from dist_teracon.inference import sources
from dist_teracon.inference.export import export
from dist_teracon.inference.export_job import ExportOptions
from dist_teracon.inference.export_reader import open_export
from dist_teracon.inference.sources import of_uri


def no_log(_text):
    pass


def run_export(model, source, out, **options):
    return export(model, of_uri(model, str(source), log=no_log), str(out), ExportOptions(**options))


def vectors_of(out, name="shared"):
    """Return an export's vectors by user."""
    return {user: row for users, rows in open_export(str(out)).read(name) for user, row in zip(users.to_pylist(), rows, strict=True)}


@pytest.fixture(scope="module")
def by_user(shop, model):
    """The users' vectors as `encode` gives them, by kind and user."""
    read = model.histories(str(shop.events))
    kinds = {name: model.encode(read, name) for name in ("shared", *model.tasks)}
    return {name: dict(zip(read.users.to_pylist(), rows, strict=True)) for name, rows in kinds.items()}


@pytest.mark.parametrize("form", ["parquet", "npy", "safetensors"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2e-3), ("int8", 1 / 127)])
def test_every_user_in_every_format_and_type(shop, model, by_user, tmp_path, form, dtype, error):
    manifest = run_export(model, shop.dataset, tmp_path / "out", format=form, dtype=dtype, tasks=("shared", "buys"))
    for name in ("shared", "buys"):
        found = vectors_of(tmp_path / "out", name)
        assert set(found) == set(by_user[name])
        for user, row in found.items():
            expected = by_user[name][user]
            assert np.abs(row - expected).max() <= error * max(1.0, np.abs(expected).max()), (user, form, dtype)
    assert manifest["users"] == Dataset(shop.dataset).info.users == len(by_user["shared"])
    norms = [np.linalg.norm(row) for row in by_user["shared"].values()]
    assert manifest["vectors"]["shared"]["norm"]["mean"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert manifest["vectors"]["shared"]["norm"]["largest"] == pytest.approx(max(norms), rel=1e-5)
    assert (manifest["fingerprint"], manifest["stage"]) == (model.fingerprint, 3)
    assert manifest["source"]["version"] == Dataset(shop.dataset).info.fingerprint
    assert not (tmp_path / "out" / ".progress").exists()


def test_events_and_their_data_set_give_the_same_vectors(shop, model, tmp_path):
    run_export(model, shop.dataset, tmp_path / "data")
    run_export(model, shop.events, tmp_path / "events")
    ours, theirs = vectors_of(tmp_path / "data"), vectors_of(tmp_path / "events")
    assert set(ours) == set(theirs)
    assert all(np.allclose(ours[user], theirs[user], atol=1e-6) for user in ours)
    table = pq.read_table(tmp_path / "events" / "users" / "part-00000.parquet")
    raw = pq.read_table(shop.events / "events.parquet").to_pandas().query("type == 'view'")
    for row in table.to_pylist()[:10]:
        own = raw[raw.user == row["user"]]
        assert row["events"] == min(8, len(own))
        assert row["last_event"].timestamp() == own.timestamp.max()
    assert table.schema.metadata[b"dist_teracon.run"].decode() == model.fingerprint
    assert pq.read_table(tmp_path / "data" / "users" / "part-00000.parquet")["last_event"].null_count > 0


def test_unknown_events_are_counted(shop, model, tmp_path, monkeypatch):
    table = pq.read_table(shop.events / "events.parquet")
    strange = pc.if_else(pc.equal(table["item"], "p05"), "brand-new", table["item"])
    pq.write_table(table.set_column(table.column_names.index("item"), "item", strange), tmp_path / "events.parquet")
    monkeypatch.setattr(sources, "USERS_A_PART", 11)
    manifest = run_export(model, tmp_path / "events.parquet", tmp_path / "out")
    read = model.histories(tmp_path / "events.parquet")
    assert manifest["unknown_events"] == read.unknown > 10
    assert read.slice(3, 40).unknown == read.strange[3:40].sum()
    assert "brand-new" in read.unknown_items


def test_a_stopped_export_goes_on(shop, model, tmp_path, monkeypatch):
    whole = run_export(model, shop.dataset, tmp_path / "whole")
    written = []
    part = export_module.Job.part

    def stops(self, number):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        return part(self, number)

    monkeypatch.setattr(export_module.Job, "part", stops)
    with pytest.raises(KeyboardInterrupt):
        run_export(model, shop.dataset, tmp_path / "out")
    with pytest.raises(DataError, match="is no finished export"):
        open_export(str(tmp_path / "out"))
    monkeypatch.setattr(export_module.Job, "part", part)
    encoded = []
    encode = export_module.Job.encode
    monkeypatch.setattr(export_module.Job, "encode", lambda self, *rest: encoded.append(1) or encode(self, *rest))
    assert run_export(model, shop.dataset, tmp_path / "out") == whole
    assert len(encoded) == Dataset(shop.dataset).info.shards - 3
    assert run_export(model, shop.dataset, tmp_path / "out") == whole  # finished: nothing is computed
    assert len(encoded) == Dataset(shop.dataset).info.shards - 3


def test_a_folder_of_something_else_is_left_alone(shop, model, tmp_path):
    run_export(model, shop.dataset, tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_bytes()
    with pytest.raises(RunError, match=r"holds the export of something else .*stage was 3 and is now 1"):
        run_export(dist_teracon.from_pretrained(shop.run, stage=1), shop.dataset, tmp_path / "out")
    with pytest.raises(RunError, match='dtype was "float32" and is now "int8"'):
        run_export(model, shop.dataset, tmp_path / "out", dtype="int8")
    assert (tmp_path / "out" / "export.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is there already and holds something else"):
        run_export(model, shop.dataset, tmp_path / "mine")


def test_items_and_labels(shop, model, tmp_path):
    run_export(model, shop.dataset, tmp_path / "out", items=True, labels=("buys",), tasks=("buys",))
    items, labels = (pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("items", "labels_buys"))
    assert items["item"].to_pylist() == model.items.names[2:]
    assert labels["label"].to_pylist() == model.labels("buys").names
    user, row = next(iter(vectors_of(tmp_path / "out", "buys").items()))
    scores = np.array(labels["vector"].to_pylist()) @ row + labels["bias"].to_numpy()
    best = [labels["label"][int(place)].as_py() for place in np.argsort(-scores)[:3]]
    table = pa.Table.from_pandas(pq.read_table(shop.events / "events.parquet").to_pandas().query(f"user == '{user}'"))
    assert model.predict(table, "buys", top=3, exclude_seen=False).labels[0] == best


def test_vectors_turned_into_an_old_space(shop, model, tmp_path):
    from shop import make_shop_run

    run_export(model, shop.dataset, tmp_path / "old", tasks=("buys",))
    # the same space, turned: what was exported comes back
    old = vectors_of(tmp_path / "old", "buys")
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)
    for path in (tmp_path / "old" / "users").glob("*.parquet"):
        table = pq.read_table(path)
        turned = np.stack(table["vector_buys"].to_pylist()).astype(np.float32) @ rotation
        column = pa.FixedSizeListArray.from_arrays(pa.array(turned.reshape(-1)), 16)
        pq.write_table(table.set_column(table.column_names.index("vector_buys"), "vector_buys", column), path)
    manifest = run_export(model, shop.dataset, tmp_path / "same", tasks=("buys",), align_to=str(tmp_path / "old"))
    facts = manifest["alignment"]
    assert facts["residual"] < 1e-4 < facts["residual_before"]
    assert facts["users"] == len(old)
    new = vectors_of(tmp_path / "same", "buys")
    assert all(np.allclose(new[user], row @ rotation, atol=1e-3) for user, row in old.items())
    # of another model something remains, and inner products among the new vectors stay
    other = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "other", seed=9))
    run_export(other, shop.dataset, tmp_path / "plain", tasks=("buys",))
    aligned = run_export(
        other, shop.dataset, tmp_path / "aligned", tasks=("buys",), labels=("buys",), align_to=str(tmp_path / "old")
    )["alignment"]  # fmt: skip
    assert 0.05 < aligned["residual"] < aligned["residual_before"]
    plain, turned = (
        np.stack([rows[user] for user in old]) for rows in (vectors_of(tmp_path / name, "buys") for name in ("plain", "aligned"))
    )
    assert np.allclose(plain @ plain.T, turned @ turned.T, atol=1e-2)
    # and so do the scores of labels, which are turned with them
    labels = np.array(pq.read_table(tmp_path / "aligned" / "labels_buys.parquet")["vector"].to_pylist())
    assert np.allclose(turned @ labels.T, plain @ other.method.head("buys").weight.detach().numpy().T, atol=1e-4)
    with pytest.raises(ConfigError, match="--labels club: with --align-to vectors of labels are turned with those of their own task"):
        run_export(other, shop.dataset, tmp_path / "two", tasks=("buys",), labels=("club",), align_to=str(tmp_path / "old"))
    assert not (tmp_path / "two").exists()
    with pytest.raises(DataError, match="a rotation needs equal widths"):
        run_export(other, shop.dataset, tmp_path / "wide", shared="concat", align_to=str(_shared(other, shop, tmp_path)))


def _shared(model, shop, tmp_path):
    run_export(model, shop.dataset, tmp_path / "shared")
    return tmp_path / "shared"


def test_parts_of_events_are_bounded(shop, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "USERS_A_PART", 7)
    manifest = run_export(model, shop.events, tmp_path / "out")
    assert manifest["parts"] == -(-manifest["users"] // 7)
    assert len(vectors_of(tmp_path / "out")) == manifest["users"]


def test_an_export_on_a_store(shop, model, by_user):
    import fsspec

    store = fsspec.filesystem("memory")
    try:
        run_export(model, shop.dataset, "memory://exports/shop", dtype="float16")
        found = vectors_of("memory://exports/shop")
        assert np.allclose(found["u001"], by_user["shared"]["u001"], atol=2e-3)
        assert not store.exists("/exports/shop/.progress")
    finally:
        store.rm("/exports", recursive=True)


def test_bad_options_are_told_before_any_work(shop, model, tmp_path):
    for options, message in (
        ({"tasks": ("byus",)}, "did you mean 'buys'"),
        ({"format": "csv"}, "expected parquet, npy, safetensors"),
        ({"dtype": "int4"}, "expected float32, float16, int8"),
        ({"tasks": ("buys", "next"), "align_to": "old"}, "one kind of vector is turned"),
        ({"labels": ("x",)}, "task 'x': the model has not learned it"),
        ({"tasks": ("buys",), "shared": "open"}, "--shared open: is for the shared vector, and buys are exported; leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_export(model, shop.dataset, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command(shop, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", str(shop.run), out, "--data", str(shop.events), "--task", "all", "--dtype", "int8", "--items"]) == 0
    assert "buys: 120 users × 16, int8" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "export.json").read_text())["tasks"] == ["next", "buys", "club"]
    assert main(["export", str(shop.run), out, "--stage", "1"]) == 2
    assert "holds the export of something else" in capsys.readouterr().err


def test_files_of_tasks_of_any_name_stay_in_their_folder(shop, tmp_path):
    from shop import RECIPE, make_shop_run, prepare_shop

    names = ("구매/a b", "../../../club")
    tasks = {names[0]: RECIPE["tasks"]["buys"], names[1]: {"kind": "profile", "attribute": "club"}}
    dataset = prepare_shop(shop.events, tmp_path / "dataset", tasks=tasks)
    model = dist_teracon.from_pretrained(make_shop_run(dataset, tmp_path / "run", tasks=["next", *names]))
    read = model.histories(str(shop.events))
    manifest = run_export(model, dataset, tmp_path / "out", tasks=names, labels=names, format="npy")
    assert all(name.count("/") == name.startswith("users/") and ".." not in name for name in manifest["files"])
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "run", "out"}
    for name in names:
        found, expected = vectors_of(tmp_path / "out", name), model.encode(read, name)
        assert all(np.allclose(found[user], row, atol=1e-5) for user, row in zip(read.users.to_pylist(), expected, strict=True))


def test_an_old_export_that_does_not_fit_is_refused_before_anything_is_written(shop, model, tmp_path):
    run_export(model, shop.dataset, tmp_path / "old")
    with pytest.raises(DataError, match="a rotation needs equal widths"):
        run_export(model, shop.dataset, tmp_path / "new", shared="concat", align_to=str(tmp_path / "old"))
    assert not (tmp_path / "new").exists()
    assert run_export(model, shop.dataset, tmp_path / "new", shared="concat")["users"] > 0


def test_times_of_last_events_and_events_of_other_times(shop, model, tmp_path):
    """A data set that keeps times gives those of its events, whether the model reads them or not; other times are other events."""
    from shop import RECIPE, prepare_shop

    timed = prepare_shop(shop.events, tmp_path / "timed", history={**RECIPE["history"], "keep": ["time"]})
    run_export(model, timed, tmp_path / "dataset")
    run_export(model, shop.events, tmp_path / "events")
    run_export(model, shop.dataset, tmp_path / "without")
    dataset, events, without = (
        dict(zip(table["user"].to_pylist(), table["last_event"].to_pylist(), strict=True))
        for table in (pq.read_table(tmp_path / name / "users") for name in ("dataset", "events", "without"))
    )
    assert dataset == {user: events[user] for user in dataset}
    assert None not in dataset.values()
    assert set(without.values()) == {None}
    moved = pq.read_table(shop.events / "events.parquet")
    later = pc.add(moved["timestamp"], 3600.0)
    pq.write_table(moved.set_column(moved.column_names.index("timestamp"), "timestamp", later), tmp_path / "moved.parquet")
    with pytest.raises(RunError, match="holds the export of something else"):
        run_export(model, tmp_path / "moved.parquet", tmp_path / "events")


def test_users_in_common_are_chosen_among_those_of_both(shop, model, tmp_path, monkeypatch):
    """An old export of many users serves a new one of a part of them; vectors of another kind are told."""
    from dist_teracon.inference import align

    monkeypatch.setattr(align, "FIT_USERS", 40)
    run_export(model, shop.dataset, tmp_path / "old", shared="open")
    users = pq.read_table(tmp_path / "old" / "users")["user"].to_pylist()
    from dist_teracon.hashing import stable_hash

    few = sorted(users, key=stable_hash)[-30:]  # of the greatest hashes: none of the old export's first forty
    table = pq.read_table(shop.events / "events.parquet")
    pq.write_table(table.filter(pc.is_in(table["user"], pa.array(few))), tmp_path / "few.parquet")
    told = []
    source = of_uri(model, str(tmp_path / "few.parquet"), log=no_log)
    made = export(model, source, str(tmp_path / "new"), ExportOptions(align_to=str(tmp_path / "old")), log=told.append)
    assert made["alignment"]["users"] == 30
    assert f"--align-to {tmp_path / 'old'}: its vectors are shared:open, and the new ones shared:mean; they are turned all the same" in told
