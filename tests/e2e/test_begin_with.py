"""A run that takes over another one's first stages ends as one that trains them itself, bit for bit; what is not the same is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import UNTRAINED, events, results, settings, timeless, train_here, weights, write_small

from dist_teracon import cli
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.shared_stages import donors_of
from dist_teracon.continual.registry import METHODS, method_class
from dist_teracon.errors import RunError

STAGE = {"learning_rate": 0.01, "batch": 32, "epochs": 2, "weight_decay": 0.1, "pretrained_lr_scale": 0.5, "probe_steps": 5}
GIVEN, OTHER = ("next", "likes", "age"), ("next", "likes", "gender")


def values(dataset: str, *, tasks: tuple[str, ...] = GIVEN, method: dict[str, Any] | str = "teracon", **train: Any) -> dict[str, Any]:
    return settings(dataset, method=method, tasks=tasks, **{"first": {**STAGE, "probe_steps": 0}, "second": STAGE, "later": STAGE, **train})


def stages(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "stages").iterdir())


def assert_same_end(run: Path, whole: Path) -> None:
    assert (run / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert stages(run) == stages(whole)
    for stage in stages(whole):
        mine, theirs = weights(run, stage), weights(whole, stage)
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "method",
    [
        method if method in ("teracon", "mtl", "conure") else pytest.param(method, marks=pytest.mark.slow)
        for method in METHODS
        if method not in UNTRAINED
    ],
)
def test_two_stages_of_another_order_of_tasks(alone: None, small: str, tmp_path: Path, method: str) -> None:
    given = train_here(values(small, method=method), tmp_path / "given")
    whole = train_here(values(small, method=method, tasks=OTHER), tmp_path / "whole")
    run = train_here(values(small, method=method, tasks=OTHER), tmp_path / "run", begins_with=str(given))
    assert_same_end(run, whole)
    taken = 2 if method_class(method).stages_stand_alone else 1
    began = {event["stage"]: event["time"] for event in events(run, "stage")}
    assert [event["time"] for event in events(given, "stage")][:taken] == [began[stage] for stage in range(1, taken + 1)]
    assert began[taken + 1] > events(given, "stage")[-1]["time"]


PLAIN = [name for name in METHODS if method_class(name).plain_first_network is not None]


def test_which_methods_have_a_plain_first_stage() -> None:
    assert set(PLAIN) == {"sinmo", "fineall", "peterrec", "mtl", "piggyback", "lowrank"}


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        (theirs, own) if (theirs, own) in (("sinmo", "peterrec"), ("mtl", "fineall")) else pytest.param(theirs, own, marks=pytest.mark.slow)
        for place, theirs in enumerate(PLAIN)
        for own in (PLAIN[(place + 1) % len(PLAIN)], PLAIN[(place + 2) % len(PLAIN)])
    ],
)
def test_methods_with_a_plain_first_stage_have_it_in_common(alone: None, small: str, tmp_path: Path, theirs: str, own: str) -> None:
    given = train_here(values(small, method=theirs), tmp_path / "given", until_stage=1)
    whole = train_here(values(small, method=own), tmp_path / "whole")
    run = train_here(values(small, method=own), tmp_path / "run", begins_with=str(given))
    assert_same_end(run, whole)
    assert events(given, "stage")[0]["time"] == events(run, "stage")[0]["time"] < events(whole, "stage")[0]["time"]
    assert [event["method"] for event in events(run, "run")] == [own] * len(events(run, "run"))


def test_a_joint_network_from_scratch_starts_with_its_own_item_vectors(alone: None, small: str, tmp_path: Path) -> None:
    def svd(method: dict[str, Any] | str) -> dict[str, Any]:
        made = values(small, method=method, tasks=GIVEN[:2])
        return {**made, "model": {**made["model"], "item_init": "svd"}}

    given = train_here(svd("sinmo"), tmp_path / "given", until_stage=1)
    scratch = {"name": "mtl", "start": "scratch"}
    run = train_here(svd(scratch), tmp_path / "run", begins_with=str(given))
    assert_same_end(run, train_here(svd(scratch), tmp_path / "whole"))


def test_the_log_reads_as_that_of_a_whole_run(alone: None, small: str, tmp_path: Path) -> None:
    given = train_here(values(small), tmp_path / "given")
    whole = train_here(values(small, tasks=OTHER), tmp_path / "whole")
    run = train_here(values(small, tasks=OTHER), tmp_path / "run", begins_with=str(given))
    kept = [
        [{name: value for name, value in timeless(event).items() if "seconds" not in name} for event in events(folder, kind)]
        for kind in ("run", "stage", "epoch")
        for folder in (run, whole)
    ]
    for mine, theirs in zip(kept[::2], kept[1::2], strict=True):
        assert [(e.get("stage"), e.get("task"), e.get("tasks"), e.get("loss")) for e in mine] == [
            (e.get("stage"), e.get("task"), e.get("tasks"), e.get("loss")) for e in theirs
        ]


def test_settings_of_later_stages_and_of_retention_leave_the_first_stage_in_common(alone: None, small: str, tmp_path: Path) -> None:
    given = train_here(values(small), tmp_path / "given")
    slower = values(small, later={**STAGE, "learning_rate": 0.003})
    run = train_here(slower, tmp_path / "run", begins_with=str(given))
    assert_same_end(run, train_here(slower, tmp_path / "whole"))
    assert [event["time"] for event in events(run, "stage")][:2] == [event["time"] for event in events(given, "stage")][:2]
    own = {"gate": "all", "later_embedding_range": [-1.0, 1.0]}  # of the first task's mask neither tells anything
    stronger = values(small, method={"name": "teracon", "retention": {"alpha": 0.3, "minimum": 3}, **own})
    other = train_here(stronger, tmp_path / "other", begins_with=str(given))
    assert_same_end(other, train_here(stronger, tmp_path / "other-whole"))
    times = [[event["time"] for event in events(folder, "stage")] for folder in (other, given)]
    assert times[0][0] == times[1][0] and times[0][1] > times[1][2]


def test_a_run_that_is_under_way_goes_on(alone: None, small: str, tmp_path: Path) -> None:
    given = train_here(values(small), tmp_path / "given")
    run = train_here(values(small, tasks=OTHER), tmp_path / "run", until_stage=1)
    first = events(run, "stage")[0]["time"]
    train_here(values(small, tasks=OTHER), tmp_path / "run", begins_with=str(given))
    assert events(run, "stage")[0]["time"] == first
    assert len(results(run)["scores"]) == 3


def test_what_has_nothing_in_common_is_refused(alone: None, small: str, tmp_path: Path) -> None:
    given = train_here(values(small), tmp_path / "given", until_stage=1)

    def refused(own: dict[str, Any], donor: Path, part: str) -> None:
        with pytest.raises(RunError, match=part):
            train_here(own, tmp_path / "run", begins_with=str(donor))
        assert not (tmp_path / "run").exists()

    refused(values(small), tmp_path / "nowhere", "--begin-with: .*nowhere: is no run")
    refused({**values(small), "seed": 1}, given, "no stage of it is one of this run: seed is 0 there and 1 here")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tasks": ["likes", "next", "age"]}, "its stage 1 is 'next', here it is 'likes'"),
        ({"train": {"first": {**STAGE, "probe_steps": 0, "epochs": 3}}}, "epochs of stage 1 is 2 there and 3 here"),
        ({"method": {"name": "fineall"}}, "method.name is 'teracon' there and 'fineall' here"),
        ({"method": {"name": "hat"}}, "method.name is 'teracon' there and 'hat' here"),
    ],
)
def test_why_nothing_is_in_common(alone: None, small: str, tmp_path: Path, change: dict[str, Any], part: str) -> None:
    given = train_here(values(small), tmp_path / "given", until_stage=1)
    own = values(small)
    own = {**own, **change, "train": {**own["train"], **change.get("train", {})}}
    with pytest.raises(RunError, match=part):
        train_here(own, tmp_path / "run", begins_with=str(given))


def test_another_data_set_is_refused(alone: None, small: str, tmp_path: Path) -> None:
    given = train_here(values(small), tmp_path / "given", until_stage=1)
    other = write_small(tmp_path / "set", users=100)
    with pytest.raises(RunError, match="given: is of another data set than"):
        train_here(values(other), tmp_path / "run", begins_with=str(given))


def compared(tmp_path: Path, dataset: str, plan: dict[str, Any], *options: str, name: str = "out") -> Path:
    """Compare variants of one run, one after another; returns the comparison's folder."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values(dataset)))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"config": str(tmp_path / "run.yaml"), "seeds": [0], **plan}))
    out = tmp_path / name
    assert cli.main(["compare", str(tmp_path / "plan.yaml"), "--out", str(out), "--parallel", "1", "--quiet", *options]) == 0
    return out


