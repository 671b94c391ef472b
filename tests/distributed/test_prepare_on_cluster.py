"""`prepare --cluster`: Ray Data's workers make the same bytes as one process."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_teracon.cli import main
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.prepare.ray_workers import RayWorkers
from dist_teracon.data.sources import sequence_csv
from dist_teracon.data.streaming.staged import StagedRows
from dist_teracon.errors import DataError


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray of two cores, once for all tests."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", object_store_memory=150 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first task in two files, one compressed, whose users come again in both; item and profile tasks; some malformed rows."""
    folder = tmp_path_factory.mktemp("raw")
    draw = np.random.default_rng(5)
    rows = [",".join(["0"] * (8 - n) + [str(item) for item in draw.integers(1, 60, n)]) for n in draw.integers(2, 9, 700)]
    (folder / "task1_history").mkdir()
    (folder / "task1_history" / "part-1.csv").write_text("\n".join([*rows[:400], *rows[:9], "1,2,x,4,5,6,7,8"]) + "\n")
    with gzip.open(folder / "task1_history" / "part-2.csv.gz", "wt") as file:
        file.write("\n".join([*rows[390:650], "0,0,0,0,0,0,0,0"]) + "\n")
    bought = [f"{row},,{','.join(str(100 + item) for item in draw.integers(0, 30, 1 + n % 3))}" for n, row in enumerate(rows[100:])]
    (folder / "task2_bought.csv").write_text("\n".join([*bought, "1,2,3"]) + "\n")
    (folder / "task3_gender.csv").write_text("".join(f"{row},,{n % 2}\n" for n, row in enumerate(reversed(rows))))
    return folder


# the later tasks in another order than their files
REVERSED = ["--set", "tasks={gender: {kind: profile}, bought: {kind: item}}"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    "options", [["--shards", "3"], ["--split", "rows", "--min-count", "3", "--set", "history.padding=token"], REVERSED]
)
def test_the_bytes_are_those_of_one_machine(raw, tmp_path, options):
    options = [*options, "--max-bad-rows", "0.1"]
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "one"), *options]) == 0
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "many"), "--cluster", *options]) == 0
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert list(many) == list(one)
    assert "rejected.jsonl" in many
    assert [path for path in one if many[path] != one[path]] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


@pytest.mark.usefixtures("ray")
def test_errors_are_those_of_one_machine_and_leave_nothing(raw, tmp_path):
    with pytest.raises(DataError) as alone:
        prepare("sequence-csv", str(raw), str(tmp_path / "out"))
    with pytest.raises(DataError) as together:
        prepare("sequence-csv", str(raw), str(tmp_path / "out"), cluster=True)
    assert str(together.value) == str(alone.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ray")
def test_rows_that_get_lost_on_the_way_are_seen(raw, tmp_path, monkeypatch):
    """Staged files of one partition vanish: counts differ, and nothing is published."""
    spill = sequence_csv.spill_on_workers

    def losing(*arguments):
        fields, rows = spill(*arguments)
        kept = [replace(piece, files=tuple(name for name in piece.files if "labels-2-000" not in name)) for piece in rows.pieces]
        return fields, StagedRows(tuple(kept))

    monkeypatch.setattr(sequence_csv, "spill_on_workers", losing)
    with pytest.raises(DataError, match=r"do not add up: .*rows of 'gender' written, 700 read; nothing was published"):
        prepare("sequence-csv", str(raw), str(tmp_path / "out"), cluster=True, max_bad_rows=0.1, shards=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ray")
def test_a_worker_that_fails_is_reported_in_one_line(tmp_path, monkeypatch):
    def broken(_piece):
        raise RuntimeError("no such device")

    with pytest.raises(DataError, match=r"--cluster: a worker failed \(.*no such device\)"):
        RayWorkers("").map(broken, [1, 2])


def test_other_formats_are_refused(tmp_path, capsys):
    assert main(["prepare", "events", str(tmp_path), str(tmp_path / "out"), "--cluster"]) == 2
    assert "'events' is prepared on one machine; on a cluster: sequence-csv, ttl" in capsys.readouterr().err
