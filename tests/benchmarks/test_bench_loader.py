"""The loader's benchmark runs and prints all that it promises; no figure is asserted, machines differ."""

from __future__ import annotations

from dist_teracon.bench.loader import main


def test_it_runs_on_a_small_set(tmp_path, capsys):
    main([str(tmp_path), "--users", "400", "--items", "300", "--repeats", "1", "--event-columns"])
    output = capsys.readouterr().out
    assert output.count("users/s |") == 4
    for part in ("first batch", "bytes an event on disk", "memory beyond the page cache", "400 users, rank 0 of 1"):
        assert part in output
