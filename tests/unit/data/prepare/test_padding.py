"""`history.padding: token` and `prepare --set`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.prepare.padding import PADDING, left_padded

ROWS = [f"{'0,' * (5 - n)}{','.join(str(1 + (k * (n + 3) + m) % 9) for m in range(n))}" for k in range(12) for n in (1, 2, 3, 5)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "task1_history.csv").write_text("".join(f"{row}\n" for row in ROWS))
    (folder / "task2_gender.csv").write_text("".join(f"{row},,{n % 2}\n" for n, row in enumerate(ROWS)))
    return folder


def test_rows_are_cut_and_filled_on_the_left():
    values, offsets = np.array([1, 2, 3, 4, 5, 6], dtype=np.int32), np.array([0, 1, 1, 6])
    filled, places = left_padded(values, offsets, length=3, padding=9)
    assert filled.reshape(-1, 3).tolist() == [[9, 9, 1], [9, 9, 9], [4, 5, 6]]
    assert places.tolist() == [0, 3, 6, 9]


def test_stored_sequences_are_the_raw_files_rows(raw, tmp_path):
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "out"), "--split", "rows", "--set", "history.padding=token"]) == 0
    data = Dataset(str(tmp_path / "out"))
    names = data.vocabulary("items")["item"].to_pylist()
    assert names[-1] == PADDING
    stored = []
    for index in range(data.info.shards):
        shard = data.shard(index)
        assert (np.diff(shard.offsets) == 5).all()
        stored += [",".join("0" if names[item] == PADDING else names[item] for item in row) for row in shard.values.reshape(-1, 5)]
    assert sorted(stored) == sorted(ROWS)
    assert data.info.notes["padding"] == "token"
    # padding is a target as well: four positions of every row are predicted
    assert data.train_counts("history")[len(names) - 3] > 0
    assert data.info.task("history").users == len(ROWS)


def test_a_recipes_fields_are_overridden(raw, tmp_path, capsys):
    sets = [word for field in ("folds=4", "fold=3", "validation=0.1", "train=0.75") for word in ("--set", f"split.{field}")]
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "out"), *sets]) == 0
    rule = Dataset(str(tmp_path / "out")).info.split
    assert (rule.folds, rule.fold, rule.validation) == (4, 3, 0.1)
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "other"), "--set", "split.flod=3"]) == 2
    assert "--set: split.flod: unknown field; did you mean 'fold'?" in capsys.readouterr().err
    assert main(["prepare", "synthetic", str(tmp_path / "other"), "--set", "split.fold=3"]) == 2
    assert "synthetic data follows no recipe" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_padded_data_does_not_grow(raw, tmp_path, capsys):
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "old"), "--set", "history.padding=token"]) == 0
    assert main(["prepare", "sequence-csv", str(raw), str(tmp_path / "new"), "--append", str(tmp_path / "old")]) == 2
    assert "cannot grow" in capsys.readouterr().err


def test_padding_would_be_among_a_users_last_items_and_is_refused(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    for given in (["--split", "last"], ["--set", "split.by=last"]):
        assert main(["prepare", "sequence-csv", str(raw), out, *given, "--set", "history.padding=token"]) == 2
        assert "history.padding: 'token' and a split by 'last' do not go together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
