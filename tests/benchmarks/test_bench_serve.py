"""`dist-teracon bench serve` on a small run, at a rate that any machine keeps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dist_teracon.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@pytest.mark.slow
def test_its_tables(tmp_path, monkeypatch, capsys):
    from shop import make_shop_run, prepare_shop, write_events

    run = make_shop_run(prepare_shop(write_events(tmp_path / "events"), tmp_path / "dataset"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    paths = ["/encode", "/events", "/predict"]
    arguments = ["--task", "buys", "--paths", *paths, "--rates", "5", "10", "--seconds", "1", "--repeats", "2"]
    assert main(["bench", "serve", str(run), *arguments]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rates = [line for line in lines if line[0] in paths]
    assert [(line[0], line[1], line[2], line[8]) for line in rates] == [(path, rate, rate, "0") for path in paths for rate in ("5", "10")]
    assert all(0 < float(line[3]) <= float(line[4]) <= float(line[5]) for line in rates)
    assert all(float(line[6]) > 0 and float(line[7]) > 0 for line in rates)
    # the shop's histories end at 8 events
    assert [line[0] for line in lines[-3:]] == ["8 events encoded", "their last one added to a state", "one more than the limit of 8 added"]
