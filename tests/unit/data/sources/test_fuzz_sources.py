"""Some of the damaged inputs of `make fuzz`, and those that once went wrong."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.raw import bad_rows, delimited, table
from dist_teracon.data.raw.times import read_times
from dist_teracon.data.recipe import parse_recipe

PROGRAM = Path(__file__).parents[3] / "fuzz" / "sources.py"


@pytest.fixture
def fuzzer(monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(bad_rows, "_SAMPLES", bad_rows._SAMPLES)  # the program changes these
    monkeypatch.setattr(delimited, "_LEAST_BLOCK", delimited._LEAST_BLOCK)
    spec = importlib.util.spec_from_file_location("fuzz_sources", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_sources", module)
    spec.loader.exec_module(module)
    yield module


@pytest.mark.parametrize("inputs", [80, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_inputs_are_refused_or_counted(fuzzer, inputs):
    ends, wrong = fuzzer.fuzz(inputs, seed=7)
    assert wrong == []
    assert sum(ends.values()) == inputs
    for format in ("sequence-csv", "ttl", "tenrec", "recbole", "movielens", "events"):
        assert ends[f"{format}: kept"] > 0
    assert sum(count for end, count in ends.items() if end.endswith("refused")) > 0


def test_the_program_finds_a_row_that_is_lost(fuzzer, monkeypatch):
    """A reader that drops rows without a word is caught, so the program can fail."""
    monkeypatch.setattr(bad_rows.BadRows, "add", lambda self, kind, where, text=None, count=1: None)
    _, wrong = fuzzer.fuzz(60, seed=7, formats={"sequence-csv"})
    assert wrong


def test_the_program_finds_events_that_come_out_in_another_order(fuzzer, monkeypatch):
    def backwards(*arguments: Any, **options: Any) -> Any:
        times = read_times(*arguments, **options)
        return replace(times, nanoseconds=-times.nanoseconds)

    monkeypatch.setattr(table, "read_times", backwards)
    _, wrong = fuzzer.fuzz(8, seed=7, formats={"recbole", "events"})
    assert any("oracle [" in line for line in wrong)


def test_a_quote_that_is_not_closed_swallows_nothing(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [f"u{n % 40},i{n % 7}\n" for n in range(400)]
    rows[100] = '"u1,i1\n'
    (tmp_path / "raw" / "events.csv").write_text("user,item\n" + "".join(rows))
    info = prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=parse_recipe({}), max_bad_rows=0.1)
    assert info.events == 399
    assert info.notes["malformed_rows"] == {"a quote that is not closed": 1}
