"""Task names in any script, and names that Python or PyTorch has for itself: learned, stored, resumed and reported under their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import results, settings, small_tables, train_here

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.schema import SplitRule, folder_of
from dist_teracon.report.html import write_report
from dist_teracon.report.run_data import read_run
from dist_teracon.train.restore import restore_method
from dist_teracon.train.verify import verify

NAMES = ("values", "성별 🛒 a/b <i>", "v1." + "아주 긴 " * 40 + "x")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small set whose tasks are `training`, and those of `NAMES`."""
    tables, folder = small_tables(), tmp_path_factory.mktemp("names") / "set"
    labels = [replace(table, name=name) for table, name in zip(tables.labels, NAMES, strict=True)]
    write_dataset(
        replace(tables, labels=labels, next_task="training"), str(folder), SplitRule(train=0.6, validation=0.2, test=0.2), shards=2
    )
    return str(folder)


@pytest.mark.parametrize("method", ["teracon", "popularity", "mtl", "peterrec", "piggyback", "lowrank", "sinmo", "fineall"])
def test_tasks_of_any_name_are_learned_and_reported(alone: None, named: str, tmp_path: Path, method: str) -> None:
    tasks = ("training", *NAMES)
    stage = {"learning_rate": 0.01, "batch": 64, "epochs": 1}
    run = train_here(settings(named, method=method, tasks=tasks, first=stage, second=stage, later=stage), tmp_path / "run")
    assert results(run)["tasks"] == list(tasks)
    folders = sorted(path.name for path in (run / "stages").iterdir())
    assert folders == [f"{number:02d}-{folder_of(name)}" for number, name in enumerate(tasks, 1)]
    assert all(name.isascii() and len(name) < 60 for name in folders)
    if method == "teracon":
        past = sorted(path.name for path in (run / "stages" / folders[-1] / "pseudo_labels").iterdir())
        assert past == sorted(map(folder_of, tasks[:-1]))
    assert [problem for _, problem in verify(str(run)) if problem] == []
    restored = restore_method(run)
    assert restored.learned == list(tasks)
    assert [restored.head(name).labels for name in tasks] == [task.labels for task in Dataset(named).info.tasks]
    read = read_run(run)
    assert read.tasks == tasks
    page = Path(write_report([run], tmp_path / "report.html")).read_text(encoding="utf-8")
    assert "성별 🛒 a/b &lt;i&gt;" in page
    assert "a/b <i>" not in page
    assert json.loads((run / "dataset.json").read_text())["tasks"][2]["name"] == NAMES[1]


def test_plain_names_keep_their_folders() -> None:
    for name in ("next", "star5", "life-status", "a.b_c", "A1"):
        assert folder_of(name) == name
    others = ["성별", "성별 ", "a b", "a/b", "../x", ".hidden", "_x", "x" * 201, "", "*"]
    found = list(map(folder_of, others))
    assert len(set(found)) == len(found)
    assert all(name.startswith("_") and name.isascii() and "/" not in name and len(name) < 40 for name in found)
