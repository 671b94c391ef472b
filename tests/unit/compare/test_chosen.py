"""What validation chooses of each method, and its test scores."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_comparisons import make_cells
from made_runs import parse

from dist_teracon.compare.chosen import choices, chosen_tables
from dist_teracon.compare.comparison import gather
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.run import write_tables

TASKS = ("next", "item-a", "profile-2")
AXES = {
    "method": ["teracon", "hat"],
    "rate": {"1e-3": None, "3e-4": {"train.later.learning_rate": 3e-4}, "3e-3": {"train.later.learning_rate": 3e-3}},
}
OPEN = {"hat-open": {"method.name": "hat", "method.mask_regulariser": 2.5}}


def made(folder, *, seeds=(0,), **fields):
    plan = {"config": "configs/six-tasks.yaml", "set": {"tasks": list(TASKS)}, "seeds": list(seeds), "axes": AXES, "baseline": "1e-3"}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **fields}, sort_keys=False))
    plan, cells = read_plan(str(folder / "plan.yaml"))
    make_cells(cells, folder)
    return plan, cells


def read(plan, cells, out, finished=lambda cell: True):
    found = gather(plan, cells, out, finished=finished, split="validation")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """Two methods at three rates, and one more variant of the second, on two seeds."""
    out = tmp_path_factory.mktemp("rates")
    return *made(out, seeds=(0, 1), variants=OPEN), out


def test_the_best_mean_of_relative_scores_is_chosen(rates):
    """Held against numbers from the scores by user, without the bootstrap."""
    comparison = read(*rates)
    found = choices(comparison)
    assert {name: choice.planned for name, choice in found.items()} == {"teracon": 3, "hat": 4}

    def score(variant, seed, task):
        run = comparison.bootstrap.runs[seed][comparison.variants.index(variant)]
        return run.sums[2, task].sum() / run.counts[2, task].sum()

    for name, choice in found.items():
        reference = f"{name}+1e-3"
        assert (choice.reference, choice.tasks) == (reference, (0, 1, 2))
        expected = {
            variant: np.mean([score(variant, seed, task) / score(reference, seed, task) - 1 for seed in range(2) for task in range(3)])
            for variant in choice.changes
        }
        assert choice.changes == pytest.approx({variant: 100 * value for variant, value in expected.items()})
        first, second, *_ = ranked = sorted(choice.changes.values(), reverse=True)
        assert list(choice.changes.values()) == ranked
        assert choice.lead is not None
        assert choice.lead.value == pytest.approx(first - second)
        assert choice.lead.low <= choice.lead.value <= choice.lead.high
    assert "hat-open" in found["hat"].changes


def test_a_variant_without_runs_is_counted_as_not_tried(rates):
    found = choices(read(*rates, finished=lambda cell: cell.variant != "hat+3e-3"))["hat"]
    assert (len(found.changes), found.planned) == (3, 4)


def test_a_task_of_which_the_reference_scores_nothing_does_not_count(rates):
    comparison = read(*rates)
    comparison.bootstrap.runs[1][comparison.variants.index("hat+1e-3")].sums[2, 1][:] = 0
    found = choices(comparison)
    assert found["hat"].tasks == (0, 2)
    assert found["teracon"].tasks == (0, 1, 2)


def test_the_section_has_the_choice_and_its_test_scores_in_both_files(rates):
    plan, cells, out = rates
    chosen = [choice.chosen for choice in choices(read(plan, cells, out)).values()]
    tables = write_tables(plan, cells, out, problems={}).read_text()
    text = " ".join(parse((out / "report.html").read_text()).text)
    section = tables.partition("# chosen on validation\n")[2].partition("\n# ")[0]
    choice, scores, transfer = (
        [line for line in part.splitlines() if line.startswith("| ")][1:]
        for part in re.split("\n\n(?=Final test scores|Transfer)", section)
    )
    assert [line.split(" | ")[1:3] for line in choice] == [["3 of 3", chosen[0]], ["4 of 4", chosen[1]]]
    assert [[line.split(" | ")[0] for line in lines] for lines in (scores, transfer)] == [[f"| {variant}" for variant in chosen]] * 2
    final = tables.partition("# test\n")[2].partition("Final scores, R(M, i):")[2].partition("\n\n| ")[2]
    assert set(scores) <= set(final.splitlines())  # the same numbers as in the table of all
    assert set(transfer) <= set(tables.partition("# test\n")[2].splitlines())
    assert "Chosen on validation" in text
    assert all(line.split(" | ")[4].removesuffix(" |") in text for line in choice)


def test_chosen_variants_are_held_against_the_best_other_chosen_one(tmp_path):
    axes = {**AXES, "method": ["teracon", "hat", "conure", "mtl"]}
    plan, cells, out = *made(tmp_path, axes=axes, seeds=(0, 1), references=["mtl"]), tmp_path
    validation, test = (gather(plan, cells, out, finished=lambda cell: True, split=split) for split in ("validation", "test"))
    chosen = [choice.chosen for choice in choices(validation).values()]
    _, _, best, _ = chosen_tables(validation, test)
    assert [row[0] for row in best.rows] == chosen
    for name, *cells_of in best.rows:
        others = [other for other in chosen if other != name and not other.startswith("mtl")]
        for task, cell in enumerate(cells_of):
            scores = {other: test.summary(test.final(other, task)).value for other in others}
            rival = max(others, key=scores.__getitem__)
            assert cell.endswith(f", {rival}")
            assert float(cell.split()[0]) == pytest.approx(test.summary(test.final(name, task)).value - scores[rival], abs=1e-4)


def test_backbones_choose_apart_and_one_variant_is_no_choice(tmp_path):
    axes = {"method": AXES["method"], "model.backbone": ["nextitnet", "sasrec"]}
    comparison = read(*made(tmp_path, axes=axes, variants={"slow": {"train.later.learning_rate": 3e-4}}, baseline="teracon"), tmp_path)
    found = choices(comparison)
    assert {name: list(choice.changes) for name, choice in found.items() if len(choice.changes) > 1}.keys() == {"teracon+nextitnet"}
    assert list(found) == ["teracon+nextitnet", "teracon+sasrec", "hat+nextitnet", "hat+sasrec"]
    assert choices(replace(comparison, variants=comparison.variants[:4])) == {}
