"""`compare --dry-run` and `--tables`: what is left of a comparison, and the tables of what is there; nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import ALONE, settings

from dist_teracon.cli import main
from dist_teracon.compare.dry_run import comparison_lines, dry_run_comparison
from dist_teracon.compare.plan import Cell, read_plan
from dist_teracon.console import Console
from dist_teracon.train.run import train

QUIET = Console(active=False)


@pytest.fixture
def plan(small: str, tmp_path: Path) -> Path:
    """Two seeds of a method that trains, of the same with another rate in later stages, and of one that trains nothing."""
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 8, "patience": 2}
    config = settings(small, method="fineall", tasks=("next", "likes"), first=stage, second=stage)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    variants: dict[str, Any] = {"plain": {}, "slower": {"train.second.learning_rate": 0.001}, "popularity": {"method.name": "popularity"}}
    values = {"config": str(tmp_path / "run.yaml"), "seeds": [0, 1], "variants": variants, "baseline": "plain"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "plan.yaml"


def _cells(plan: Path) -> list[Cell]:
    return read_plan(str(plan))[1]


def _trained(cell: Cell, out: Path, **options: Any) -> None:
    train(cell.config, ALONE, cell.folder(out), where="test", console=QUIET, **options)


@pytest.mark.usefixtures("alone")
def test_what_is_left_is_told_and_nothing_is_written(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan.parent / "out"
    assert main(["compare", str(plan), "--out", str(out), "--dry-run", "--parallel", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not out.exists()
    assert "6 cells, 0 of them finished" in lines
    rows = {line.split()[0]: line for line in lines if line.startswith(("plain", "slower", "popularity"))}
    assert rows["plain"].split()[1:5] == ["2", "4", "of", "4"]
    assert rows["slower"].split()[1:5] == ["2", "2", "of", "4"]  # its first stages are those of `plain`
    assert rows["popularity"].endswith("0.0\xa0s    0.0\xa0s")
    assert any(line.startswith("training steps: ") and "with 2 at a time" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("alone")
def test_finished_cells_and_stages_are_taken_off(plan: Path) -> None:
    cells, out, other = _cells(plan), plan.parent / "out", plan.parent / "other"
    by_name = {(cell.variant, cell.seed): cell for cell in cells}
    _trained(by_name["plain", 0], out)
    _trained(by_name["plain", 1], out, until_stage=1)
    _trained(by_name["slower", 1], other)
    left = dry_run_comparison(cells, out, ALONE, console=QUIET).left
    first = {(cell.variant, cell.seed): cell.first for cell in left}
    assert first == {("plain", 1): 1, ("slower", 0): 1, ("slower", 1): 1, ("popularity", 0): 0, ("popularity", 1): 0}
    begun = dry_run_comparison(cells, out, ALONE, console=QUIET, begin_with=[other]).left
    assert {(cell.variant, cell.seed): cell.first for cell in begun}["slower", 1] == 2  # all of it
    done = comparison_lines(type(dry_run_comparison([], out, ALONE, console=QUIET))(6, ()), where="plan.yaml", parallel=1)
    assert done[-1] == "nothing is left to run"


@pytest.mark.usefixtures("alone")
def test_bounds_follow_from_patience(plan: Path) -> None:
    left = {(cell.variant, cell.seed): cell for cell in dry_run_comparison(_cells(plan), plan.parent / "out", ALONE, console=QUIET).left}
    cell = left["plain", 0]
    assert len(cell.seconds) == 2
    assert cell.least == pytest.approx(cell.most * 2 / 8)  # two of eight epochs at least
    assert cell.most > 0
    assert left["popularity", 0].most == 0
    assert left["plain", 1].seconds == cell.seconds  # measured once a variant
    # where train.max_steps ends a phase before patience may, nothing ends it before
    few = [Cell(old.variant, old.seed, old.config.model_copy(update={"train": old.config.train.model_copy(update={"max_steps": 1})}))
           for old in _cells(plan)[:1]]  # fmt: skip
    (short,) = dry_run_comparison(few, plan.parent / "out", ALONE, console=QUIET).left
    assert short.least == short.most > 0


def test_it_measures_on_this_machine_alone(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(plan), "--out", str(plan.parent / "out"), "--dry-run", "--launcher", "ray"]) == 2
    assert "--dry-run: measures steps on this machine; leave --launcher out" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_tables_of_what_is_finished_are_written_beside_cells_that_run(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dist_teracon.store.holder import hold_folder

    out, command = plan.parent / "out", ["compare", str(plan), "--out", str(plan.parent / "out"), "--tables"]
    assert main(command) == 2
    assert f"--tables: none of 6 cells in {out} is finished; leave --tables out to run them" in capsys.readouterr().err
    assert not out.exists()
    for cell in _cells(plan):
        if cell.seed == 0:
            _trained(cell, out)
    with hold_folder(out, lambda _: AssertionError("held")):  # as a comparison does that runs
        assert main(command) == 0
    printed = capsys.readouterr().out
    for variant in ("plain", "slower", "popularity"):
        assert f"- {variant}, seed 1: not run to its end" in printed
    assert "3 of 6 cells:" in printed and "seed 0; 3 variants" in printed
    assert (out / "report.html").exists() and not (out / "cells" / "plain" / "seed-1").exists()
    with pytest.raises(SystemExit):
        main([*command, "--dry-run"])
