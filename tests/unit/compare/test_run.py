"""`dist-teracon compare` from the command line: what is refused before a cell runs, a cell that fails, and cells that go on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import settings, write_small

from dist_teracon import cli
from dist_teracon.compare.cells import CellJob, CellsError
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.run import compare
from dist_teracon.console import Console


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("data") / "small")


def plan_file(folder: Path, dataset: str, **fields: Any) -> str:
    """A plan of two systems that are quickly there, on three tasks."""
    own = settings(dataset, first={"learning_rate": 0.01, "batch": 64, "epochs": 1})
    del own["method"]
    (folder / "run.yaml").write_text(yaml.safe_dump(own))
    plan = {
        "config": str(folder / "run.yaml"),
        "set": {"train.max_steps": 2},
        "seeds": [0],
        "axes": {"method": ["popularity", "fineall"]},
        "baseline": "popularity",
        **fields,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return str(folder / "plan.yaml")


ORDERS = {"method": ["popularity"], "order": {"given": ["next", "likes", "age"], "other": ["next", "age", "gender"]}}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, which has to refuse as a user's mistake; returns its error."""
    assert cli.main(["compare", *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"axes": {"method": ["popularity"], "order": {"a": None, "b": ["next", "shoes"]}}}, "variant 'b': tasks: "),
        ({"set": {"train.by_task": {"shoes": {"epochs": 2}}}}, "variant 'fineall': train.by_task: "),
        ({"set": {"tasks": ["likes", "next", "age"]}, "axes": {"method": ["popularity", "mtl"]}}, "variant 'mtl': tasks: method 'mtl'"),
        ({"set": {"dataset": "no/such/folder"}}, "no/such/folder"),
        (
            {"experiment": "similarity", "set": {"tasks": ["next"]}},
            "experiment 'similarity' needs 2 tasks at least; variant 'popularity' has 1 (next)",
        ),
        (
            {"experiment": "orders", "axes": ORDERS, "baseline": "given"},
            "experiment 'orders' compares orders of the same tasks; 'other' differs from its baseline in gender, likes",
        ),
        (
            {"experiment": "noisy", "axes": {"method": ["popularity"], "order": {**ORDERS["order"], "other": None}}, "baseline": "given"},
            "experiment 'noisy' adds a task to the baseline's; all orders have the same tasks",
        ),
        ({"experiment": "similarity"}, "'similarity' shows masks of tasks, and no variant's method does that (fineall, popularity)"),
        ({"experiment": "sampling"}, "experiment 'sampling' compares how past users are sampled, and no variant's method does that"),
        (
            {"experiment": "adaptation", "axes": {"method": ["popularity", "itemknn"]}, "set": {"tasks": ["next", "likes"]}},
            "experiment 'adaptation' shows how a task is learned, and no variant's method does that",
        ),
        ({"set": {"model.event_features": ["gaps"]}}, "variant 'popularity': model.event_features: 'gaps' reads times of events, and data"),
        ({"set": {"model.input_features": "all"}}, "variant 'popularity': model.input_features: data set 'small' has no features of users"),
        ({"set": {"model.history_features": ["types"]}}, "variant 'popularity': model.history_features: 'types' reads types of events"),
        ({"set": {"evaluate.period": "present"}}, "variant 'popularity': evaluate.period: 'present' scores all tasks on the test period"),
        ({"set": {"model.item_init": {"file": "nowhere.parquet"}}}, "nowhere.parquet"),
    ],
)
def test_what_cannot_be_learned_is_told_before_anything_runs(
    tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], part: str
) -> None:
    assert part in refused(capsys, plan_file(tmp_path, dataset, **fields), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_run_on_a_backbone_is_told_before_anything_runs(
    tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from toy_backbone import Bag

    assert not Bag.takes_patches()
    axes = {"method": ["popularity", "peterrec"], "model.backbone": {"bag": {"model.backbone": {"name": "bag"}}}}
    error = refused(capsys, plan_file(tmp_path, dataset, axes=axes), "--out", str(tmp_path / "out"))
    assert "variant 'peterrec': model.backbone.name: method 'peterrec' puts modules into a backbone, and 'bag' has no place" in error
    assert not (tmp_path / "out").exists()


def test_another_version_of_a_data_set_under_the_same_name_is_refused(
    tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    plan, out = plan_file(tmp_path, str(tmp_path / "set"), seeds=[0, 1]), tmp_path / "out"
    for seed in (0, 1):
        folder = out / "cells" / "popularity" / f"seed-{seed}"
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "set" / "dataset.json", folder)
    shutil.rmtree(tmp_path / "set")
    write_small(tmp_path / "set", users=97)
    error = refused(capsys, plan, "--out", str(out))
    assert f"popularity, seed 0 was trained on another version of {tmp_path / 'set'} than what is there now" in error
    shutil.copy(tmp_path / "set" / "dataset.json", out / "cells" / "popularity" / "seed-1")
    error = refused(capsys, plan, "--out", str(out))
    assert "popularity, seed 0 was trained on another version of" in error
    assert "than that of popularity, seed 1" in error


def test_folders_of_something_else_are_refused(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = plan_file(tmp_path, dataset), tmp_path / "out"
    out.write_text("")
    assert "is a file" in refused(capsys, plan, "--out", str(out))
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert "holds other files and no comparison" in refused(capsys, plan, "--out", str(out))
    (out / "cells" / "hat").mkdir(parents=True)
    assert "holds another comparison (variants hat)" in refused(capsys, plan, "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["cells", "thesis.tex"]


# Holds a folder until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from dist_teracon.store.holder import hold_folder
with hold_folder(Path(sys.argv[1]), RuntimeError):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_comparison_in_the_same_folder_is_refused_until_the_first_has_ended(
    tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = plan_file(tmp_path, dataset), tmp_path / "out"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "held\n"
            for launcher in ("local", "ray"):
                error = refused(capsys, plan, "--out", str(out), "--launcher", launcher)
                assert f"another process is running this comparison (process {first.pid} on this machine, since " in error
            assert [path.name for path in out.iterdir()] == [".lock"]
        finally:
            first.send_signal(signal.SIGKILL)

    def failing(jobs: Sequence[CellJob]) -> Generator[tuple[CellJob, str | None], None, None]:
        yield from ((job, "was not tried") for job in jobs)

    with pytest.raises(CellsError, match="2 of 2 cells failed"):
        compare(plan, out, parallel=None, console=Console(active=False), runner=failing)


def test_a_comparison_on_a_store_is_refused(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", plan_file(tmp_path, dataset), "--out", "s3://bucket/comparison"])
    assert "argument --out: expected a path on this machine, not on a store, got 's3://bucket/comparison'" in capsys.readouterr().err


def test_one_cell_fails_and_the_other_goes_on(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = plan_file(tmp_path, dataset), tmp_path / "out"
    (out / "cells" / "fineall").mkdir(parents=True)
    (out / "cells" / "fineall" / "seed-0").write_text("in the way")
    assert cli.main(["compare", plan, "--out", str(out), "--parallel", "2"]) == 1
    error = capsys.readouterr().err
    assert "1 of 2 cells failed; the same command runs them again\nfineall, seed 0: " in error
    assert "is a file" in error
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert "| popularity | 0." in tables
    assert "1 of 2 cells:\n\n- fineall, seed 0: " in tables
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 cells are not finished." in page and "<dt>fineall, seed 0</dt>" in page
    # what is finished is not mixed with what another plan would have made
    changed = plan_file(tmp_path, dataset, set={"train.max_steps": 3})
    error = refused(capsys, changed, "--out", str(out))
    assert "popularity, seed 0 was begun with another configuration: train.max_steps was 2 and is now 3" in error


def test_the_shipped_tiny_plan_has_every_method_on_both_backbones() -> None:
    from dist_teracon.continual.registry import METHODS

    plan, cells = read_plan("tiny-systems")
    assert set(plan.axes["method"]) == set(METHODS) - {"popularity", "itemknn", "svdlr"}
    assert len(cells) == 2 * len(plan.axes["method"])


@pytest.mark.parametrize("name", ["reversed", "orders", "noisy", "sampling", "adaptation", "similarity"])
def test_the_shipped_experiments_are_whole_and_their_tasks_are_there(name: str) -> None:
    from dist_teracon.data.synthetic.six_tasks import parse_synthetic

    plan, cells = read_plan(f"experiments/{name}")
    assert len(cells) == len(plan.variants) * len(plan.seeds)
    uri = cells[0].config.dataset.split("&split_seed=")[0].replace("users=20000&train=0.25&validation=0.05", "users=20")
    tasks = {"next", *(table.name for table in parse_synthetic(uri).labels)}
    orders = [cell.config.tasks for cell in cells if cell.config.tasks is not None]
    assert all(set(order) <= tasks and order[0] == "next" for order in orders)
    # of each variant there is one that it is held against, but for one that only lends its scores
    assert {variant for variant in plan.variants if plan.baseline_of(variant) is None} <= {plan.single_task}
