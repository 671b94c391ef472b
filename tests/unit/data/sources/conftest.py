"""Data sets made of raw files that a test writes down."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe

sys.path.insert(0, str(Path(__file__).parents[3] / "helpers"))


@pytest.fixture
def made(tmp_path, read) -> Callable[..., Any]:
    """Give tests a function that writes raw files and reads back the data set that is made of them; `info["log"]` is what was logged."""

    def make(files: dict[str, bytes], recipe: dict[str, Any], *, format: str = "events", source: str = "", **options: Any) -> Any:
        for name in ("raw", "out"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        for name, content in files.items():
            path = tmp_path / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        lines: list[str] = []
        raw, rules = tmp_path / "raw" / source, parse_recipe(recipe)
        prepare(format, str(raw), str(tmp_path / "out"), recipe=rules, log=lines.append, **options)
        back = read(tmp_path / "out")
        back.info["log"] = "\n".join(lines)
        return back

    return make
