"""The page of a comparison: whole, offline, with every table, the experiment's picture, published scores, and what failed."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_comparisons import SCORES, TASKS, make_cells
from made_runs import Balanced, parse

from dist_teracon.compare.comparison import Comparison, gather
from dist_teracon.compare.differences import leads, rivals_of
from dist_teracon.compare.experiment_figures import make_figures
from dist_teracon.compare.experiments import changes, spreads
from dist_teracon.compare.many_tasks import many_tables, milestones, stage_costs, transfers
from dist_teracon.compare.paces import paces
from dist_teracon.compare.page import Result, headline, render
from dist_teracon.compare.plan import Cell, Plan, read_plan
from dist_teracon.compare.published import published_tables
from dist_teracon.compare.run import write_tables
from dist_teracon.compare.table import made
from dist_teracon.compare.tables import tables_of

PICTURES = {
    "reversed": {"changes", "orders"},
    "orders": {"changes", "orders"},
    "noisy": {"changes"},
    "sampling": {"sampling", "seconds"},
    "adaptation": {"adaptation"},
    "similarity": {"similarity"},
    "many": {"many"},
}


# The tasks that are left of the experiments'.
KEPT = ("next", "item-a", "profile-2")


def cut(name: str, folder: Path) -> tuple[Plan, list[Cell]]:
    """Read a shipped plan, cut to one seed; an experiment to two methods, two orders and three tasks beside that of noise too."""
    value = yaml.safe_load(files("dist_teracon.configs").joinpath(*f"{name}.yaml".split("/")).read_text(encoding="utf-8"))
    if "experiment" in value:
        value["axes"] = {axis: _first_two(labels) for axis, labels in value.get("axes", {}).items()}
        orders = value["axes"].get("order", {})
        orders |= {label: [task for task in order if task in (*KEPT, "noise")] for label, order in orders.items() if order}
        value["set"]["tasks"] = list(KEPT)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump({**value, "seeds": [0]}, sort_keys=False))
    return read_plan(str(folder / "plan.yaml"))


def _first_two(labels: Any) -> Any:
    return labels[:2] if isinstance(labels, list) else dict(list(labels.items())[:2])


def compared(name: str, out: Path) -> Comparison:
    plan, cells = cut(name, out)
    make_cells(cells, out)
    found = gather(plan, cells, out, finished=lambda cell: True, split="test")
    assert found is not None
    return found


def written(name: str, out: Path, *, without: str = "") -> tuple[Balanced, str, str]:
    """Make a plan's cells of one seed and its page; returns the page, its text, and that of the tables."""
    plan, cells = cut(name, out)
    make_cells([cell for cell in cells if cell.variant != without], out)
    tables = write_tables(plan, cells, out, problems={f"{without}, seed 0": "RuntimeError: no room (log: x)"}).read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:https?:)?//[\w.]", page) == []
    parsed = parse(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link for link in parsed.links if not link.startswith("#")} == set()
    assert {link.removeprefix("#") for link in parsed.links if "-" not in link} <= set(parsed.ids)
    return parsed, " ".join(parsed.text), tables


@pytest.mark.parametrize("name", PICTURES)
def test_each_experiment_has_its_section_with_its_picture(tmp_path: Path, name: str) -> None:
    parsed, text, tables = written(f"experiments/{name}", tmp_path / "out")
    figures = {known.removeprefix("figure-") for known in parsed.ids if known.startswith("figure-")}
    assert figures == {"final", *PICTURES[name]}
    assert "experiment" in parsed.ids and f"experiment {name}" in text
    of_validation, _, of_test = tables.partition("# test")
    for part in (of_validation, of_test):
        numbers = re.findall(r"\| ([+-]?\d+\.\d+)", part)
        assert len(numbers) > 10
        assert [number for number in numbers if number not in text] == []


@pytest.mark.parametrize("name", ["orders", "sampling"])
def test_of_a_score_of_nothing_no_percentage_is_shown(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "next", 0.0)
    _, text, tables = written(f"experiments/{name}", tmp_path / "out")
    assert "nan" not in tables
    assert "nan" not in text
    assert "| – | " in tables.partition("Change of each final score")[2]


def test_a_comparison_of_systems_shows_the_best_other_and_what_failed(tmp_path: Path) -> None:
    _, text, tables = written("compare/all-systems", tmp_path / "out", without="hat")
    assert "1 of 8 cells are not finished." in text
    assert "RuntimeError: no room (log: x)" in text
    assert "teracon against the best other, task by task: better in" in text
    row = next(line for line in tables.partition("best other variant (mtl")[2].splitlines() if line.startswith("| teracon |"))
    assert len(re.findall(r"p [01]\.\d{3}, (?:sinmo|fineall|peterrec|piggyback|conure) ", row)) == len(TASKS)
    # generated data of 4,000 users, split by rows, are those that the public code was run on
    assert "| TERACON, D | .3474 | .0589 | .0791 | .258 | .596 | .319 |" in tables
    assert tables.count("TERACON, D") == 1  # on test alone
    assert "Scores of others" in text


def test_published_scores_stand_beside_their_own_data_alone(tmp_path: Path) -> None:
    comparison = compared("compare/rows-six-tasks", tmp_path)
    assert [table.rows[2][0] for table in published_tables(comparison)] == ["TERACON, D"]
    first, last = (comparison.folders[variant][0] / "dataset.json" for variant in (comparison.variants[0], comparison.variants[-1]))
    rows, users = ('"by": "rows"', '"by": "users"'), ('"users": 4000', '"users": 3999')
    for path, (ours, another) in ((first, rows), (first, users), (first, ('"name": "profile-2"', '"name": "sex"')), (last, users)):
        text = path.read_text()
        assert ours in text
        path.write_text(text.replace(ours, another))
        assert published_tables(comparison) == []
        path.write_text(text)


