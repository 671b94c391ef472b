"""What is refused before the first cell of a comparison runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_teracon.atomic import write_json
from dist_teracon.compare.checks import _other_periods, check_cells, other_candidates, other_knowledge
from dist_teracon.compare.plan import Cell, Plan, read_plan
from dist_teracon.console import Console
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import ConfigError


def test_rankings_with_and_without_own_items_do_not_compare() -> None:
    problem = other_candidates({"a": {"next": False, "age": False}, "b": {"next": True}})
    assert problem.startswith("'b' ranks task 'next' without the items of the user's history and 'a' with them")
    assert "evaluate.exclude_seen" in problem
    assert other_candidates({"a": {"next": True, "age": False}, "b": {"next": True}, "c": {"age": False}}) == ""


def test_data_sets_of_which_one_knows_more_of_what_users_took_do_not_compare() -> None:
    assert other_knowledge({"data/new": False, "data/old": True}).startswith("data/new knows all that users took, and data/old the last")
    assert other_knowledge({"data/a": True, "data/b": True}) == other_knowledge({"data/a": False}) == other_knowledge({}) == ""


def test_finished_cells_are_held_against_those_to_come(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    variants: dict[str, dict[str, Any]] = {"with": {"evaluate.exclude_seen": False}, "without": {"evaluate.exclude_seen": True}}
    plan, cells = _planned(tmp_path, dataset.uri, variants)
    done = cells[0].folder(tmp_path)
    done.mkdir(parents=True)
    shutil.copy(f"{dataset.uri}/dataset.json", done)
    write_json(done / "results.json", {"tasks": ["next"], "scores": [[0.5]], "metrics": ["mrr@5"], "scores_by_metric": {"mrr@5": [[0.5]]}})
    with pytest.raises(ConfigError, match="'without' ranks task 'next' without the items of the user's history and 'with' with them"):
        check_cells(plan, cells, tmp_path, where="plan", console=Console(active=False))


def test_a_task_is_judged_by_one_metric_in_all_variants(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {"a": {"evaluate.metrics": ["mrr@5", "hr@5"]}, "b": {"evaluate.metrics": ["hr@5", "mrr@5"]}}
    plan, cells = _planned(tmp_path, make_dataset().uri, variants)
    with pytest.raises(ConfigError, match=r"plan: task 'next' is judged by mrr@5 in 'a' and by hr@5 in 'b', the first of their evaluate"):
        check_cells(plan, cells, tmp_path, where="plan", console=Console(active=False))
    check_cells(plan.model_copy(update={"metrics": ("hr@5",)}), cells, tmp_path, where="plan", console=Console(active=False))


def _planned(folder: Path, dataset: str, variants: dict[str, dict[str, Any]]) -> tuple[Plan, list[Cell]]:
    (folder / "run.yaml").write_text(json.dumps({"dataset": dataset, "tasks": ["next"], "method": {"name": "popularity"}}))
    plan = {"config": str(folder / "run.yaml"), "seeds": [0], "variants": variants, "baseline": next(iter(variants))}
    (folder / "plan.yaml").write_text(json.dumps(plan))
    return read_plan(str(folder / "plan.yaml"))


def test_orders_differ_only_where_each_task_has_its_own_period(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    orders = {"a": ("next", "likes", "age"), "b": ("next", "age", "likes"), "c": ("next", "age")}
    variants: dict[str, dict[str, Any]] = {name: {"evaluate.period": "present"} for name in orders}
    _, cells = _planned(tmp_path, make_dataset().uri, variants)
    assert _other_periods(cells, orders).startswith("'a' and 'b' learn their tasks in other orders, and with evaluate.period 'present'")
    assert _other_periods(cells, {"a": orders["a"], "c": orders["c"]}) == ""
    own = [replace(cell, config=cell.config.model_copy(update={"evaluate": type(cell.config.evaluate)()})) for cell in cells]
    assert _other_periods(own, orders) == ""
