"""The benchmark of preparation runs and prints what it should; its times are not asserted."""

from __future__ import annotations

import pytest

from dist_teracon.bench.data import public_way
from dist_teracon.cli import main
from dist_teracon.data.synthetic.ttl import raw_files


def test_the_benchmark_prints_its_table(capsys, tmp_path):
    assert main(["bench", "data", "--users", "900", "--public-users", "800", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "public way | 800 |" in output
    assert "prepare | 900 |" in output
    assert "times fewer than the public way" in output
    assert list(tmp_path.iterdir()) == []


def test_the_public_way_reads_the_rows(tmp_path):
    raw_files(str(tmp_path / "raw"), users=50)
    history, _, _, click, labels, label_index, *_, index = public_way(tmp_path / "raw")
    assert history.shape == (50, 100)
    assert len(click) == len(labels) > 40
    assert labels.max() + 1 == len(label_index)
    first = (tmp_path / "raw" / "original_desen_pretrain.csv").read_text().splitlines()[0].split(",")
    assert history[0].tolist() == [index[token] for token in first]


def test_wrong_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "data", "--users", "many"])
    assert "--users" in capsys.readouterr().err
