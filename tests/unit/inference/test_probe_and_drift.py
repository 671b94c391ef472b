"""Probes on frozen vectors, and drift between vectors: right values where they are known, and the gate."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dist_teracon
from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference import probe as probe_module
from dist_teracon.inference.drift import VectorSet, drift
from dist_teracon.inference.labels_file import UserLabels, read_labels
from dist_teracon.inference.probe import default_metric, score_features

USERS = [f"u{user:04d}" for user in range(600)]


def made_labels(values, classes=("a", "b")):
    tenth = np.arange(len(values)) % 10
    split = np.where(tenth < 6, 0, np.where(tenth < 8, 1, 2)).astype(np.int8)
    return UserLabels(USERS[: len(values)], np.asarray(values), list(classes), split)


def vectors_as(name, values):
    by_user = dict(zip(USERS, values.astype(np.float32), strict=False))
    return VectorSet(name, lambda: iter([pa.array(list(by_user))]), lambda wanted: {user: by_user[user] for user in wanted})


@pytest.fixture
def numbers():
    return np.random.default_rng(0).standard_normal((600, 8))


def test_features_that_tell_the_label_and_features_that_do_not(numbers):
    labels = made_labels((numbers[:, 0] > 0).astype(np.int64))
    metric = default_metric(2)
    telling = score_features("telling", numbers.astype(np.float32), labels, metric)
    noise = score_features("noise", np.random.default_rng(1).standard_normal((600, 8)).astype(np.float32), labels, metric)
    assert telling.score > 0.95
    assert abs(noise.score - 0.5) < 0.13  # 120 test users: a standard error of 0.053
    assert telling.interval[0] <= telling.score <= telling.interval[1]
    assert noise.interval[1] < telling.interval[0]
    gain, low, high = telling.difference(noise)
    assert 0 < low < gain < high
    assert score_features("telling", numbers.astype(np.float32), labels, metric).score == telling.score


def test_metrics_by_number_of_classes():
    assert default_metric(2).name == "auroc"
    assert default_metric(3).name == "accuracy"
    for name in ("ndcg@10", "log-loss", "acuracy"):
        with pytest.raises(ConfigError, match="--metric"):
            default_metric(2, name)


def test_equal_vectors_do_not_drift(numbers):
    found = drift(vectors_as("old", numbers), vectors_as("new", numbers), users=300)
    assert (found.users, found.common) == (300, 600)
    assert found.cosine == pytest.approx(1)
    assert found.residual == pytest.approx(0, abs=1e-6)
    assert found.neighbours == 1
    assert found.cka == pytest.approx(1)


def test_turned_vectors_keep_neighbours_and_lose_the_old_probe(numbers):
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((8, 8)))[0]
    labels = made_labels((numbers[:, 0] > 0).astype(np.int64))
    found = drift(vectors_as("old", numbers), vectors_as("new", numbers @ rotation), labels=labels)
    assert found.cosine < 0.9
    assert found.residual == pytest.approx(0, abs=1e-5)
    assert found.neighbours > 0.99
    assert found.cka == pytest.approx(1)
    assert found.probe["old"] > 0.95
    assert found.probe["new, rotated"] == pytest.approx(found.probe["old"], abs=0.01)
    assert found.drop == pytest.approx(1 - found.probe["new"] / found.probe["old"])
    assert found.drop > 0.05


def test_independent_vectors_have_little_in_common(numbers):
    other = np.random.default_rng(3).standard_normal((600, 5))
    found = drift(vectors_as("old", numbers), vectors_as("new", other))
    assert found.cosine is None
    assert found.residual is None
    assert found.neighbours < 0.1
    assert found.cka < 0.1
    with pytest.raises(ConfigError, match="an old probe reads vectors of 8 numbers, and the new ones have 5"):
        drift(vectors_as("old", numbers), vectors_as("new", other), labels=made_labels(np.arange(600) % 2))
    with pytest.raises(DataError, match="have 7 common users"):
        drift(vectors_as("old", numbers[:7]), vectors_as("new", numbers))


def test_a_space_that_has_collapsed_is_like_none_other(numbers):
    same = np.tile(np.float32([0.1, 0.7, -0.3]), (600, 1))
    assert drift(vectors_as("old", numbers), vectors_as("new", same)).cka == 0
    assert drift(vectors_as("old", same), vectors_as("new", same)).cka == 1


@pytest.fixture(scope="module")
def labels_file(shop, tmp_path_factory):
    """Which of the shop's two halves of tastes a user has, which the views tell; a user whom the shop does not know."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = [f"u{user:03d},{'left' if user % 2 else 'right'}" for user in range(120)]
    path.write_text("user,label\n" + "\n".join([*rows, "stranger,left"]) + "\n")
    return path


