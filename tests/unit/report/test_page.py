"""The page of a finished run: every number is on it, it is whole, and it loads nothing."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_runs import BASELINES, make_run, parse

from dist_teracon.errors import TeraconError
from dist_teracon.report.figures import make_figures
from dist_teracon.report.html import render, write_report
from dist_teracon.report.run_data import read_run
from dist_teracon.report.values import count_text, percent_text, score_text, seconds_text


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    out = write_report([run_folder], run_folder / "report.html")
    assert out == run_folder / "report.html"
    return out.read_text(encoding="utf-8")


def test_page_holds_every_number(page: str, run_folder: Path) -> None:
    text = " ".join(parse(page).text)
    results = json.loads((run_folder / "results.json").read_text())
    numbers = [score_text(value) for row in results["scores"] for value in row] + [score_text(value) for value in results["single_task"]]
    numbers += [score_text(value) for rows in results["scores_by_metric"].values() for row in rows for value in row if value is not None]
    numbers += [percent_text(value) for name in ("fwt", "bwt") for value in results[name] if value is not None]
    for name in ("popularity", "majority"):
        numbers += [score_text(value) for value in BASELINES[name] if isinstance(value, float)]
    numbers += [score_text(entry["score"]) for entry in BASELINES["svd_logistic_regression"] if isinstance(entry, dict)]
    numbers += [score_text(entry["validation_score"]) for entry in BASELINES["svd_logistic_regression"] if isinstance(entry, dict)]
    numbers += [count_text(value) for value in (*results["test_examples"], *results["unseen_targets"], 26571, 5000)]
    numbers += [seconds_text(stage["seconds"]) for stage in json.loads((run_folder / "timing.json").read_text())["stages"]]
    assert [number for number in numbers if number not in text] == []
    for words in (
        "method.retention.pool",
        "80 % training",
        "by user",
        "bad number",
        "2.13.0",
        "2026-09-21",
        "model.dilations",
        "lower is better",
    ):
        assert words in text


def test_page_is_balanced_and_ids_are_unique(page: str) -> None:
    parser = parse(page)
    assert parser.tags.count("svg") > 20
    assert len(set(parser.ids)) == len(parser.ids)
    assert parser.tags.count("style") == 1


def test_page_loads_nothing(page: str) -> None:
    parser = parse(page)
    assert re.findall(r"(?:https?:)?//[\w.]", page) == []
    assert {link for link in parser.links if not link.startswith("#")} == set()
    assert {"script", "link", "img", "iframe", "object", "embed"}.isdisjoint(parser.tags)
    assert "@import" not in page
    referred = {unescape(name) for name in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", page)}
    assert referred <= set(parser.ids)


def test_all_figures_are_drawn_and_equal_runs_give_equal_pages(run_folder: Path, page: str) -> None:
    figures = make_figures(read_run(run_folder))
    names = ["retained", "transfer", "final", "learning", "loss", "rho", "retention", "similarity", "histograms", "seconds"]
    assert list(figures) == names
    assert [len(figure.panels) for figure in figures.values()] == [1, 1, 6, 6, 6, 5, 5, 1, 6, 1]
    assert render([read_run(run_folder)]) == page


def test_colours_all_come_from_the_style_sheet(run_folder: Path) -> None:
    svg = "".join(panel.svg for figure in make_figures(read_run(run_folder)).values() for panel in figure.panels)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert "var(--ink)" in svg


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    out = write_report(folders, tmp_path / "both.html")
    text = " ".join(parse(out.read_text(encoding="utf-8")).text)
    assert "Runs side by side" in text
    for folder in folders:
        run = read_run(folder)
        assert folder.name in text
        assert all(score_text(score) in text for score in run.final)
    assert "do not compare" not in text


def test_runs_by_other_metrics_are_not_called_comparable(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    results = json.loads((second / "results.json").read_text())
    (second / "results.json").write_text(json.dumps({**results, "metrics": ["hr@10", *results["metrics"][1:]]}))
    assert "do not compare" in render([read_run(first), read_run(second)])


def test_runs_of_other_data_are_not_called_comparable(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    dataset = json.loads((second / "dataset.json").read_text())
    (second / "dataset.json").write_text(json.dumps({**dataset, "events": 1}))
    page = render([read_run(first), read_run(second)])
    assert "do not compare" in page
    assert 'class="best"' not in page


@pytest.mark.parametrize("library", ["matplotlib.style", "jinja2"])
def test_a_missing_library_is_named(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TeraconError, match=r"pip install 'dist-teracon\[report\]'"):
        write_report([run_folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_pyplot_and_the_users_settings_stay_untouched(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other libraries load it

    def settings() -> dict[str, Any]:
        return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}  # to read that one loads pyplot

    before = settings()
    make_figures(read_run(run_folder))
    assert "matplotlib.pyplot" not in sys.modules
    assert settings() == before
