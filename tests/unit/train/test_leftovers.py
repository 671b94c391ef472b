"""What a killed run has left under temporary names is removed by the process that goes on, and nothing else."""

from __future__ import annotations

from pathlib import Path

from dist_teracon.atomic import atomic_folder
from dist_teracon.train.run_folder import RunFolder


def test_own_temporary_files_go_and_others_stay(tmp_path: Path) -> None:
    run, mark = RunFolder(tmp_path / "run"), "0a" * 16
    stage = run.path / "stages" / "01-next"
    shard = stage / "pseudo_labels" / "next"
    for folder in (shard, stage / "progress" / ".phase-0-epoch-00001.new-abcdefgh", run.path / "single-task"):
        folder.mkdir(parents=True)
    (run.path / "config.yaml").touch()
    left = [
        run.path / f".results.json.{mark}",
        stage / f".model.safetensors.{mark}",
        shard / f".shard-00000.arrow.{mark}",
        stage / "progress" / ".phase-0-epoch-00001.new-abcdefgh" / f".engine.safetensors.{mark}",
    ]
    # a report is written without the lock, the single tasks' run has a lock of its own, and the last two are not of this program
    kept = [
        run.path / f".report.html.{mark}",
        run.path / "single-task" / f".results.json.{mark}",
        run.path / ".results.json.swp",
        stage / ".notes",
    ]
    for path in (*left, *kept):
        path.touch()
    with atomic_folder(stage / "progress" / "phase-0-epoch-00002") as live, run.lock():
        assert live.exists()  # another process's, which holds it
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert sorted(path.name for path in (stage / "progress").iterdir()) == ["phase-0-epoch-00002"]
