"""Submission as far as it goes without a cluster: the wheel, the job's command, and what is refused before anything is sent."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dist_teracon.cli import _parser as train_parser
from dist_teracon.launch.submit import _parser, _submission, main
from dist_teracon.launch.wheel import program_wheel


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: synthetic:six-tasks-v1?users=300\n")
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what is said of a submission that is refused."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_an_address_is_needed_and_is_a_url(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert "--address: no job server given" in refused(capsys, config, "--run", "/r")
    said = refused(capsys, "--address", "head:6379", config, "--run", "/r")
    assert "--address head:6379: expected the URL of the job server, as http://head:8265" in said


def test_a_server_that_does_not_answer_is_named(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    said = refused(capsys, "--address", "http://127.0.0.1:9", config, "--run", "/r")
    assert "--address http://127.0.0.1:9: no job server answers there" in said


def test_a_variable_that_is_not_set_and_a_bad_field_are_refused_before_the_cluster_is_asked(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_THING", raising=False)
    where = ("--address", "http://127.0.0.1:9", config, "--run", "/r")
    assert "--env NO_SUCH_THING: is not set here" in refused(capsys, *where, "--env", "NO_SUCH_THING")
    assert "launch.workers" in refused(capsys, *where, "--set", "launch.workers=0")


def test_the_job_gets_every_option_of_train(config: str, tmp_path: Path) -> None:
    given = [
        "--with-single-task",
        "--no-report",
        "--quiet",
        "--scratch",
        "/fast",
        "--add-task",
        "age",
        "--new-items",
        "text",
        "--until-stage",
        "3",
        "--begin-with",
        "s3://b/other",
    ]
    options = _parser().parse_args([config, "--run", "s3://b/r/", *given, "--item-vectors", "s3://b/v.parquet", "--set", "seed=7"])
    submission = _submission(options, lambda _: None)
    assert submission.config.seed == 7  # travels in the file
    command = submission.command
    assert command[:5] == ["python", "-m", "dist_teracon", "train", "config.yaml"]
    job = train_parser().parse_args(command[3:])
    same = (
        "run",
        "launcher",
        "with_single_task",
        "no_report",
        "quiet",
        "verbose",
        "scratch",
        "add_task",
        "begin_with",
        "new_items",
        "item_vectors",
        "until_stage",
    )
    assert [getattr(job, name) for name in same] == [getattr(options, name) for name in same]
    assert set(vars(options)) - set(same) == {
        "config", "set", "dry_run", "address", "env", "submission_id", "no_wait", "stop_on_interrupt"
    }  # fmt: skip


def test_the_wheel_is_made_once_and_runs_without_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
    wheel = program_wheel()
    made = wheel.stat().st_mtime_ns
    assert program_wheel() == wheel
    assert wheel.stat().st_mtime_ns == made
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert len(set(names)) == len(names)
    assert "Requires-Dist" not in metadata  # else every node would install torch beside its own
    assert not [name for name in names if name.endswith(".pyc")]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path / "there"), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    code = (
        "import dist_teracon, dist_teracon.kernels, dist_teracon.launch.ray_train; from dist_teracon.config_io import load_config; "
        "load_config('configs/demo.yaml'); print(dist_teracon.__file__)"
    )
    environment = {"PYTHONPATH": str(tmp_path / "there"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().startswith(str(tmp_path / "there"))


def test_other_contents_make_another_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dist_teracon.launch.wheel as module

    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
    before = program_wheel()
    files = dict(module._files())
    changed = tmp_path / "errors.py"
    changed.write_text("# changed\n")
    monkeypatch.setattr(module, "_files", lambda: iter({**files, "dist_teracon/errors.py": changed}.items()))
    assert program_wheel() != before
