"""Numbers of whole histories: what they are, at each position and for rows, what they are fitted on, how they travel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split
from dist_teracon.data.user_svd import UserSvd
from dist_teracon.evaluate.baselines import SvdFeatures
from dist_teracon.models import history_start as module
from dist_teracon.models.backbone import Backbone, make_backbone
from dist_teracon.models.history_features import HistoryFeatures, HistoryStart
from dist_teracon.models.history_start import history_start, training_rows

ROWS = [[2, 3, 2, 2], [4], [], [3, 4, 3]]
TYPES = [[1, 2, 1, 0], [9], [], [2, 2, 2]]


def batch(**changes: object) -> PackedBatch:
    return PackedBatch.from_sequences(**{"sequences": ROWS, "types": TYPES, **changes})  # type: ignore[arg-type]


def random_factors(items: int = 6, directions: int = 3) -> torch.Tensor:
    return torch.randn(items, 1 + directions, generator=torch.Generator().manual_seed(0))


def plain(*features: str, directions: int = 3) -> HistoryFeatures:
    made = HistoryFeatures(features, num_items=6, directions=directions)  # type: ignore[arg-type]
    if "svd" in features:
        made.factors = random_factors(directions=directions)
    return made


def test_events_distinct_items_and_types_are_counted() -> None:
    found = plain("counts", "types").raw(batch().sequences, positions="last").expm1().round().int().tolist()
    assert [row[:4] for row in found] == [[4, 2, 2, 1], [1, 1, 0, 0], [0, 0, 0, 0], [3, 2, 0, 3]]
    assert not any(any(row[4:]) for row in found)  # type 9 is beyond those that are counted


def test_each_position_has_what_came_up_to_it() -> None:
    numbers = plain("counts", "types", "svd")
    found = numbers.raw(batch().sequences, positions="all")
    prefixes = [(row[: end + 1], types[: end + 1]) for row, types in zip(ROWS, TYPES, strict=True) for end in range(len(row))]
    rows, types = ([part[place] for part in prefixes] for place in (0, 1))
    expected = numbers.raw(batch(sequences=rows, types=types).sequences, positions="last")
    assert torch.allclose(found, expected, atol=1e-6)


def test_days_since_the_last_event_are_those_to_the_moment() -> None:
    day, unknown = 86_400, -(2**63)
    rows = batch(
        sequences=[[2, 3], [4], [], [5], [3]], types=None, times=[[0, 3 * day], [day], [], [unknown], [9 * day]],
        moments=[10 * day, day // 2, 5, 7, unknown],
    ).sequences  # fmt: skip
    numbers = plain("recency")
    last = numbers.raw(rows, positions="last").expm1().flatten()
    assert last[:2].tolist() == pytest.approx([7.0, 0.0])  # a moment before the last event is as that event's
    assert last[2:].isnan().all()
    every = numbers.raw(rows, positions="all").expm1().flatten()
    assert every[:3].tolist() == pytest.approx([3.0, 7.0, 0.0])
    assert every[3:].isnan().all()
    assert numbers(rows, positions="last")[2:].tolist() == [[0.0]] * 3


def test_padded_rows_have_the_numbers_of_packed_ones() -> None:
    numbers, rows = plain("counts", "svd"), [row for row in ROWS if row]
    padded = torch.tensor([row + [2] * (4 - len(row)) for row in rows])
    expected = numbers(PackedBatch.from_sequences(rows).sequences, positions="last")
    assert torch.allclose(numbers.padded(padded, torch.tensor([len(row) for row in rows])), expected, atol=1e-6)


def test_the_svd_of_a_row_is_that_of_the_baseline() -> None:
    draw = np.random.default_rng(2)
    lengths = draw.integers(1, 12, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = draw.integers(1, 20, offsets[-1]).astype(np.int32)
    fitted = UserSvd.fit(values[: offsets[40]], offsets[:41], items=20, dimension=5, seed=3)
    factors = torch.from_numpy(np.concatenate([fitted.weights[:, None], fitted.directions.T * fitted.weights[:, None]], axis=1))
    numbers = HistoryFeatures(["svd"], num_items=20, directions=5)
    numbers.factors = factors
    rows = [values[first:end] for first, end in pairwise(offsets)]
    found = numbers.raw(PackedBatch.from_sequences(rows).sequences, positions="last").numpy()
    expected = SvdFeatures.fit(values, offsets, items=20, train_users=np.arange(40), dimension=5, seed=3).projected
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(expected, fitted.project(values, offsets))


def test_numbers_are_standardised_and_a_constant_one_tells_nothing() -> None:
    start = HistoryStart(torch.tensor([math.log(3), 0.0]), torch.tensor([2.0, 0.0]))
    numbers = HistoryFeatures(["counts"], num_items=6, directions=3, start=start)
    found = numbers(batch(sequences=[[2, 2], [3] * 5], types=None).sequences, positions="last")
    assert torch.allclose(found, torch.tensor([[0.0, 0.0], [2 * math.log(2), 0.0]]), atol=1e-6)
    far = HistoryFeatures(["counts"], num_items=6, directions=3, start=HistoryStart(torch.zeros(2), torch.full((2,), 1e6)))
    assert far(batch(types=None).sequences, positions="last")[0].tolist() == [10.0, 10.0]


def test_they_keep_their_precision_in_a_network_that_is_cast() -> None:
    numbers = plain("svd")
    exact = numbers.factors
    assert exact is not None
    outer = torch.nn.Sequential(numbers).bfloat16()
    assert torch.equal(numbers.factors_known, exact)
    assert outer.float()[0].factors is not None and torch.equal(numbers.factors_known, exact)


def made(*features: str, start: HistoryStart | None = None, name: str = "nextitnet") -> Backbone:
    own = {"nextitnet": {"dilations": [1]}, "sasrec": {"layers": 1}}[name]
    config = ModelConfig.model_validate(
        {"channels": 4, "dropout": 0.0, "backbone": {"name": name, **own}, "history_features": features, "history_svd": 3}
    )
    return make_backbone(config, num_items=6, generator=torch.Generator().manual_seed(0), history=start)


@pytest.mark.parametrize("name", ["nextitnet", "sasrec"])
def test_they_stand_beside_the_representation(name: str) -> None:
    start = HistoryStart(torch.zeros(5), torch.ones(5), random_factors())
    backbone, without = made("svd", "counts", start=start, name=name), made(name=name)
    assert (backbone.output_dim, without.output_dim) == (13, 8)
    sequences = batch().sequences
    for positions in ("last", "all"):
        found = backbone.encode(sequences, None, positions=positions)
        assert torch.equal(found[:, :8], without.encode(sequences, None, positions=positions))
        assert torch.equal(found[:, 8:], backbone.history_features(sequences, positions=positions))  # type: ignore[misc]
    taken = made("counts", "svd", name=name)
    taken.load_state_dict(backbone.state_dict())
    assert torch.equal(taken.encode(sequences, None, positions="last"), backbone.encode(sequences, None, positions="last"))


def test_a_batch_without_types_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.history_features: 'types' reads types of events"):
        made("types").encode(batch(types=None).sequences, None, positions="last")


@pytest.fixture
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(users=120, items=20)


MODEL = ModelConfig.model_validate({"history_features": ["counts", "svd"], "history_svd": 8})


def test_training_users_alone_decide_and_have_mean_0_and_spread_1(dataset: Dataset) -> None:
    task = dataset.info.tasks[0]
    start = history_start(dataset, task, MODEL, seed=1)
    rows = training_rows(dataset, task, seed=1)
    assert rows.rows == task.examples[0] < dataset.info.users
    numbers = HistoryFeatures(MODEL.history_features, num_items=dataset.info.items, directions=8, start=start)
    each = [rows.values[first:end] for first, end in pairwise(rows.offsets)]
    found = numbers(PackedBatch.from_sequences(each).sequences, positions="last")
    assert torch.allclose(found.mean(0), torch.zeros(10), atol=1e-4)
    assert torch.allclose(found.std(0, correction=0), torch.ones(10), atol=1e-3)
    held_out = Dataset(dataset.uri)
    for shard in range(dataset.info.shards):  # what other users took changes nothing
        data, trained = held_out.shard(shard), held_out.labels(task.name, shard).of(Split.TRAIN).users
        other = ~np.isin(np.arange(len(data.user_hash)), trained)
        changed = np.where(np.repeat(other, np.diff(data.offsets)), np.int32(7), data.values)
        held_out._shards[shard] = replace(data, values=changed)
    again = history_start(held_out, task, MODEL, seed=1)
    for one, other in ((start.shift, again.shift), (start.scale, again.scale), (start.factors, again.factors)):
        assert one is not None and other is not None and torch.equal(one, other)


def test_too_many_events_are_a_sample_of_users(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    task, whole = dataset.info.tasks[0], training_rows(dataset, dataset.info.tasks[0], seed=1)
    monkeypatch.setattr(module, "EVENTS", len(whole.values) // 2)
    some = training_rows(dataset, task, seed=1)
    assert 0.3 * whole.rows < some.rows < 0.7 * whole.rows
    assert np.array_equal(some.values, training_rows(dataset, task, seed=1).values)
