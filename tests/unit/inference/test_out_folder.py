"""Results of commands in use: where one file goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_teracon import io
from dist_teracon.inference.out_folder import write_file


@pytest.mark.parametrize(("uri", "path"), [("/no-such.csv", "/no-such.csv"), ("file:///no-such.csv", "/no-such.csv"), ("x.csv", "x.csv")])
def test_a_file_is_written_where_it_is_named(uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    @contextmanager
    def noted(target: Path) -> Iterator[Path]:
        written.append(target)
        yield tmp_path / "file"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(io, "atomic_path", noted)
    write_file(uri, Path.touch)
    assert written == [Path(path)]
