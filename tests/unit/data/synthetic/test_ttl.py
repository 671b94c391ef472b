"""Users of TTL's shape: sizes, first users, planted relations, the raw format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dist_teracon.cli import main
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.sources.sequence_csv import TTL_FILES
from dist_teracon.data.synthetic.ttl import ITEMS, LENGTH_LIMIT, TASKS, TtlUsers, blocks, raw_files
from dist_teracon.errors import ConfigError


@pytest.fixture(scope="module")
def block():
    return TtlUsers().block(3)


def test_shares_lengths_and_labels_are_those_of_ttl(block):
    lengths = (block.items_BL > 0).sum(axis=1)
    assert 58 < lengths.mean() < 62
    assert (lengths.min(), lengths.max()) == (3, LENGTH_LIMIT)
    assert ((block.items_BL > 0) == (np.arange(LENGTH_LIMIT) >= (LENGTH_LIMIT - lengths)[:, None])).all()
    assert block.items_BL.max() <= ITEMS
    for task in TASKS:
        own = block.targets[task.name]
        assert (own[:, 0] >= 0).mean() == pytest.approx(task.share, abs=0.02)
        assert own.max() < task.labels
        there = np.sort(own, axis=1)
        assert not ((there[:, 1:] == there[:, :-1]) & (there[:, 1:] >= 0)).any()


def test_items_have_a_long_tail(block):
    counts = np.sort(np.unique(block.items_BL[block.items_BL > 0], return_counts=True)[1])[::-1]
    assert counts[: len(counts) // 100].sum() > 0.2 * counts.sum()
    assert (counts == 1).mean() > 0.5


def test_tasks_are_related_through_the_users_factor(block):
    """Users of one age share more of their items with one another than with users of other ages."""
    age = block.targets["age"][:, 0]
    sets = [set(row[row > 0].tolist()) for row in block.items_BL]
    draw = np.random.default_rng(0)
    pairs = draw.integers(len(sets), size=(40_000, 2))
    shared = np.array([len(sets[a] & sets[b]) for a, b in pairs])
    same = age[pairs[:, 0]] == age[pairs[:, 1]]
    assert shared[same].mean() > 1.15 * shared[~same].mean()


def test_the_first_users_are_those_of_a_smaller_set():
    large, small = list(blocks(8192 + 100)), list(blocks(70))
    assert (small[0].items_BL == large[0].items_BL[:70]).all()
    assert len(large[1].items_BL) == 100
    assert (small[0].targets["click"] == large[0].targets["click"][:70]).all()


def test_raw_files_hold_what_was_drawn(tmp_path):
    raw_files(str(tmp_path / "raw"), users=300)
    drawn = next(blocks(300))
    for name, task in TTL_FILES.items():
        lines = (tmp_path / "raw" / name).read_text().splitlines()
        rows = [",".join(map(str, row)) for row in drawn.items_BL.tolist()]
        if task != "watching":
            own = drawn.targets[task]
            rows = [
                f"{row},,{','.join(str(t) for t in mine if t >= 0)}" for row, mine in zip(rows, own.tolist(), strict=True) if mine[0] >= 0
            ]
        assert lines == rows


def test_output_never_changes(tmp_path):
    import hashlib

    raw_files(str(tmp_path / "raw"), users=200)
    whole = hashlib.sha256(b"".join((tmp_path / "raw" / name).read_bytes() for name in TTL_FILES))
    assert whole.hexdigest() == "688a60dd82e4ca6c24aee684a097e57bbf83932008a32b820deffdd53f5baf77"


def test_the_command_line_makes_raw_files_and_data_sets(tmp_path, capsys):
    assert main(["prepare", "synthetic", str(tmp_path / "raw"), "--like", "ttl", "--users", "400", "--raw"]) == 0
    assert main(["prepare", "ttl", str(tmp_path / "raw"), str(tmp_path / "one")]) == 0
    assert main(["prepare", "synthetic", str(tmp_path / "two"), "--like", "ttl", "--users", "400"]) == 0
    assert "watching" in capsys.readouterr().out
    for path in (tmp_path / "one").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    assert main(["prepare", "synthetic", str(tmp_path / "two"), "--like", "ttl", "--users", "400"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "raw", "two"]
    assert main(["prepare", "synthetic", str(tmp_path / "x"), "--raw"]) == 2


def test_wrong_sizes_and_places(tmp_path: Path):
    with pytest.raises(ConfigError, match="users is 0"):
        raw_files(str(tmp_path / "raw"), users=0)
    with pytest.raises(ConfigError, match="local folder"):
        raw_files("memory://raw", users=3)
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_the_tasks(tmp_path):
    raw_files(str(tmp_path / "raw"), users=2000)
    info = prepare("ttl", str(tmp_path / "raw"), str(tmp_path / "out"))
    assert [(task.name, task.kind) for task in info.tasks] == [
        ("watching", "next"), ("click", "item"), ("like", "item"), ("age", "profile"), ("gender", "profile"), ("life-status", "profile"),
    ]  # fmt: skip
    assert [task.labels for task in info.tasks][3:] == [8, 2, 6]


def test_a_full_disk_is_told(tmp_path, monkeypatch, capsys):
    def write(*_: object) -> None:
        Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr("dist_teracon.data.synthetic.ttl.write_raw", write)
    assert main(["prepare", "synthetic", str(tmp_path / "raw"), "--like", "ttl", "--users", "9", "--raw"]) == 2
    assert "error: the disk is full" in capsys.readouterr().err
