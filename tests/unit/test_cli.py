"""The command line and the package's face: help that fits a terminal, and every registered name accepted and documented."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dist_teracon
from dist_teracon import cli
from dist_teracon.bench import BENCHMARKS
from dist_teracon.cli.data import formats
from dist_teracon.cli.use import COMMANDS as INFERENCE
from dist_teracon.config_io import make_config
from dist_teracon.continual.registry import METHODS, resolve_method
from dist_teracon.models.backbone import BACKBONES, resolve_backbone

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = formats()


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command prints for `--help`."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def document(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """Return what a page has under a heading of the second level."""
    return document(name).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    "arguments", [(), ("prepare",), ("train",), ("report",), ("compare",), ("bench",), *((name,) for name in INFERENCE)]
)
def test_help_fits_eighty_columns(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in help_of(capsys, *arguments).splitlines() if len(line) > 80] == []


def test_help_lists_every_command_once_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    (commands,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert re.findall(r"^  (\w[\w-]*) ", text, re.MULTILINE) == list(commands.choices)
    assert [line[:-1] for line in text.splitlines() if re.fullmatch(r"[a-z ]+:", line)][:-1] == list(cli._COMMANDS)


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "dist_teracon", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"dist-teracon {dist_teracon.__version__}\n"


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_a_format_of_prepare_and_stands_in_the_docs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._parser().parse_args(["prepare", name, "raw", "out"]).format == name
    assert name in help_of(capsys, "prepare").replace("-\n", "-").replace(" ", "")
    assert f"\n| `{name}` |" in document("data.md")


def test_a_format_that_is_not_there_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prepare", "recbol", "raw", "out"])
    assert "'recbole', 'movielens'" in capsys.readouterr().err


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_accepted_and_stands_in_the_docs(name: str) -> None:
    assert resolve_method(make_config({"dataset": "d", "method": {"name": name}}, where="x"), where="x")[0].name == name
    assert re.search(rf"^  name: .*\b{name}\b", document("training.md"), re.MULTILINE)
    assert f"\n| `{name}` |" in section("method.md", "Systems")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_accepted_and_stands_in_the_docs(name: str) -> None:
    config = make_config({"dataset": "d", "model": {"backbone": name}}, where="x")
    assert resolve_backbone(config.model, where="x")[0].name == name
    assert f"backbone: {{name: {name}" in document("training.md")
    assert f"`models/{BACKBONES[name]}.py`" in section("method.md", "Backbones")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help_and_stands_in_the_docs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n  {name} " in help_of(capsys, "bench")
    assert f"usage: dist-teracon bench {name} " in help_of(capsys, "bench", name)
    assert [page.name for page in DOCS.glob("*.md") if f"bench {name}" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("balance", "--ranks", "8", "0"), "argument --ranks: expected a whole number of 1 or more, got '0'"),
        (("scaling", "--rows", "-1"), "argument --rows: expected a whole number of 1 or more, got '-1'"),
        (("scaling", "--memory", "nan"), "argument --memory: expected a number above 0, got 'nan'"),
        (("serve", "runs/x", "--rates", "0"), "argument --rates: expected a number above 0, got '0'"),
        (("replay", "--budget", "1.5"), "argument --budget: expected a share from 0 to 1, got '1.5'"),
        (("replay", "--tasks", "1"), "argument --tasks: expected numbers of 2 or more"),
        (("workers", "demo.yaml", "--seeds", "-1"), "argument --seeds: expected a whole number of 0 or more, got '-1'"),
    ],
)
def test_a_benchmarks_numbers_have_bounds(arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    assert ended.value.code == 2
    assert f"dist-teracon bench {arguments[0]}: error: {problem}" in capsys.readouterr().err


def test_a_path_too_few_says_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "recbole", "raw"]) == 2
    assert "prepare recbole: expected two paths, got 1" in capsys.readouterr().err


def test_the_package_imports_what_it_names_on_first_use() -> None:
    heavy = ("torch", "ray", "deepspeed", "triton", "pyarrow", "numpy", "pydantic")
    code = f"""
