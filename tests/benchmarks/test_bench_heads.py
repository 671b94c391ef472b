"""The heads' benchmark runs and prints all that it promises; no figure is asserted, machines differ."""

from __future__ import annotations

import pytest

from dist_teracon.bench.heads import main

SMALL = ["--channels", "8", "--users", "2", "--length", "7", "--scored", "600", "--repeats", "1", "--draws", "2"]


@pytest.mark.slow  # five processes, each of which imports torch
def test_it_runs_on_few_labels(capsys):
    main(["--sizes", "400", "--skip", "scores", *SMALL])
    main(["--sizes", "200", "400", "--skip", "step", "adam", "bias", *SMALL])
    output = capsys.readouterr().out
    for part in (
        "| 400 | full |",
        "| 400 | sampled |",
        "| 200 | 600 |",
        "| 400 | 600 |",
        "| 400 | rows read |",
        "| 400 | sampled, lazy |",
        "| 400 | log_uniform, 1024 |",
        "one thread",
    ):
        assert part in output
