"""Results of commands in use: where one file goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_teracon.errors import RunError
from dist_teracon.inference import out_folder
from dist_teracon.inference.out_folder import BEGUN, OutFolder, write_file


@pytest.mark.parametrize(("uri", "path"), [("/no-such.csv", "/no-such.csv"), ("file:///no-such.csv", "/no-such.csv"), ("x.csv", "x.csv")])
def test_a_file_is_written_where_it_is_named(uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    @contextmanager
    def noted(target: Path) -> Iterator[Path]:
        written.append(target)
        yield tmp_path / "file"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out_folder, "atomic_path", noted)
    write_file(uri, Path.touch)
    assert written == [Path(path)]


def test_a_folder_is_filled_by_one_process_at_a_time_and_goes_on_after_one_that_was_killed(tmp_path: Path) -> None:
    uri, left = str(tmp_path / "out"), tmp_path / "out" / f".{BEGUN}.{'0' * 32}"
    left.parent.mkdir()
    left.write_text("{")  # of a process that was killed while it wrote its first file
    first = OutFolder(uri, "manifest.json")
    assert first.claim({"of": "a"}) is False
    assert not left.exists()
    with pytest.raises(RunError, match="out: another process is writing there; wait for it or name another folder"):
        OutFolder(uri, "manifest.json").claim({"of": "a"})
    del first  # as when its process ends
    second = OutFolder(uri, "manifest.json")
    assert second.claim({"of": "a"}) is False
    second.finish({"settings": {"of": "a"}})
    assert OutFolder(uri, "manifest.json").claim({"of": "a"}) is True
    assert sorted(path.name for path in left.parent.iterdir()) == ["manifest.json"]