def test_the_probe_command(shop, labels_file, tmp_path, capsys):
    out = tmp_path / "probe.json"
    assert main(["probe", str(shop.run), "--labels", str(labels_file), "--task", "all", "--json", str(out)]) == 0
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found["vectors"]) == ["shared:mean", "shared:open", "shared:concat", "next", "buys", "club"]
    assert list(found["baselines"]) == ["SVD of items", "event counts", "mean of item vectors"]
    assert sum(found["users"]) == 120
    assert found["baselines"]["event counts"]["score"] > 0.9
    assert "1 labels are of users that are not in the data; left out" in shown
    assert "to " in shown


def test_a_task_of_the_data_set_that_the_model_did_not_learn(shop, tmp_path, capsys):
    from shop import make_shop_run

    run = str(make_shop_run(shop.dataset, tmp_path / "run", tasks=["next", "buys"]))
    assert main(["probe", run, "--labels-task", "club", "--json", str(tmp_path / "probe.json")]) == 0
    found, club = json.loads((tmp_path / "probe.json").read_text()), Dataset(shop.dataset).info.task("club")
    assert found["users"] == list(club.examples)
    assert found["classes"] == Dataset(shop.dataset).vocabulary("club")["label"].to_pylist()
    assert "has learned it" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["probe", run, "--labels-task", "club", "--seed", "-1"])
    assert "--seed: expected a whole number of 0 or more" in capsys.readouterr().err
    assert main(["probe", run, "--labels-task", "buys"]) == 2
    assert "ranks items; a probe learns classes" in capsys.readouterr().err


