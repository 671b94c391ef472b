"""The registry of raw formats: what is named there can be used, is taken by the command line and stands in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dist_teracon.cli import main
from dist_teracon.data.sources.base import SourceFormat
from dist_teracon.data.sources.registry import SOURCES, source_format

PAGE = Path(__file__).parents[4] / "docs" / "data.md"


@pytest.mark.parametrize("name", SOURCES)
def test_a_format_is_read_by_name(name, tmp_path, capsys):
    assert isinstance(source_format(name), SourceFormat)
    assert main(["prepare", name, str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "invalid choice" not in capsys.readouterr().err


def test_the_documented_formats_are_those_of_the_registry():
    table = re.findall(r"^\| `([a-z-]+)` \|.*\| (needed|optional|none) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in table} == {*SOURCES, "synthetic"}
    assert {name for name, recipe in table if recipe == "needed"} == {name for name in SOURCES if source_format(name).needs_recipe}