def test_pooled_folds_are_no_mean_over_seeds(tmp_path: Path) -> None:
    comparison = compared("compare/rows-six-tasks", tmp_path)
    assert make_figures(comparison)["final"].caption.startswith("Mean over seeds")
    folds = replace(comparison, plan=comparison.plan.model_copy(update={"cross_fitting": True}))
    assert make_figures(folds)["final"].caption.startswith("Folds pooled, with the 95 % interval over users;")


def test_further_metrics_of_both_splits_stand_on_the_page(tmp_path: Path) -> None:
    comparison = compared("compare/rows-six-tasks", tmp_path)
    splits = {}
    for split, score in (("validation", "0.1234"), ("test", "0.4321")):
        further = made("Further metrics, final scores, hr@10:", ["variant", "next"], [["default", score]])
        splits[split] = (comparison, replace(tables_of(comparison), further=[further]))
    page = render(Result(comparison.plan, 1, splits, [], None, {}), "out")
    assert "0.1234" in page.partition('id="validation"')[2]
    assert "0.4321" in page.partition('id="further"')[2].partition('id="validation"')[0]


def test_the_plan_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "comparing.md").read_text()
    (tmp_path / "plan.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    plan, cells = read_plan(str(tmp_path / "plan.yaml"))
    assert len(cells) == len(plan.seeds) * (3 * 2 * 2 + 1)


def test_the_best_other_is_of_the_same_backbone_and_no_line_of_reference() -> None:
    plan, _ = read_plan("tiny-systems")
    others = rivals_of(plan, "teracon+sasrec", tuple(plan.variants))
    assert sorted(others) == sorted(f"{name}+sasrec" for name in plan.axes["method"] if name not in ("teracon", "mtl"))


def test_leads_are_against_the_highest_other_mean(tmp_path: Path) -> None:
    comparison = compared("compare/all-systems", tmp_path)
    means = {variant: [comparison.summary(comparison.final(variant, task)).value for task in range(6)] for variant in comparison.variants}
    for task, lead in enumerate(leads(comparison)["teracon"]):
        best = max((values[task], name) for name, values in means.items() if name not in ("teracon", "mtl"))
        assert lead is not None
        assert lead.other == best[1]
        assert lead.difference.value == pytest.approx(means["teracon"][task] - best[0])
        assert lead.word == ("" if lead.p >= 0.05 else "better" if lead.difference.value > 0 else "worse")


def test_changes_and_spreads_over_orders_are_in_percent(tmp_path: Path) -> None:
    comparison = compared("experiments/reversed", tmp_path)
    for method in ("teracon", "hat"):
        variants = [f"{method}+{order}" for order in ("as-given", "reversed")]
        given, other = ([comparison.summary(comparison.final(name, task)).value for task in range(len(KEPT))] for name in variants)
        found = changes(comparison)[f"{method}+reversed"]
        assert [value.value for value in found] == pytest.approx([100 * (b / a - 1) for a, b in zip(given, other, strict=True)])
        widths = [width for width, _ in spreads(comparison)[method]]
        assert widths == pytest.approx([100 * abs(a - b) / ((a + b) / 2) for a, b in zip(given, other, strict=True)])
    assert set(changes(comparison)) == {"teracon+reversed", "hat+reversed"}
    assert headline(comparison).startswith("How far the final scores of a task lie apart over orders, at most: teracon ")


def test_backward_transfer_and_costs_by_the_number_of_tasks(tmp_path: Path) -> None:
    comparison = compared("experiments/many", tmp_path)
    assert milestones(comparison) == [2, 3]
    for variant, found in transfers(comparison).items():
        run = comparison.bootstrap.runs[0][comparison.variants.index(variant)]
        score = {key: run.sums[key].sum() / run.counts[key].sum() for key in run.sums}
        after_two = 100 * (score[1, 0] / score[0, 0] - 1)
        after_three = [100 * (score[2, task] / score[task, task] - 1) for task in (0, 1)]
        assert [value.value for value in found] == pytest.approx([after_two, sum(after_three) / 2])
        assert all(value.low < value.value < value.high for value in found)
    labels = comparison.folders["floor"][0] / "stages" / "03-profile-2" / "pseudo_labels" / "next"
    labels.mkdir(parents=True)
    for number in (0, 1):
        (labels / f"shard-0000{number}.arrow").write_bytes(bytes(600_000))
    two, three = stage_costs(comparison)["floor"]
    assert (two.share, two.label_bytes, three.share, three.label_bytes) == (64 / 256, None, 128 / 256, 1_200_000)
    assert two.milliseconds is not None and three.milliseconds == pytest.approx(1.5 * two.milliseconds)
    row = next(line for line in many_tables(comparison)[1].markdown().splitlines() if line.startswith("| floor |"))
    assert row.endswith(f"| {two.milliseconds:.0f} (25 %) | {three.milliseconds:.0f} (50 %; 1.2 MB) |")
    assert headline(comparison).startswith("Mean BWT after 3 tasks: floor ")


def test_paces_are_seconds_an_epoch_and_replayed_shares(tmp_path: Path) -> None:
    found = paces(compared("experiments/sampling", tmp_path))["formula"]
    first, *later = (found[task] for task in KEPT)
    assert first.share == 0
    assert [pace.share for pace in later] == pytest.approx([64 * past / 256 for past in range(1, len(KEPT))])
    assert [pace.seconds for pace in later] == pytest.approx([stage * (first.seconds or 0) for stage in range(2, len(KEPT) + 1)])
