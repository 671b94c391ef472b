"""What is refused before the first cell of a comparison runs."""

from __future__ import annotations

from dist_teracon.compare.checks import other_candidates, other_knowledge


def test_rankings_with_and_without_own_items_do_not_compare() -> None:
    problem = other_candidates({"a": {"next": False, "age": False}, "b": {"next": True}})
    assert problem.startswith("'b' ranks task 'next' without the items of the user's history and 'a' with them")
    assert "evaluate.exclude_seen" in problem
    assert other_candidates({"a": {"next": True, "age": False}, "b": {"next": True}, "c": {"age": False}}) == ""


def test_data_sets_of_which_one_knows_more_of_what_users_took_do_not_compare() -> None:
    assert other_knowledge({"data/new": False, "data/old": True}).startswith("data/new knows all that users took, and data/old the last")
    assert other_knowledge({"data/a": True, "data/b": True}) == other_knowledge({"data/a": False}) == other_knowledge({}) == ""
