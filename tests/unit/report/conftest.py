"""A plausible finished run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of six tasks, with baselines, timing, log and further metrics."""
    from made_runs import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "ml-100k")
