"""Parts that another installed package brings, declared as entry points: used by their names from the command line, and in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import HELPERS, settings

from dist_teracon.continual import registry as methods
from dist_teracon.continual.registry import method_class
from dist_teracon.data.sources.registry import source_format
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import parse_metric
from dist_teracon.launch import machine
from dist_teracon.launch.doctor import check
from dist_teracon.models import backbone as backbones

PARTS = {
    "methods": "anchored = our_parts.toy_anchored:Anchored",
    "backbones": "bag = our_parts.toy_backbone:Bag",
    "sources": "jsonl = our_parts.toy_source:FORMAT",
    "metrics": "sure-hit = our_parts:SURE_HIT",
}


def installed(folder: Path, *, name: str = "our-parts", **parts: str) -> Path:
    """Lay a package with the toys of `tests/helpers` in a folder as an installer does, declaring these parts, a line each."""
    package = folder / "our_parts"
    package.mkdir(parents=True, exist_ok=True)
    for path in HELPERS.glob("toy_*.py"):
        shutil.copy(path, package)
    (package / "__init__.py").write_text(
        "from dist_teracon.evaluate.metrics import by_rank\n"
        "from .toy_metric import sure_hit\n"
        "SURE_HIT = by_rank(sure_hit, over='examples')\n"
    )
    about = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("".join(f"[dist_teracon.{kind}]\n{line}\n" for kind, line in parts.items()))
    return folder


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the toys register when they are imported is forgotten after a test."""
    for registry in (methods, backbones):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "our_parts"]:
        del sys.modules[name]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., str]:
    """Give tests a function that runs a command of the program where the package is installed, and returns what it printed."""
    site = installed(tmp_path / "site", **PARTS)

    def run(*arguments: str, code: int = 0) -> str:
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "dist_teracon.cli", *arguments], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_parts_of_another_package_from_raw_files_to_predictions(command: Callable[..., str], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    events = [
        {"user": f"u{user}", "item": f"i{int(item)}", "time": 1_600_000_000 + place}
        for user in range(80)
        for place, item in enumerate(draw.integers(0, 20, 8))
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"split": {"train": 0.6, "validation": 0.2, "test": 0.2}}))
    command("prepare", "jsonl", "raw", "data", "--recipe", "recipe.yaml")
    values = settings("data", tasks=("next",))
    values["method"], values["evaluate"] = {"name": "anchored", "strength": 0.1}, {"metrics": ["sure-hit@5"]}
    values["model"] = {**values["model"], "backbone": {"name": "bag", "layers": 3}, "pooling": "last"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command("train", "config.yaml", "--run", "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"] == ["sure-hit@5"]
    assert "strength: 0.1" in (tmp_path / "run" / "config.yaml").read_text()
    command("predict", "run", "data", "lists.parquet", "--task", "next", "--top", "3")
    said = command("doctor")
    for part in ("method anchored", "backbone bag", "source jsonl", "metric sure-hit"):
        assert any(part in line and "of our-parts 1.2" in line for line in said.splitlines())


def test_where_the_package_is_gone_the_run_says_what_it_lacks(command: Callable[..., str], tmp_path: Path) -> None:
    said = command("train", "none.yaml", "--run", "run", code=2)
    assert "none.yaml" in said
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings("data"), "method": {"name": "anchord"}}))
    said = command("train", "config.yaml", "--run", "run", code=2)
    assert "method.name: no method 'anchord'; did you mean 'anchored'?" in said
    with pytest.raises(ConfigError, match="no method 'anchored'"):
        method_class("anchored")


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (
            "methods",
            "lost = no_such_module:Lost",
            r"of our-parts 1\.2 \(no_such_module:Lost\) cannot be imported: ModuleNotFoundError",
        ),
        ("methods", "lost = our_parts.toy_anchored:AnchoredSettings", r"expected a subclass of dist_teracon\.continual\.method\.Method"),
        ("methods", "lost = our_parts.toy_anchored:Anchored", r"its `name` is 'anchored'; expected the same"),
        ("methods", "lost = our_parts:SURE_HIT", r"expected a class, got a Metric"),
        ("sources", "lost = our_parts:SURE_HIT", r"expected a SourceFormat, got a Metric"),
        ("metrics", "lost = our_parts.toy_source:FORMAT", r"expected a Metric, got a SourceFormat"),
    ],
)
def test_what_is_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: str, said: str) -> None:
    monkeypatch.syspath_prepend(installed(tmp_path, **{kind: line}))
    find = {"methods": method_class, "sources": source_format, "metrics": parse_metric}[kind]
    with pytest.raises((ConfigError, ValueError), match=said):
        find("lost")


def test_two_packages_with_one_name_and_a_name_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, methods="twice = our_parts.toy_anchored:Anchored")
    monkeypatch.syspath_prepend(installed(tmp_path, name="more", methods="twice = a:B\nteracon = a:B"))
    with pytest.raises(ConfigError, match=r"declared by several installed packages \(.*1\.2, .*1\.2\); uninstall all but one"):
        method_class("twice")
    assert method_class("teracon").__module__ == "dist_teracon.continual.teracon"
    (note,) = (finding for finding in check(machine.survey()) if finding.name == "method teracon")
    assert note.status == "note" and "never used" in note.found
