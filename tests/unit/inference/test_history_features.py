"""A model that reads histories as a whole: every form of histories, predictions, exported programs, what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import dist_teracon
from dist_teracon.errors import ConfigError, DataError

HISTORY = [
    {"item": f"p{(7 * place) % 24:02d}", "time": 1_700_000_000 + 40_000 * place, "type": ("view", "buy")[place % 2]} for place in range(8)
]
FEATURES = ["counts", "types", "recency", "svd"]


@pytest.fixture(scope="module")
def typed(shop, tmp_path_factory):
    """The shop's data set with times and types of views and buys."""
    from shop import RECIPE, prepare_shop

    history = {**RECIPE["history"], "events": {"type": ["view", "buy"]}, "keep": ["time", "type"], "repeats": True}
    return prepare_shop(shop.events, tmp_path_factory.mktemp("typed") / "dataset", history=history, tasks={"club": {"kind": "profile"}})


def made(typed, folder, features):
    from shop import CONFIG, make_shop_run

    model = {**CONFIG["model"], "history_features": features, "history_svd": 5}
    return dist_teracon.from_pretrained(make_shop_run(typed, folder / "run", tasks=["next", "club"], model=model))


@pytest.fixture(scope="module")
def model(typed, tmp_path_factory):
    return made(typed, tmp_path_factory.mktemp("whole"), FEATURES)


def test_every_form_of_histories_gives_the_vectors_of_the_data_set(model, typed, shop):
    from dist_teracon.inference.sources import of_dataset

    source, expected = of_dataset(model, typed, log=print), {}
    for part in range(source.parts):
        read = source.histories(part)
        expected |= dict(zip(read.users.to_pylist(), model.encode(read, "club"), strict=True))
    assert len(expected) > 100
    table = pq.read_table(shop.events / "events.parquet")
    for form in (str(shop.events / "events.parquet"), table):
        read = model.histories(form)
        found = dict(zip(read.users.to_pylist(), model.encode(read, "club"), strict=True))
        assert expected.keys() <= found.keys()
        for user, vector in expected.items():
            np.testing.assert_allclose(found[user], vector, atol=1e-6)


def test_users_never_trained_on_have_them_and_each_of_them_counts(model):
    (vector,) = model.encode([HISTORY], "club")
    numbers = vector[-(2 + 8 + 1 + 5) :]
    assert np.isfinite(numbers).all()
    for changed in (HISTORY[1:], [{**HISTORY[0], "type": "buy"}, *HISTORY[1:]], [*HISTORY[:-1], {**HISTORY[-1], "item": "p02"}]):
        assert not np.array_equal(model.encode([changed], "club")[0, -16:], numbers)
    later = model.encode([HISTORY], "club", at=1_800_000_000)[0, -16:]
    assert np.flatnonzero(later != numbers).tolist() == [10]  # the days since the last event
    batched = model.encode([HISTORY, HISTORY[:3]], "club")
    np.testing.assert_allclose(batched[0], vector, atol=1e-6)
    assert len(model.predict([HISTORY], "club").labels[0]) == 2


def test_a_history_without_times_is_refused(model):
    with pytest.raises(DataError, match="the model reads times of events"):
        model.encode([["p01", "p02"]], "club")


@pytest.mark.slow
def test_numbers_of_items_alone_are_exported_with_the_program(typed, model, tmp_path):
    from dist_teracon.inference.padded import TOLERANCE, export_model

    alone = made(typed, tmp_path, ["counts", "svd"])
    assert alone.event_columns == ()
    assert export_model(alone, str(tmp_path / "club.pt2"), "club") <= TOLERANCE
    with pytest.raises(ConfigError, match=r"export-model: the model reads .* of events \(model.history_features\)"):
        export_model(model, str(tmp_path / "refused.pt2"), "club")
