"""A process group of one and small data sets for whole runs in this process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process."""
    from dist_teracon.engine.deepspeed_engine import _import_deepspeed
    from dist_teracon.runtime import process_group

    _import_deepspeed()
    gc.freeze()  # an engine's release collects garbage, and need not look through what was imported each time
    with process_group():
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 160 users and the tasks `next`, `likes` (12 labels), `age` (3), `gender` (2), in 8 shards."""
    from small_runs import write_small

    return write_small(tmp_path_factory.mktemp("small") / "set")