import sys, dist_teracon
assert [name for name in {heavy} if name in sys.modules] == []
assert set(dist_teracon.__all__) <= set(dir(dist_teracon))
assert dist_teracon.load_config("configs/demo.yaml").dataset.startswith("synthetic:")
assert "torch" not in sys.modules
assert callable(dist_teracon.open_dataset) and callable(dist_teracon.train_tasks)
"""
    subprocess.run([sys.executable, "-c", code], timeout=300, check=True)


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dist_teracon.trian  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    assert importlib.metadata.version("dist-teracon") == dist_teracon.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "plan.yaml", "--out", "o", "--parallel", "0"),
        ("compare", "plan.yaml", "--out", "o", "--parallel", "-1"),
        ("prepare", "events", "raw", "out", "--shards", "0"),
        ("prepare", "synthetic", "out", "--users", "1e24"),
        ("prepare", "synthetic", "out", "--users", "0"),
        ("prepare", "events", "raw", "out", "--min-count", "-3"),
    ],
)
def test_counts_below_one_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert f"argument {arguments[-2]}: expected a whole number of 1 or more, got '{arguments[-1]}'" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["nan", "1.5", "-0.1", "some"])
def test_a_share_of_malformed_rows_is_a_share(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prepare", "events", "raw", "out", f"--max-bad-rows={share}"])
    assert f"argument --max-bad-rows: expected a share from 0 to 1, got '{share}'" in capsys.readouterr().err


def test_no_run_at_a_time_is_refused_from_python_too(tmp_path: Path) -> None:
    from dist_teracon.compare.run import compare
    from dist_teracon.console import Console
    from dist_teracon.errors import ConfigError

    with pytest.raises(ConfigError, match="--parallel: expected 1 run at a time or more, got 0"):
        compare("configs/compare/rows-six-tasks.yaml", tmp_path / "out", parallel=0, console=Console(active=False))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ml-100k", "ml-100k.yaml", "recipes/ml-100k", "recipes/ml-100k.yaml", "configs/recipes/ml-100k.yaml"])
def test_shipped_recipes_are_found_by_name_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_teracon.data.recipe import read_recipe

    monkeypatch.chdir(tmp_path)
    assert set(read_recipe(name).tasks) == {"star4", "star5", "age", "gender", "occupation"}


def test_shipped_runs_and_comparisons_are_found_by_name_and_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_teracon.compare.plan import read_plan
    from dist_teracon.config_io import load_config

    monkeypatch.chdir(tmp_path)
    assert load_config("ml-100k").dataset == "data/ml-100k"
    assert read_plan("rows-six-tasks")[0].config == "configs/six-tasks.yaml"
    (tmp_path / "ttl").mkdir()  # a folder of that name, as of the raw files, does not hide it
    assert load_config("ttl").dataset == "data/ttl"
    (tmp_path / "ml-100k").write_text("dataset: mine\n")
    assert load_config("ml-100k").dataset == "mine"


def test_a_recipe_that_is_not_shipped_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "events", "raw", "out", "--recipe", "nver"]) == 2
    assert (
        "nver: no such file; did you mean 'naver.yaml'? (shipped in configs/recipes: complete-journey-time.yaml" in capsys.readouterr().err
    )


def test_a_data_set_in_the_place_of_a_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    assert cli.main(["train", str(tmp_path), "--run", str(tmp_path / "run")]) == 2
    assert f"is a data set; train takes a configuration (YAML) that names it, as configs/ml-100k.yaml --set dataset={tmp_path}" in (
        capsys.readouterr().err
    )


def test_sigterm_ends_a_command_as_an_error_does_and_removes_its_temporary_files(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from dist_teracon import cli, io
from dist_teracon.atomic import atomic_path

def interrupted(options):
    with atomic_path(Path({str(tmp_path / "out.csv")!r})) as path:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached")

cli._doctor = interrupted
sys.exit(cli.main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert not list(tmp_path.iterdir())


def test_main_leaves_signals_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    help_of(capsys, "doctor")
    assert signal.getsignal(signal.SIGTERM) is before
