"""What the tables of finished runs' masks say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import TASKS, settings, train_here

from dist_teracon.bench.masks import alike, mask_facts
from dist_teracon.cli import main

ONE_EPOCH = {"learning_rate": 0.01, "batch": 32, "epochs": 1}
SHORT = {"first": ONE_EPOCH, "second": ONE_EPOCH, "later": ONE_EPOCH}


@pytest.fixture(scope="module")
def run(alone: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    method = {"name": "teracon", "gate": "all", "embedding_range": [-1.0, 1.0]}
    return train_here(settings(small, method=method, tasks=TASKS, **SHORT), tmp_path_factory.mktemp("masks") / "run")


def test_masks_that_begin_half_open_are_told_as_such(run: Path) -> None:
    facts = mask_facts(run)
    assert facts.tasks == TASKS
    for mean, closed, opened in zip(facts.mean, facts.closed, facts.open, strict=True):
        assert 0.2 < mean < 0.8
        assert closed + opened > 0.7
    assert facts.similarity.diagonal().tolist() == pytest.approx([1.0] * 4)
    assert facts.similarity[0, 1] == facts.similarity[1, 0]
    assert list(facts.rates) == list(TASKS[1:])
    assert list(facts.rates["gender"]) == list(TASKS[:3])
    near, far = alike(facts, [("age", "gender")])
    assert near == pytest.approx(float(facts.similarity[2, 3]))
    assert far == pytest.approx(float(facts.similarity[1, 2:].mean()))


def test_one_run_has_a_row_a_task_and_several_have_a_row_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "masks", str(run)]) == 0
    one = capsys.readouterr().out
    assert all(one.count(f"| {task} |") >= 1 for task in TASKS)
    assert main(["bench", "masks", str(run), str(run)]) == 0
    test = capsys.readouterr().out
    assert test.count(str(run)) == 2
    assert main(["bench", "masks", str(run), str(run), "--validation"]) == 0
    chosen_by = capsys.readouterr().out
    final = json.loads((run / "stages" / f"{len(TASKS):02d}-{TASKS[-1]}" / "state.json").read_text(encoding="utf-8"))
    for printed, key in ((test, "scores"), (chosen_by, "validation_scores")):
        assert " | ".join(f"{score:.4f}" for score in final[key]) in printed
    assert final["scores"] != final["validation_scores"]


def test_a_method_without_masks_is_refused(alone: None, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train_here(settings(small, method="sinmo", tasks=TASKS[:1], **SHORT), tmp_path / "run")
    assert main(["bench", "masks", str(plain)]) == 2
    assert "method sinmo has no masks" in capsys.readouterr().err
