"""SRC and OUT in every form that people write: `~`, symbolic links, `.`, a slash at the end, files; refusals before any work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dist_teracon import io
from dist_teracon.atomic import atomic_folder, remove_temporary_files, remove_temporary_folders
from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.train.verify import verify

RECIPE: dict[str, Any] = {"tasks": {"age": {"kind": "profile"}}, "split": {"train": 0.6, "validation": 0.2, "test": 0.2}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which is the working directory, with raw files in it."""
    folder = tmp_path / "home"
    (folder / "raw").mkdir(parents=True)
    lines = [f"u{user},i{(user * 3 + step) % 7},{1_600_000_000 + step}" for user in range(20) for step in range(4)]
    (folder / "raw" / "events.csv").write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    (folder / "raw" / "users.csv").write_text("user,age\n" + "\n".join(f"u{user},{'ab'[user % 2]}" for user in range(20)) + "\n")
    (folder / "r.yaml").write_text(json.dumps(RECIPE))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def prepare(source: str, out: str, *options: str) -> int:
    return main(["prepare", "events", source, out, "--recipe", str(Path.home() / "r.yaml"), *options])


def sound(folder: Path) -> None:
    """Check that a folder holds a whole data set, and that nothing is left beside it."""
    assert Dataset(str(folder)).info.users == 20
    assert [problem for _, problem in verify(str(folder)) if problem] == []
    assert [path.name for path in folder.resolve().parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("out", ["out", "out/", "./out", "~/out", "~/out/", "sub/../out", "deep/er/out", "file"])
def test_a_folder_in_every_spelling(home, out):
    (home / "sub").mkdir()
    out = f"file://{home}/out" if out == "file" else out
    assert prepare("raw", out) == 0
    sound(Path(out.removeprefix("file://")).expanduser())
    assert prepare("raw", out) == 0  # finds it


@pytest.mark.parametrize("append", [False, True])
def test_the_working_directory_itself(home, monkeypatch, append):
    assert prepare("raw", "old") == 0
    options = ["--append", "../old", "--refresh"] if append else []
    (home / "here").mkdir()
    monkeypatch.chdir(home / "here")
    before = Path.cwd().stat().st_ino
    assert prepare("../raw", ".", *options) == 0
    assert Path.cwd().stat().st_ino == before
    assert (Path.cwd() / "dataset.json").exists()
    sound(home / "here")
    assert prepare("../raw", ".", *options) == 0


@pytest.mark.parametrize("append", [False, True])
def test_a_link_to_an_empty_folder_is_that_folder(home, append):
    (home / "disk" / "real").mkdir(parents=True)
    (home / "out").symlink_to(home / "disk" / "real")
    if append:
        assert prepare("raw", "old") == 0
        assert prepare("raw", "out", "--append", "old", "--refresh") == 0
    else:
        assert prepare("raw", "out") == 0
    assert (home / "out").is_symlink()
    sound(home / "disk" / "real")


def test_a_link_below_which_the_result_lies(home):
    (home / "disk").mkdir()
    (home / "link").symlink_to(home / "disk")
    assert prepare("raw", "link/a/out") == 0
    sound(home / "disk" / "a" / "out")


REFUSED = {
    "file": "is a file; name a folder",
    "file/out": "is a file; name another folder",
    "dangling": "is a symbolic link to nowhere, which is not there; make that folder or remove the link",
    "dangling/out": "is a symbolic link to nowhere, which is not there",
    "linked-file": "is a file; name a folder",
    "full": "is there already and is no data set; name a new folder or remove it",
    ".": "is there already and is no data set",
    "~": "is there already and is no data set",
}


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("out", REFUSED)
def test_what_cannot_be_a_data_set_is_refused_before_the_work(home, capsys, out, append):
    assert prepare("raw", "old") == 0
    (home / "file").touch()
    (home / "full").mkdir()
    (home / "full" / "x").touch()
    (home / "dangling").symlink_to("nowhere")
    (home / "linked-file").symlink_to("file")
    before = sorted(path.name for path in home.iterdir())
    capsys.readouterr()
    assert prepare("raw", out, *(["--append", "old", "--refresh"] if append else [])) == 2
    told = capsys.readouterr().err
    assert REFUSED[out] in told
    assert f"error: {out}" in told
    assert "reading" not in told
    assert sorted(path.name for path in home.iterdir()) == before


@pytest.mark.parametrize("source", ["raw/", "./raw", "~/raw", "link", "~/link/", "."])
def test_raw_files_in_every_spelling(home, monkeypatch, source):
    (home / "link").symlink_to("raw")
    if source == ".":
        monkeypatch.chdir(home / "raw")
    assert prepare(source, str(home / "out")) == 0
    info = Dataset(str(home / "out")).info
    assert sorted(info.source["files"]) == ["events.csv", "users.csv"]
    assert info.name == ("link" if "link" in source else "raw")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raw/users.csv", "raw/users.csv:1: no column 'item'"),
        ("none", "none: no such folder"),
        ("dangling", "dangling: no such folder"),
    ],
)
def test_raw_files_that_are_not_there(home, capsys, source, said):
    (home / "dangling").symlink_to("nowhere")
    assert prepare(source, "out") == 2
    assert said in capsys.readouterr().err
    assert not (home / "out").exists()


@pytest.mark.parametrize("run", ["file", "file/run", "dangling", "dangling/run", "linked-file"])
def test_a_run_is_refused_alike(home, capsys, run):
    (home / "file").touch()
    (home / "dangling").symlink_to("nowhere")
    (home / "linked-file").symlink_to("file")
    (home / "c.yaml").write_text("dataset: synthetic:six-tasks-v1?users=2000\n")
    assert main(["train", "c.yaml", "--run", run]) == 2
    assert REFUSED[run.replace("/run", "/out")] in capsys.readouterr().err


def test_errors_of_the_system_name_no_temporary_folder(home):
    hidden = home / ".out.preparing" / "dataset" / "x"
    assert io.shown_path(hidden) == home
    assert io.shown_path(home / "out" / f".x.json.{'0' * 32}") == home / "out"
    assert io.shown_path(home / "out" / "x.json") == home / "out" / "x.json"


def test_a_place_on_another_disk_is_filled_file_by_file(home, monkeypatch):
    (home / "mount").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == home / "mount")
    replace = Path.replace

    def other_disk(self: Path, target: Any) -> Path:
        if Path(target).parent == home / "mount" and ".preparing" in str(self):
            raise OSError(18, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", other_disk)
    assert prepare("raw", "mount") == 0
    sound(home / "mount")


def test_what_a_killed_process_left_beside_a_result_is_removed_and_nothing_else(tmp_path):
    left, mine = tmp_path / ".set.new-abcdefgh", tmp_path / ".set.original"
    for folder in (left, mine):
        folder.mkdir()
        (folder / "x").touch()
    with atomic_folder(tmp_path / "set") as folder:
        (folder / "y").touch()
        live = folder
        with atomic_folder(tmp_path / "other" / "set"):
            pass
        remove_temporary_folders(tmp_path)
        assert live.exists()  # held by this process
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.original", "other", "set"]
    shutil.rmtree(mine)


def test_temporary_files_of_named_files_are_removed_and_others_stay(tmp_path):
    for name in ("results.json", "report.html"):
        (tmp_path / f".{name}.{'a1' * 16}").touch()
    (tmp_path / ".results.json.backup").touch()
    remove_temporary_files(tmp_path, of=("results.json",))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".report.html.{'a1' * 16}", ".results.json.backup"]
