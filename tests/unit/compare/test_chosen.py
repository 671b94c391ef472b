"""What validation chooses of each method, and its test scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_comparisons import make_cells
from made_runs import parse

from dist_teracon.compare.chosen import choices
from dist_teracon.compare.comparison import gather
from dist_teracon.compare.plan import read_plan
from dist_teracon.compare.run import write_tables
from dist_teracon.compare.statistics import Bootstrap

AXES = {
    "method": ["teracon", "hat", "mtl"],
    "rate": {"1e-3": None, "3e-4": {"train.later.learning_rate": 3e-4}, "3e-3": {"train.later.learning_rate": 3e-3}},
}


def made(tmp_path, *, seeds=(0,), **fields):
    plan = {"config": "configs/six-tasks.yaml", "seeds": list(seeds), "axes": AXES, "baseline": "1e-3", **fields}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    plan, cells = read_plan(str(tmp_path / "plan.yaml"))
    make_cells(cells, tmp_path)
    return plan, cells


def read(plan, cells, out, split="validation"):
    found = gather(plan, cells, out, finished=lambda cell: True, split=split)
    assert found is not None
    return found


def test_the_best_mean_of_relative_scores_is_chosen(tmp_path):
    """Held against numbers from the scores by user, without the bootstrap."""
    plan, cells = made(tmp_path, seeds=(0, 1), variants={"hat-open": {"method.name": "hat", "method.mask_regulariser": 2.5}})
    comparison = read(plan, cells, tmp_path)
    found = choices(comparison)
    assert list(found) == ["teracon", "hat", "mtl"]
    assert [choice.planned for choice in found.values()] == [3, 4, 3]

    def score(variant, seed, task):
        run = comparison.bootstrap.runs[seed][comparison.variants.index(variant)]
        return run.sums[5, task].sum() / run.counts[5, task].sum()

    for name, choice in found.items():
        reference = f"{name}+1e-3"
        assert (choice.reference, choice.tasks) == (reference, tuple(range(6)))
        expected = {
            variant: np.mean([
                100 * (score(variant, seed, task) / score(reference, seed, task) - 1) for seed in range(2) for task in range(6)
            ])
            for variant in choice.changes
        }  # fmt: skip
        assert choice.changes == pytest.approx(expected)
        ranked = sorted(expected.values(), reverse=True)
        assert list(choice.changes.values()) == pytest.approx(ranked)
        assert choice.lead is not None
        assert choice.lead.value == pytest.approx(ranked[0] - ranked[1])
        assert choice.lead.low <= choice.lead.value <= choice.lead.high
    assert "hat-open" in found["hat"].changes


def test_the_section_has_the_choice_and_its_test_scores_in_both_files(tmp_path):
    plan, cells = made(tmp_path)
    chosen = [choice.chosen for choice in choices(read(plan, cells, tmp_path)).values()]
    tables = write_tables(plan, cells, tmp_path, problems={}).read_text()
    text = " ".join(parse((tmp_path / "report.html").read_text()).text)
    section = tables.partition("# chosen on validation\n")[2].partition("\n# ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert [row[2] for row in rows[1:4]] == chosen
    assert [row[1] for row in rows[1:4]] == ["3 of 3"] * 3
    assert [row[0].removeprefix("| ") for row in rows[5:]] == chosen
    final = tables.partition("# test\n")[2].partition("Final scores, R(M, i):")[2]
    for row in rows[5:]:
        assert " | ".join(row) in final.splitlines()  # the same numbers as in the table of all
    assert "Chosen on validation" in text
    assert all(row[4].removesuffix(" |") in text for row in rows[1:4])


def test_a_variant_without_runs_is_counted_as_not_tried(tmp_path):
    plan, cells = made(tmp_path)
    found = gather(plan, cells, tmp_path, finished=lambda cell: cell.variant != "hat+3e-3", split="validation")
    assert found is not None
    assert (len(choices(found)["hat"].changes), choices(found)["hat"].planned) == (2, 3)


def test_a_task_of_which_the_reference_scores_nothing_does_not_count(tmp_path):
    plan, cells = made(tmp_path)
    comparison = read(plan, cells, tmp_path)
    place = comparison.variants.index("hat+1e-3")
    comparison.bootstrap.runs[0][place].sums[5, 2][:] = 0
    comparison = replace(comparison, bootstrap=Bootstrap(comparison.bootstrap.runs, draws=100))
    assert choices(comparison)["hat"].tasks == (0, 1, 3, 4, 5)
    assert choices(comparison)["teracon"].tasks == tuple(range(6))


def test_with_one_variant_a_method_there_is_nothing_to_choose(tmp_path):
    plan, cells = made(tmp_path, axes={"method": ["teracon", "hat"], "model.backbone": ["nextitnet", "sasrec"]}, baseline="teracon")
    assert choices(read(plan, cells, tmp_path)) == {}
    assert "chosen on validation" not in write_tables(plan, cells, tmp_path, problems={}).read_text()


def test_backbones_choose_apart(tmp_path):
    axes = {**AXES, "method": ["teracon", "hat"], "model.backbone": ["nextitnet", "sasrec"]}
    found = choices(read(*made(tmp_path, axes=axes), tmp_path))
    assert list(found) == ["teracon+nextitnet", "teracon+sasrec", "hat+nextitnet", "hat+sasrec"]
    assert found["hat+sasrec"].reference == "hat+sasrec+1e-3" or found["hat+sasrec"].reference == "hat+1e-3+sasrec"
