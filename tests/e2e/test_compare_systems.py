"""`configs/compare/tiny-systems.yaml`: every method on both backbones, and the comparison's tables and page."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import ALONE

from dist_teracon import cli
from dist_teracon.compare.plan import Plan, read_plan
from dist_teracon.console import Console
from dist_teracon.train.run import train


@pytest.fixture(scope="module")
def compared(alone: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """All cells, trained in this process as the command's own processes would: what they import is most of such a run."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_TERACON_CACHE", str(out.parent / "cache"))
        plan, cells = read_plan("tiny-systems")
        for cell in cells:
            train(cell.config, ALONE, cell.folder(out), where="tiny-systems", console=Console(active=False))
        assert cli.main(["compare", "tiny-systems", "--out", str(out), "--quiet"]) == 0
    return plan, out


def test_all_systems_on_both_backbones(compared: tuple[Plan, Path]) -> None:
    plan, out = compared
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert len(plan.variants) == 18
    assert all(f"| {variant} |" in tables for variant in plan.variants)
    assert "Holm-corrected for 16 comparisons" in tables
    assert "# costs" in tables and "# unfinished" not in tables
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f">{variant}</th>" in page for variant in plan.variants)
    assert "Time and weights of each task" in page


def test_the_command_takes_finished_cells_as_they_are(compared: tuple[Plan, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = compared
    assert cli.main(["compare", "tiny-systems", "--out", str(out)]) == 0
    assert "18 cells, 18 of them finished" in "".join(capsys.readouterr())
