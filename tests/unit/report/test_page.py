"""The page of a finished run: every number is on it, it is whole, and it loads nothing."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_runs import BASELINES, make_run, parse, write_user_scores

from dist_teracon.errors import TeraconError
from dist_teracon.report.figures import make_figures
from dist_teracon.report.html import render, write_report
from dist_teracon.report.plot import Figure, drawing
from dist_teracon.report.run_data import read_run
from dist_teracon.report.training_figures import learning_curves, replayed_shares
from dist_teracon.report.values import count_text, percent_text, score_text, seconds_text


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    out = write_report([run_folder], run_folder / "report.html")
    assert out == run_folder / "report.html"
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures(run_folder: Path) -> dict[str, Figure]:
    return make_figures(read_run(run_folder))


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


def test_the_page_says_where_a_steps_time_goes(page: str, run_folder: Path) -> None:
    text = " ".join(" ".join(parse(page).text).split())
    assert "users a second ms a step data forward backward exchange and waiting optimiser largest memory" in text
    assert text.count("1 234 20.0 5.0 % 30 % 50 % 10 % 5.0 % 3.0 GiB") == len(read_run(run_folder).events.stages)
    assert "Length of the gradient" in text
    assert "MFU" not in text  # none was logged


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


def test_all_figures_are_drawn_and_equal_runs_give_equal_pages(run_folder: Path, page: str, figures: dict[str, Figure]) -> None:
    panels = {
        "retained": 1, "transfer": 2, "final": 6, "learning": 6, "loss": 6, "gradient": 6, "rate": 1, "rho": 5, "retention": 5,
        "similarity": 1, "histograms": 6, "seconds": 1,
    }  # fmt: skip
    assert {name: len(figure.panels) for name, figure in figures.items()} == panels  # the rate is drawn where it changes
    assert list(figures) == list(panels)
    assert render([read_run(run_folder)]) == page


def test_colours_all_come_from_the_style_sheet(figures: dict[str, Figure]) -> None:
    svg = "".join(panel.svg for figure in figures.values() for panel in figure.panels)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert "var(--ink)" in svg


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_runs_by_other_metrics_are_not_called_comparable(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    results = json.loads((second / "results.json").read_text())
    (second / "results.json").write_text(json.dumps({**results, "metrics": ["hr@10", *results["metrics"][1:]]}))
    assert "do not compare" in render([read_run(first), read_run(second)])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("setting", ["exclude_seen: true", "period: present"])
def test_runs_ranked_otherwise_are_not_called_comparable(tmp_path: Path, setting: str) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    for folder in (first, second):
        dataset = json.loads((folder / "dataset.json").read_text())
        dataset.pop("checksum", None)
        (folder / "dataset.json").write_text(json.dumps({**dataset, "test_periods": [0.0, 1.0]}))
    assert "do not compare" not in render([read_run(first), read_run(second)])
    config = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(config.replace("max_users: 5000", f"max_users: 5000, {setting}"))
    assert "do not compare" in render([read_run(first), read_run(second)])


@pytest.mark.usefixtures("undrawn")
def test_a_split_by_time_has_rows_of_users(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset.pop("checksum", None)
    assert "<th>users</th>" in render([read_run(folder)])
    notes = {**dataset["notes"], "split_by_time": {"users": 77, "rows": dataset["users"]}}
    (folder / "dataset.json").write_text(json.dumps({**dataset, "split": {**dataset["split"], "by": "time"}, "notes": notes}))
    page = render([read_run(folder)])
    assert f"{dataset['users']} rows of 77 users" in page
    assert "<th>rows of users</th>" in page
    assert "% training, 5 % validation, 15 % test, of users, in tasks of their attributes" in page


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_data_are_not_called_comparable(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    dataset = json.loads((second / "dataset.json").read_text())
    (second / "dataset.json").write_text(json.dumps({**dataset, "events": 1}))
    page = render([read_run(first), read_run(second)])
    assert "do not compare" in page
    assert 'class="best"' not in page


def test_the_share_that_is_replayed_stands_where_the_minimum_overrides_the_formula(run_folder: Path, figures: dict[str, Figure]) -> None:
    run = read_run(run_folder)
    assert [run.batch_of(stage) for stage in (1, 2, 3)] == [32, 256, 256]
    drawn = figures["rho"]
    # 64 rows beside batches of 256, where the formula asks for a few
    assert all(">25\u00a0%<" in panel.svg for panel in drawn.panels)
    assert "each past task: 25\u00a0% of a batch, 64 to 64 rows beside 256\nby the formula 1." in drawn.panels[1].svg
    assert "The formula alone would give ρ = 1.4\u00a0% to" in drawn.caption
    assert "at least 64 rows are replayed (method.retention.minimum)" in drawn.caption


def test_of_tasks_that_take_turns_the_mean_of_the_steps_so_far_is_drawn(run_folder: Path) -> None:
    run = read_run(run_folder)
    last = run.events.steps_of(3)[:4]
    names = list(last[0].rho)
    turns = [(16, 0), (0, 16), (16, 0), (16, 0)]
    steps = tuple(replace(step, rows=dict(zip(names, rows, strict=True))) for step, rows in zip(last, turns, strict=True))
    with drawing():
        drawn = replayed_shares(replace(run, events=replace(run.events, steps=steps)))
    assert drawn is not None
    # of batches of 256: 1, 1/2, 2/3, 3/4 of 16 rows, and the rest
    assert f"{names[0]}: 3.1\u00a0% to 6.2\u00a0% of a batch, 0 to 16 rows beside 256" in drawn.panels[0].svg
    assert f"{names[1]}: 0\u00a0% to 3.1\u00a0% of a batch, 0 to 16 rows beside 256" in drawn.panels[0].svg
    assert "Past tasks take turns on a budget (method.retention.budget), so a line is the mean of the logged steps so far." in drawn.caption
    assert "method.retention.minimum" not in drawn.caption


def test_the_places_of_few_steps_are_whole_numbers(run_folder: Path) -> None:
    run = read_run(run_folder)
    steps = tuple(replace(step, step=place) for place, step in zip((4, 8, 12), run.events.steps_of(2), strict=False))
    with drawing():
        drawn = replayed_shares(replace(run, events=replace(run.events, steps=steps)))
    assert drawn is not None
    named = [text for text in re.findall(r"<text[^>]*>([^<]+)</text>", drawn.panels[0].svg) if "%" not in text and text != "step"]
    assert len(named) >= 2
    assert all(text.isdigit() for text in named)


def test_panels_beside_each_other_shrink_to_their_place_and_heads_of_words_stay_whole(page: str) -> None:
    """A panel with a least width of its own is cut at the right of a card in which three stand side by side."""
    drawn = page.partition('id="figure-learning"')[2].partition("</details>")[0]
    assert drawn.count('<div class="panel" style="max-width: ') == 6
    assert "min-width" not in drawn
    assert "min-width: " in page.partition('id="figure-seconds"')[2].partition("</details>")[0]
    assert re.search(r"\.words thead th \{ overflow-wrap: normal; \}", page)
    assert '<table class="words" aria-label="Where a training step' in page


def test_rows_that_follow_the_formula_are_a_line_a_task(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=3)
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "step":
            event["rows"] = {task: 256 * rho for task, rho in event["rho"].items()}
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with drawing():
        drawn = replayed_shares(read_run(folder))
    assert drawn is not None
    assert [key.name for key in drawn.legend] == ["1 next", "2 star4"]
    assert "It follows ρ" in drawn.caption


def test_a_task_with_a_batch_of_its_own(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("clip: null", "by_task: {star5: {batch: 128}}"))
    assert [read_run(folder).batch_of(stage) for stage in (2, 3, 4)] == [256, 128, 256]


def with_transfer(folder: Path, change: float) -> Path:
    """Make a run whose first task ends `change` times its score when learned, beyond the error."""
    make_run(folder, names=("a", "b"), extras=False, users=False)
    path = folder / "results.json"
    scores = [[0.4], [0.4 * change, 0.3]]
    values = {"scores": scores, "bwt": [100 * (change - 1), None], "bwt_absolute": [0.4 * (change - 1), None]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    write_user_scores(folder, ("a", "b"), scores, spread=0.1)
    return folder


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("change", "colour", "other"), [(1.2, "better", "worse"), (0.8, "worse", "better"), (1.001, "soft", "worse")])
def test_gains_losses_and_neither_have_colours_of_their_own(tmp_path: Path, change: float, colour: str, other: str) -> None:
    run = read_run(with_transfer(tmp_path / "run", change))
    drawn = make_figures(run)
    for name in ("transfer", "retained"):
        svg = "".join(panel.svg for panel in drawn[name].panels)
        # the cells of R have no shade where a change is within its error
        assert (f"fill: var(--{colour})" in svg) or (colour == "soft" and name == "retained")
        assert f"fill: var(--{other})" not in svg
    assert f'class="{colour}">{percent_text(run.bwt[0])}' in render([run]) or colour == "soft"


def test_what_is_drawn_has_tooltips_with_whole_names(tmp_path: Path) -> None:
    name = "쇼핑 대분류 3 관심 사용자 예측 of a long name"
    run = read_run(make_run(tmp_path / "run", stages=3, names=("next", name, "c", "d", "e", "f")))
    drawn = "".join(panel.svg for each in make_figures(run).values() for panel in each.panels)
    tips = unescape("".join(re.findall(r"<title>(.*?)</title>", drawn, re.DOTALL)))
    assert f"2 {name}, after 3 c: {score_text(run.scores[2][1])} mrr@5\n{percent_text(run.bwt[1])[:-2]}" in tips
    assert f"FWT of 2 {name}: " in tips
    assert f"{name}, popularity: 0.0219" in tips
    assert "best: epoch " in tips
    assert f"1 next and 2 {name}: " in tips


def test_learning_curves_have_bands_where_errors_were_logged(tmp_path: Path, figures: dict[str, Figure]) -> None:
    drawn = figures["learning"]
    assert all("fill-opacity: 0.16" in panel.svg for panel in drawn.panels)
    assert "one standard error over validation users" in drawn.caption
    folder = make_run(tmp_path / "run", stages=1)
    path = folder / "events.jsonl"
    path.write_text(path.read_text().replace("validation_error", "of_another_version"))
    with drawing():
        without = learning_curves(read_run(folder))
    assert without is not None
    assert "fill-opacity: 0.16" not in without.panels[0].svg
    assert "standard error" not in without.caption


KOREAN = tuple(f"쇼핑 대분류 {k} 관심 사용자 예측" if k % 2 else f"a-task-with-a-long-name-{k}" for k in range(20))


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    return render([read_run(make_run(folder / f"seed-{seed}", names=KOREAN, seed=seed)) for seed in (0, 1)])


def test_twenty_tasks_are_numbered_and_named_whole_in_the_legend(twenty: str) -> None:
    legend = twenty.partition('id="tasks"')[2].partition("</details>")[0]
    assert [f'<span class="number">{k + 1}</span> {name} ' in legend for k, name in enumerate(KOREAN)] == [True] * 20
    assert all(f'title="{k + 1} {name}"' in twenty for k, name in enumerate(KOREAN))
    parse(twenty)


def test_labels_in_hangul_are_whole_signs_in_drawings(twenty: str) -> None:
    drawn = re.findall(r"<text[^>]*>([^<]*쇼핑[^<]*)</text>", twenty)
    assert "2 쇼핑 대분…예측" in drawn
    assert re.findall(r"<text[^>]*>[^<]*WW[^<]*</text>", twenty) == []


def test_many_panels_are_folded_up_and_a_task_is_a_row(twenty: str) -> None:
    opened = {name: bool(is_open) for name, is_open in re.findall(r'<details class="card[^"]*" id="figure-(\w+)"( open)?>', twenty)}
    assert opened == {
        "retained": True, "transfer": True, "final": False, "learning": False, "loss": False, "gradient": False, "rate": True,
        "rho": False,
        "retention": False, "similarity": True, "histograms": False, "seconds": True,
    }  # fmt: skip
    by_task = twenty.partition('aria-label="Scores by task"')[2].partition("</table>")[0]
    assert by_task.count('<span class="number">') == 20


def test_contents_lead_to_every_section_and_the_comparison_is_first(twenty: str) -> None:
    contents = re.findall(r'<a href="#(\w+)">', twenty)
    assert contents == re.findall(r'<section id="(\w+)">', twenty)
    assert contents[:2] == ["comparison", "scores"]


def test_tables_say_that_they_scroll_and_keep_their_first_column(twenty: str, page: str) -> None:
    assert twenty.count('<div class="scroll">') == twenty.count('<p class="hint need-')
    assert "position: sticky" in page
    needs = {int(need) for need in re.findall(r'class="hint need-(\d+)"', twenty + page)}
    assert needs <= {int(need) for need in re.findall(r"@container \(max-width: (\d+)em\)", page)}


@pytest.mark.parametrize("library", ["matplotlib.style", "jinja2"])
def test_a_missing_library_is_named(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    if library == "jinja2":
        request.getfixturevalue("undrawn")
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