def test_cells_of_a_comparison_train_common_stages_once(alone: None, small: str, tmp_path: Path) -> None:
    out = compared(tmp_path, small, {"axes": {"order": {"given": list(GIVEN), "other": list(OTHER)}}, "baseline": "given"})
    run, given = (out / "cells" / name / "seed-0" for name in ("other", "given"))
    assert f"the first 2 of 3 stages are those of {given} (its stage 3 is 'age', here it is 'gender')" in (
        out / "logs" / "other-seed-0.log"
    ).read_text(encoding="utf-8")
    assert_same_end(run, train_here(values(small, tasks=OTHER), tmp_path / "whole"))


def test_cells_of_methods_with_a_plain_first_stage_may_begin_with_one_another(small: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values(small)))
    plan = {"config": str(tmp_path / "run.yaml"), "seeds": [0], "axes": {"method": ["sinmo", "piggyback", "teracon"]}, "baseline": "sinmo"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    _, cells = read_plan(str(tmp_path / "plan.yaml"))
    found = donors_of(cells, tmp_path / "out")
    given = {cell.variant: [(donor.run.parent.name, donor.stages) for donor in found[cell.name]] for cell in cells}
    assert given == {"sinmo": [("piggyback", 1)], "piggyback": [("sinmo", 1)], "teracon": []}


@pytest.mark.slow
def test_cells_of_several_methods_train_a_plain_first_stage_once(alone: None, small: str, tmp_path: Path) -> None:
    out = compared(tmp_path, small, {"axes": {"method": ["sinmo", "piggyback"]}, "baseline": "sinmo"})
    assert len({events(out / "cells" / name / "seed-0", "stage")[0]["time"] for name in ("sinmo", "piggyback")}) == 1
    log = (out / "logs" / "piggyback-seed-0.log").read_text(encoding="utf-8")
    assert "the first 1 of 3 stages" in log and "(method.name is 'sinmo' there and 'piggyback' here)" in log


def test_cells_begin_with_runs_of_another_comparison(alone: None, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first"
    train_here(values(small, method="sinmo"), first / "cells/sinmo/seed-0")
    plan = {"axes": {"method": ["fineall", "sinmo"]}, "baseline": "fineall"}
    out = compared(tmp_path, small, plan, "--begin-with", str(first), name="second")
    given = events(first / "cells/sinmo/seed-0", "stage")
    for name, taken in (("fineall", 1), ("sinmo", 3)):
        stages = events(out / "cells" / name / "seed-0", "stage")
        assert [stage["time"] for stage in stages[:taken]] == [stage["time"] for stage in given[:taken]]
    assert_same_end(out / "cells/fineall/seed-0", train_here(values(small, method="fineall"), tmp_path / "whole"))
    (tmp_path / "empty").mkdir()
    third = ["compare", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "third"), "--quiet", "--begin-with", str(tmp_path / "empty")]
    assert cli.main(third) == 2
    assert "empty: expected the folder of a comparison, with runs in cells/" in capsys.readouterr().err
