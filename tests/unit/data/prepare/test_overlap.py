"""Labels that stand in the history, or happened before its end, are counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dist_teracon.cli import main
from dist_teracon.data.prepare.overlap import Overlap, count_overlap, note_overlaps
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.recipe import EventFilter, parse_recipe
from dist_teracon.data.sources.base import Events

# user 0: views at 1, 2, 5, a purchase at 3; user 1: a view at 1, a purchase at 4; user 2: a purchase at 2 and no view
USERS = np.array([0, 0, 0, 0, 1, 1, 2], dtype=np.int32)
TIMES = np.array([1.0, 2.0, 5.0, 3.0, 1.0, 4.0, 2.0])
TYPES = np.array([0, 0, 0, 1, 0, 1, 1], dtype=np.int32)


def events(*, times: bool = True) -> Events:
    return Events(
        Categorical(USERS, ["a", "b", "c"]), Categorical(np.zeros(7, dtype=np.int32), ["i"]), TIMES if times else None,
        Categorical(TYPES, ["view", "purchase"]),
    )  # fmt: skip


def fits(_where: str, rule: EventFilter) -> np.ndarray:
    mask = np.ones(7, dtype=bool)
    if rule.type is not None:
        mask &= np.isin(TYPES, [["view", "purchase"].index(name) for name in rule.type])
    if rule.since is not None:
        mask &= rule.since <= TIMES
    if rule.until is not None:
        mask &= rule.until > TIMES
    return mask


def noted(history: dict, task: dict, *, times: bool = True) -> tuple[dict, list[str]]:
    said: list[str] = []
    recipe = parse_recipe({"history": {"events": history}, "tasks": {"t": {"kind": "item", "events": task}, "p": {"kind": "profile"}}})
    return note_overlaps(recipe, events(times=times), fits, log=said.append), said


def test_events_of_two_types_share_nothing_but_may_lie_before_the_end() -> None:
    # the purchase at 3 is before the view at 5; user 2 has no history
    assert count_overlap(TYPES == 0, TYPES == 1, events()) == Overlap(events=2, in_history=0, before_end=1)
    assert count_overlap(TYPES == 0, TYPES == 1, events(times=False)) == Overlap(events=2, in_history=0, before_end=None)


def test_a_recipe_without_dates_has_no_future_to_leak() -> None:
    assert noted({"type": "view"}, {"type": "purchase"}) == ({"t": {"events": 2, "in_history": 0, "before_end": 1}}, [])


def test_labels_that_are_history_are_named() -> None:
    found, (said,) = noted({}, {"type": "purchase"})
    assert found == {"t": {"events": 3, "in_history": 3, "before_end": 1}}
    assert said.startswith("warning: 3 of 3 events of task 't' are in the history too")
    assert "tasks.t.events" in said


def test_labels_before_the_end_of_a_window_are_named() -> None:
    found, (said,) = noted({"type": "view"}, {"type": "purchase", "from": 2})
    assert found == {"t": {"events": 2, "in_history": 0, "before_end": 1}}
    assert said.startswith("warning: 1 of 2 events of task 't' happened before the end of their user's history")


@pytest.mark.parametrize("times", [True, False])
def test_windows_apart_are_silent(times: bool) -> None:
    found, said = noted({"until": 2.5}, {"from": 2.5}, times=times)
    assert said == []
    assert found == {"t": {"events": 3, "in_history": 0, "before_end": 0 if times else None}}


def test_recipes_of_profiles_alone_have_nothing_to_count() -> None:
    recipe = parse_recipe({"tasks": {"p": {"kind": "profile"}}})
    assert note_overlaps(recipe, events(), fits, log=lambda _: pytest.fail("nothing to say")) == {}


@pytest.mark.parametrize(
    ("history", "task", "in_history", "warned"),
    [
        ("{type: search}", "{type: buy}", 0, None),
        ("{}", "{type: buy}", 60, "60 of 60 events of task 'bought' are in the history too"),
        (
            "{type: search, until: 2024-01-03}",
            "{type: buy, from: 2024-01-02}",
            0,
            "60 of 60 events of task 'bought' happened before the end",
        ),
        ("{type: search, until: 2024-01-02}", "{type: buy, from: 2024-01-02}", 0, None),
    ],
)
def test_prepare_counts_and_warns(
    history: str, task: str, in_history: int, warned: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["user,item,timestamp,type"]
    for user in range(60):
        rows += [
            f"u{user},q{user % 7},2024-01-01,search",
            f"u{user},q{user % 4},2024-01-01 12:00,search",
            f"u{user},p{user % 5},2024-01-02,buy",
            f"u{user},q{user % 3},2024-01-02 12:00,search",
        ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/events.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "r.yaml").write_text(f"history: {{events: {history}}}\ntasks: {{bought: {{kind: item, events: {task}}}}}\n")
    assert main(["prepare", "events", str(tmp_path / "raw"), str(tmp_path / "out"), "--recipe", str(tmp_path / "r.yaml")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("warning: " in said) == (warned is not None)
    assert warned is None or warned in said
    notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
    assert (notes["overlap"]["bought"]["events"], notes["overlap"]["bought"]["in_history"]) == (60, in_history)