def test_the_drift_command_and_its_gate(shop, labels_file, tmp_path, capsys):
    run = str(shop.run)
    assert main(["export", run, str(tmp_path / "old"), "--task", "next"]) == 0
    assert main(["drift", str(tmp_path / "old"), run, "--task", "next", "--labels", str(labels_file), "--max-drop", "1%"]) == 0
    assert "mean cosine           1.0000" in capsys.readouterr().out
    out = tmp_path / "drift.json"
    stages = ["drift", run, run, "--old-stage", "1", "--new-stage", "3", "--task", "next", "--json", str(out)]
    assert main(stages) == 0
    found = json.loads(out.read_text())
    assert found["users"] == 120
    assert found["residual"] > 0.01
    # a probe that was fitted on other numbers altogether falls below the gate
    for path in (tmp_path / "old" / "users").glob("*.parquet"):
        table = pq.read_table(path)
        column = pa.FixedSizeListArray.from_arrays(pa.array(-table["vector_next"].combine_chunks().flatten().to_numpy()), 16)
        pq.write_table(table.set_column(table.column_names.index("vector_next"), "vector_next", column), path)
    assert main(["drift", str(tmp_path / "old"), run, "--task", "next", "--labels", str(labels_file), "--max-drop", "1%"]) == 1
    assert "the old probe's score falls by" in capsys.readouterr().out
    for arguments, message in (
        (["--max-drop", "1%"], "needs --labels FILE"),
        (["--labels", str(labels_file), "--max-drop", "x"], "expected a share as 1% or 0.01"),
        (["--old-stage", "1"], "is an export, of one stage"),
        (["--task", "nxt"], "did you mean 'next'"),
    ):
        assert main(["drift", str(tmp_path / "old"), run, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_files_of_labels_that_cannot_be_read(tmp_path):
    for text, message in (
        ("user,label\na,1\na,2\n", "user 'a' stands there 2 times"),
        ("user,label\na,1\nb,1\n", "expected 2 to 1000 classes, got 1"),
        ("user,lable\na,1\n", "no column 'label'; did you mean 'lable'"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_labels(str(tmp_path / "labels.csv"))


def test_rows_of_labels_that_cannot_be_read_are_told(tmp_path):
    """Of 2,500 rows one has a field too few, and one no label: they are left out, and said where they are. Of few rows two are too many."""
    rows = [f"u{user},{'ab'[user % 2]}" for user in range(2500)]
    rows[7], rows[9] = "u7", "u9,"
    (tmp_path / "labels.csv").write_text("user,label\n" + "\n".join(rows) + "\n")
    said: list[str] = []
    labels = read_labels(str(tmp_path / "labels.csv"), log=said.append)
    assert len(labels.users) == 2498 and not {"u7", "u9"} & set(labels.users)
    assert any("labels.csv:9" in line for line in said) and any("labels.csv:11" in line for line in said), said
    (tmp_path / "few.csv").write_text("user,label\n" + "\n".join(rows[:60]) + "\n")
    with pytest.raises(DataError, match="2 of 60 rows are malformed; 0 would be passed over"):
        read_labels(str(tmp_path / "few.csv"))


def test_vectors_of_two_kinds_are_told(shop, tmp_path, capsys):
    for name, task in (("one", "next"), ("two", "club")):
        assert main(["export", str(shop.run), str(tmp_path / name), "--task", task]) == 0
    capsys.readouterr()
    assert main(["drift", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "vectors of two kinds are compared: next and club" in "".join(capsys.readouterr())


def test_no_dates_of_a_data_set_is_told_to_do_nothing(shop, tmp_path, capsys):
    assert main(["export", str(shop.run), str(tmp_path / "out"), "--no-dates"]) == 0
    assert "is a data set, whose histories are cut already" in "".join(capsys.readouterr())


def test_too_few_users_are_told(shop, model, tmp_path):
    (tmp_path / "labels.csv").write_text("user,label\n" + "".join(f"u{user:03d},{user % 2}\n" for user in range(30)))
    from dist_teracon.inference.sources import of_uri

    source = of_uri(model, shop.dataset, log=lambda _: None)
    with pytest.raises(DataError, match="too few for a probe"):
        probe_module.probe(model, source, read_labels(str(tmp_path / "labels.csv")), tasks=["shared"])
    (tmp_path / "labels.csv").write_text("user,label\nx,1\ny,2\n")
    with pytest.raises(DataError, match="none of 2 users is in the data"):
        probe_module.probe(model, source, read_labels(str(tmp_path / "labels.csv")), tasks=["shared"])


def test_a_method_with_a_model_for_each_task_has_no_mean(shop, tmp_path):
    from shop import make_shop_run

    model = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "run", method={"name": "sinmo"}))
    assert model.encode([["p01"]]).shape == (1, 48)
    with pytest.raises(ConfigError, match="has no one network for all tasks, so they share no space"):
        model.encode([["p01"]], shared="mean")
    assert probe_module.every_vector(model) == ["shared:concat", "next", "buys", "club"]


@pytest.mark.usefixtures("undrawn")
def test_drift_between_the_stages_of_a_run_is_noted_and_in_its_report(shop, tmp_path, capsys):
    import shutil

    from dist_teracon.report.html import render
    from dist_teracon.report.run_data import read_run

    run = tmp_path / "run"
    shutil.copytree(shop.run, run)
    assert main(["drift", str(run), "--stages"]) == 0
    found = json.loads((run / "drift.json").read_text())["next"]
    assert [(row["old"], row["new"]) for row in found["rows"]] == [(1, 2), (2, 3), (1, 3)]
    assert main(["drift", str(run), str(run), "--old-stage", "1", "--new-stage", "3", "--task", "next", "--json", str(tmp_path / "d")]) == 0
    single = json.loads((tmp_path / "d").read_text())
    assert {name: found["rows"][2][name] for name in single} == single
    assert main(["drift", str(run), "--stages", "--task", "buys"]) == 0
    assert list(json.loads((run / "drift.json").read_text())) == ["next", "buys"]
    page = render([read_run(run)])
    assert 'id="drift"' in page
    assert "1 next → 3 club" in page
    assert 'id="drift"' not in render([read_run(shop.run)])
    capsys.readouterr()
    for arguments, said in (
        (["--stages", "--task", "club"], "one stage alone has vectors of 'club'"),
        (["--stages", "--labels", "x.csv"], "leave --labels out"),
        (["--stages", "--metric", "auroc"], "leave --metric out"),
        ([], "expected OLD and NEW"),
    ):
        assert main(["drift", str(run), *arguments]) == 2
        assert said in capsys.readouterr().err
