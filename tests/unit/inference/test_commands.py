"""`predict`, `evaluate` and `export-model`."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dist_teracon
from dist_teracon.cli import main
from dist_teracon.console import Console
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import Split
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import metrics_of
from dist_teracon.evaluate.scorer import score_task
from dist_teracon.inference.evaluate import evaluate
from dist_teracon.inference.export import export
from dist_teracon.inference.export_job import ExportOptions
from dist_teracon.inference.export_reader import open_export
from dist_teracon.inference.padded import export_model
from dist_teracon.inference.sources import of_uri
from dist_teracon.runtime import Runtime

ALONE = Runtime(0, 1, torch.device("cpu"))


def test_predictions_of_a_folder_of_events(shop, model, tmp_path, capsys):
    out = tmp_path / "top.parquet"
    arguments = ["predict", str(shop.run), str(shop.events), str(out), "--task", "buys", "--top", "5"]
    assert main(arguments) == 0
    table = pq.read_table(out)
    read = model.histories(str(shop.events))
    expected = model.predict(read, "buys", top=5)
    assert table["user"].to_pylist() == read.users.to_pylist()
    assert table["labels"].to_pylist() == expected.labels
    assert np.allclose(np.array(table["scores"].to_pylist()), expected.scores)
    assert table.schema.metadata[b"dist_teracon.run"].decode() == model.fingerprint
    # of a prepared data set the same users; it holds histories within the length limit alone, so no more could be left out
    ranked = []
    for name, source in (("logs", str(shop.events)), ("data", shop.dataset)):
        assert main([*arguments[:2], source, str(tmp_path / name), *arguments[4:], "--no-exclude-seen"]) == 0
        found = pq.read_table(tmp_path / name)
        ranked.append(dict(zip(found["user"].to_pylist(), found["labels"].to_pylist(), strict=True)))
    assert ranked[0] == ranked[1]
    before = out.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments[:3], str(tmp_path / "x"), "--task", "clubs"]) == 2
    assert "did you mean 'club'" in capsys.readouterr().err


def test_a_name_of_another_form_is_refused_before_anything_is_read(tmp_path, capsys):
    out = tmp_path / "best.CSV"
    assert main(["predict", str(tmp_path / "no-run"), str(tmp_path / "no-events"), str(out), "--task", "buys"]) == 2
    assert f"predict {out}: the file is Parquet; give it a name that ends with .parquet" in capsys.readouterr().err


def scores_by(model, dataset, **settings):
    return {
        task: score_task(
            model.method, dataset, task, Split.TEST, metrics=metrics_of(dataset.info.task(task), model.config.evaluate.metrics),
            runtime=ALONE, batch=512, max_users=None, seed=0, **settings,
        ).values
        for task in model.tasks
    }  # fmt: skip


def test_evaluation_on_the_runs_own_data(shop, model, capsys, tmp_path):
    dataset = Dataset(shop.dataset)
    assert {score.task: score.values for score in evaluate(model)} == scores_by(model, dataset)
    ranked = evaluate(model, exclude_seen=False)
    assert {score.task: score.values for score in ranked} == scores_by(model, dataset, exclude_seen=False)
    assert ranked[0].values != evaluate(model)[0].values
    assert main(["evaluate", str(shop.run), "--metrics", "ndcg@10,auroc", "--split", "validation", "--json", str(tmp_path / "s.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "ndcg@10", "auroc", "users", "examples", "never", "seen", "own", "items"]
    assert [line.split()[0] for line in lines[1:]] == ["next", "buys", "club"]
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["tasks"]["next"]["excludes_seen"] is True
    assert main(["evaluate", str(shop.run), "--metrics", "ndgc@10"]) == 2
    assert "did you mean 'ndcg'" in capsys.readouterr().err


def test_evaluation_on_another_data_set_matches_names(shop, model, tmp_path):
    """The same events under a recipe that orders items otherwise, with items and buyers that the model does not know."""
    from shop import prepare_shop, write_events

    events = write_events(tmp_path / "events", users=160, seed=3)
    rule = {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 7}
    other = prepare_shop(events, tmp_path / "other", name="other", split=rule)
    told = []
    found = evaluate(model, other, log=told.append)
    assert any("is no version of the run's own data set" in line for line in told)
    assert any("is split by another rule than the run's own data set" in line for line in told)
    told.clear()
    evaluate(model, split="validation", log=told.append)
    assert told == []
    # by hand: raw histories of its test users through `predict`
    dataset, items = Dataset(other), Dataset(other).vocabulary("items")["item"].to_pylist()
    ranks, unseen = [], 0
    names = dataset.vocabulary("buys")["label"].to_pylist()
    for shard in range(dataset.info.shards):
        data, labels = dataset.shard(shard), dataset.labels("buys", shard).of(Split.TEST)
        values, offsets = ragged.side_by_side(dataset.earlier(shard), (data.values, data.offsets))
        for row, user in enumerate(labels.users):
            history = [items[item] or "?" for item in values[offsets[user] : offsets[user + 1]]]
            ranked = model.predict([history], "buys", top=99).labels[0]
            for label in labels.values[labels.offsets[row] : labels.offsets[row + 1]]:
                ranks.append(ranked.index(names[label]) + 1 if names[label] in ranked else 10**9)
                unseen += names[label] not in model.labels("buys").names
    score = next(score for score in found if score.task == "buys")
    assert score.examples == len(ranks)
    assert score.unseen == unseen
    assert score.values["mrr@5"] == pytest.approx(np.mean([1 / rank if rank <= 5 else 0 for rank in ranks]))


def test_evaluation_says_what_it_cannot_do(shop, model):
    with pytest.raises(ConfigError, match="expected train, validation or test, got 'tset'"):
        evaluate(model, split="tset")
    with pytest.raises(ConfigError, match=r"no task of .* has any of auroc"):
        evaluate(model, tasks=["next"], metrics=["auroc"])
    told = []
    assert [score.task for score in evaluate(model, metrics=["auroc"], log=told.append)] == ["club"]
    assert "next: none of auroc is for its kind of task; left out" in told


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        ("nextitnet", "concat"),
        ("sasrec", "mean"),
        ("nextitnet", "last"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("sasrec", "concat"), ("nextitnet", "mean"), ("sasrec", "last"))),
    ],
)
def test_an_exported_program_equals_encode(shop, tmp_path, backbone, pooling, caplog):
    from shop import CONFIG, make_shop_run

    settings = {"nextitnet": {"dilations": [1, 2]}, "sasrec": {"layers": 2, "max_positions": 4}}[backbone]
    shape = {**CONFIG["model"], "backbone": {"name": backbone, **settings}, "pooling": pooling}
    model = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "run", model=shape))
    out = tmp_path / "model.pt2"
    assert export_model(model, str(out), "buys") < 1e-5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    extra = {"metadata": ""}
    program = torch.export.load(str(out), extra_files=extra).module()
    assert json.loads(extra["metadata"])["run"] == model.fingerprint
    histories = [["p01", "p05", "p07"], ["p03"], ["p02", "p04"]]
    items, lengths = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([3, 1, 2])
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor([model.items.index(item) for item in history])
    vectors, logits = program(items, lengths)
    assert np.allclose(vectors.numpy(), model.encode(histories, "buys"), atol=1e-5)
    best = model.predict(histories, "buys", top=1, exclude_seen=False)
    assert logits.argmax(1).tolist() == best.indices[:, 0].tolist()


@pytest.mark.parametrize(("backbone", "pooling"), [("nextitnet", "concat"), ("sasrec", "mean")])
def test_an_exported_onnx_model_equals_encode(shop, tmp_path, backbone, pooling, capsys):
    from shop import CONFIG, make_shop_run

    onnxruntime = pytest.importorskip("onnxruntime")
    settings = {"nextitnet": {"dilations": [1, 2]}, "sasrec": {"layers": 2, "max_positions": 4}}[backbone]
    shape = {**CONFIG["model"], "backbone": {"name": backbone, **settings}, "pooling": pooling}
    run, out = make_shop_run(shop.dataset, tmp_path / "run", model=shape), tmp_path / "model.onnx"
    assert main(["export-model", str(run), str(out), "--task", "buys"]) == 0
    model = dist_teracon.from_pretrained(run)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["dist_teracon"])
    assert (metadata["run"], metadata["task"]) == (model.fingerprint, "buys")
    histories = [["p01", "p05", "p07"], ["p03"], ["p02", "p04"]]
    items, lengths = np.zeros((3, 5), np.int64), np.array([3, 1, 2])
    for row, history in enumerate(histories):
        items[row, : len(history)] = [model.items.index(item) for item in history]
    vectors, logits = session.run(["vectors", "logits"], {"items": items, "lengths": lengths})
    assert np.allclose(vectors, model.encode(histories, "buys"), atol=1e-5)
    assert logits.argmax(1).tolist() == model.predict(histories, "buys", top=1, exclude_seen=False).indices[:, 0].tolist()
    longer = np.full((1, metadata["length_limit"] + 1), items[0, 0])
    with pytest.raises(Exception, match=r"invalid index|out of data bounds"):  # and not other vectors than those of the last items
        session.run(None, {"items": longer, "lengths": np.array([longer.shape[1]])})


def test_onnx_without_its_packages_is_one_message(shop, tmp_path, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest))
    assert main(["export-model", str(shop.run), str(tmp_path / "m.onnx"), "--task", "buys"]) == 2
    assert "pip install 'dist-teracon[onnx]'" in capsys.readouterr().err


def test_the_command_exports_a_program(shop, tmp_path, capsys):
    assert main(["export-model", str(shop.run), str(tmp_path / "m.pt2"), "--task", "club"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-5
    assert main(["export-model", str(shop.run), str(tmp_path / "m.pt2"), "--task", "club"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_progress_is_shown_as_elsewhere(model):
    assert evaluate(model, progress=Console(active=False))


def test_a_later_version_of_the_data(shop, model, tmp_path):
    """Old tasks score as ever; new users are exported, and their new items are read as unseen and counted."""
    from shop import prepare_shop, write_events

    events = write_events(tmp_path / "events", users=150, seed=5)
    (tmp_path / "new").mkdir()
    table = pq.read_table(events / "events.parquet").to_pandas()
    table = table[table.user >= "u110"]
    table["item"] = table["item"].replace({"p03": "brand-new"})
    table.to_parquet(tmp_path / "new" / "events.parquet")
    tasks = {"returns": {"kind": "item", "events": {"type": "buy"}}}
    added = prepare_shop(tmp_path / "new", tmp_path / "added", tasks=tasks)
    recipe = Dataset(shop.dataset).info.source["recipe"]
    joined = {**recipe, "tasks": {**recipe["tasks"], **Dataset(added).info.source["recipe"]["tasks"]}}
    info = append(shop.dataset, added, str(tmp_path / "later"), recipe=joined)
    assert list(info.source["recipe"]["tasks"]) == ["buys", "category", "club", "returns"]
    assert info.labels_are_items("returns")
    later = str(tmp_path / "later")
    assert {score.task: score.values for score in evaluate(model, later)} == {score.task: score.values for score in evaluate(model)}
    manifest = export(model, of_uri(model, later, log=lambda _: None), str(tmp_path / "out"), ExportOptions())
    assert manifest["users"] == info.users > Dataset(shop.dataset).info.users
    assert manifest["unknown_events"] > 0
    parts = open_export(str(tmp_path / "out")).read("shared")
    found = {user: row for users, rows in parts for user, row in zip(users.to_pylist(), rows, strict=True)}
    views = table[(table.type == "view") & (table.user == "u140")].sort_values("timestamp").item.tolist()
    assert np.allclose(found["u140"], model.encode([views])[0], atol=1e-6)
