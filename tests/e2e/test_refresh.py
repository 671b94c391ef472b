"""A run goes on with a refreshed version of its data set: heads grow, old stages stay, and reports say which scores do not compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ALONE, checked, results, settings, small_tables, train_here, weights

from dist_teracon.console import Console
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import Split, SplitRule
from dist_teracon.inference.evaluate import evaluate
from dist_teracon.inference.model import from_pretrained
from dist_teracon.report.html import write_report
from dist_teracon.report.run_data import read_run
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.restore import restore_method
from dist_teracon.train.run import train

RULE = SplitRule(train=0.6, validation=0.2, test=0.2)


@pytest.mark.usefixtures("undrawn")
def test_a_task_is_added_on_a_refreshed_version(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = small_tables(), small_tables(users=220, items=47)
    write_dataset(replace(before, labels=before.labels[:1]), str(tmp_path / "old"), RULE, shards=4)
    write_dataset(now, str(tmp_path / "today"), RULE, shards=4)
    append(str(tmp_path / "old"), str(tmp_path / "today"), str(tmp_path / "new"), refresh=True)
    append(str(tmp_path / "old"), str(tmp_path / "today"), str(tmp_path / "plain"))
    old, new = Dataset(str(tmp_path / "old")).info, Dataset(str(tmp_path / "new")).info
    fresh = new.items - old.items
    assert fresh > 0
    assert new.task("next").labels == old.task("next").labels + fresh

    stage = {"learning_rate": 0.01, "batch": 64, "epochs": 1}
    stages = {"first": stage, "second": stage, "later": stage}
    run = train_here({**settings(str(tmp_path / "old"), **stages), "tasks": None}, tmp_path / "run")
    base = results(run)
    config = {**settings(str(tmp_path / "new"), **stages), "tasks": None}
    said: list[str] = []
    console = Console(active=False)
    monkeypatch.setattr(console, "log", said.append)
    train(checked(config), ALONE, run, where="test", console=console, added=AddedTask("gender"))
    told = [line for line in said if "labels that came later" in line]
    assert len(told) == 1 and told[0].startswith(f"task 'next' has {fresh} labels that came later, and this run does not learn them")
    assert "train a new run on this version of the data (another --run)" in told[0]
    grown = results(run)
    assert grown["scores"][:2] == base["scores"]
    assert grown["data_versions"] == [old.fingerprint, old.fingerprint, new.fingerprint]
    # what the first task's training saw is what it saw then, whatever today's training rows hold
    today = Dataset(str(tmp_path / "new"))
    seen = Dataset(str(tmp_path / "old")).train_counts("next") > 0
    targets = np.concatenate([today.labels("next", shard).of(Split.TEST).values for shard in range(new.shards)])
    then = int((~np.concatenate([seen, np.zeros(fresh, bool)])[targets]).sum())
    assert then != int((today.train_counts("next")[targets] == 0).sum())
    assert grown["unseen_targets"][0] == then
    model = from_pretrained(run, stage=2)
    assert model.seen_labels["next"].tolist() == [*seen.tolist(), *[False] * fresh]
    (score,) = evaluate(model, str(tmp_path / "new"), tasks=["next"])
    assert score.unseen == then

    known, head = weights(run, "02-likes"), weights(run, "03-gender")
    labels = old.task("next").labels
    assert head["heads.next.weight"].shape[0] == labels + fresh
    # a past head may learn on, by its pseudo-labels; new rows begin as zeros with the smallest bias
    method = restore_method(run, stage=2)
    first = method.head("next")
    assert torch.equal(first.weight[:labels], known["heads.next.weight"])
    assert not first.weight[labels:].any()
    assert torch.equal(first.bias[labels:], known["heads.next.bias"].min().expand(fresh))

    data = read_run(run)
    assert "with other histories: after next, likes." in data.version_note
    assert data.version_note in Path(write_report([run], tmp_path / "report.html")).read_text(encoding="utf-8")


def test_scores_on_an_appended_version_compare(tmp_path: Path) -> None:
    from made_runs import make_run

    tables = small_tables()
    write_dataset(replace(tables, labels=tables.labels[:1]), str(tmp_path / "old"), RULE, shards=4)
    write_dataset(small_tables(users=200), str(tmp_path / "more"), RULE, shards=4)
    new = append(str(tmp_path / "old"), str(tmp_path / "more"), str(tmp_path / "new"))
    old = Dataset(str(tmp_path / "old")).info
    run = replace(read_run(make_run(tmp_path / "run")), dataset=new, data_versions=(old.fingerprint, new.fingerprint, None))
    assert run.version_note == ""
    assert "after " in replace(run, data_versions=("another",)).version_note
