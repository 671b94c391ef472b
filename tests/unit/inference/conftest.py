"""A shop's events, its data set, and a run on it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folders `events`, `dataset` and `run`; the run has learned `next`, `buys` and `club`."""
    from shop import make_shop_run, prepare_shop, write_events

    folder = tmp_path_factory.mktemp("shop")
    events = write_events(folder / "events")
    dataset = prepare_shop(events, folder / "dataset")
    return SimpleNamespace(folder=folder, events=events, dataset=dataset, run=make_shop_run(dataset, folder / "run"))


@pytest.fixture(scope="session")
def model(shop):
    """The run's model after its last stage."""
    import dist_teracon

    return dist_teracon.from_pretrained(shop.run)
