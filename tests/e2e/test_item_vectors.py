"""Initial item vectors say which items occur together."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import settings, small_tables, train_here, weights, write_small

from dist_teracon import io
from dist_teracon.config_io import make_config
from dist_teracon.data.batches import ragged_positions
from dist_teracon.data.item_vectors_file import read_item_vectors
from dist_teracon.data.open import open_dataset
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.schema import FIRST_ITEM, Split, SplitRule
from dist_teracon.errors import ConfigError, DataError, RunError
from dist_teracon.models import item_init
from dist_teracon.models.item_init import SCALE, cooccurrence_vectors, given_vectors

ITEMS = "backbone.item_embedding.weight"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_small(tmp_path_factory.mktemp("vectors") / "data"))


def vectors_of(dataset, channels=8, seed=0):
    return cooccurrence_vectors(dataset, dataset.info.tasks[0], channels, seed=seed)


def trained_items(dataset):
    found = [np.zeros(0, np.int64)]
    for shard in range(dataset.info.shards):
        data = dataset.shard(shard)
        for user in dataset.labels("next", shard).of(Split.TRAIN).users:
            found.append(data.values[data.offsets[user] : data.offsets[user + 1]])
    return np.unique(np.concatenate(found))


def test_items_of_the_same_users_are_near(dataset) -> None:
    """The small set's users like one of four stretches of items, which overlap."""
    unit = torch.nn.functional.normalize(vectors_of(dataset)[FIRST_ITEM:], dim=1)
    ordered = (unit @ unit.T).sort(dim=1, descending=True).values
    assert float(ordered[:, 1:7].mean()) > 0.5
    assert float(ordered[:, 14:].mean()) < 0.2


def test_the_way_for_large_tables_finds_a_symmetric_matrixs_leading_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(80, 80, generator=generator)).Q
    strength = 0.8 ** torch.arange(80.0) * torch.tensor([1.0, -1.0]).repeat(40)
    whole = (turn * strength) @ turn.T
    first, second = np.divmod(np.arange(80 * 80), 80)
    found = item_init._symmetric_directions(first, second, whole.flatten().numpy(), 80, 6)
    wanted = turn[:, :6] * strength[:6].abs().sqrt()
    assert (torch.nn.functional.cosine_similarity(found, wanted, dim=0).abs() > 0.999).all()
    torch.testing.assert_close(found.norm(dim=0), wanted.norm(dim=0), rtol=1e-3, atol=0)


def test_large_tables_too_know_items_of_the_same_users(dataset, monkeypatch) -> None:
    small = vectors_of(dataset)
    monkeypatch.setattr(item_init, "LARGE", 1)
    found = vectors_of(dataset)
    assert torch.equal((found == 0).all(dim=1), (small == 0).all(dim=1))
    assert torch.equal(found, vectors_of(dataset))
    test_items_of_the_same_users_are_near(dataset)


def test_items_that_training_users_never_took_have_no_vector(dataset) -> None:
    vectors, known = vectors_of(dataset), trained_items(dataset)
    zero = np.flatnonzero((vectors == 0).all(dim=1).numpy())
    assert set(zero) >= {0, 1}
    assert not set(zero) & set(known[known >= FIRST_ITEM])
    assert abs(float(vectors[torch.from_numpy(known)].std()) / SCALE - 1) < 0.1


def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_generator_alone(dataset) -> None:
    state = torch.get_rng_state()
    assert torch.equal(vectors_of(dataset), vectors_of(dataset))
    assert torch.equal(torch.get_rng_state(), state)


def test_more_channels_than_items_leaves_the_rest_zero(dataset) -> None:
    vectors = vectors_of(dataset, channels=64)
    assert vectors.shape == (dataset.info.items, 64)
    assert (vectors[:, dataset.info.items :] == 0).all()


def test_too_many_pairs_leave_out_users_not_the_rest(dataset, monkeypatch) -> None:
    monkeypatch.setattr(item_init, "PAIRS", 2 * item_init.WINDOW * 300)
    kept = item_init._sequences(dataset, dataset.info.tasks[0], 0)
    everyone = sum(len(dataset.labels("next", shard).of(Split.TRAIN).users) for shard in range(dataset.info.shards))
    assert 0 < sum(len(offsets) - 1 for _, offsets in kept) < everyone
    assert vectors_of(dataset).abs().sum() > 0


def test_validation_and_test_users_say_nothing(tmp_path) -> None:
    tables = small_tables()
    rule = SplitRule(train=0.6, validation=0.2, test=0.2)
    write_dataset(tables, str(tmp_path / "one"), rule, shards=8)
    one = open_dataset(str(tmp_path / "one"))
    changed = small_tables()
    outside = {
        int(user)
        for shard in range(8)
        for split in (Split.VALIDATION, Split.TEST)
        for user in one.shard(shard).user_hash[one.labels("next", shard).of(split).users]
    }
    rows = np.flatnonzero([int(user) in outside for user in changed.sequences.user_hash])
    starts, lengths = changed.sequences.offsets[rows], np.diff(changed.sequences.offsets)[rows]
    places = ragged_positions(starts, lengths)
    # the same items in all, so that the vocabulary stays; dealt to other users
    changed.sequences.values[places] = np.random.default_rng(0).permutation(changed.sequences.values[places])
    write_dataset(changed, str(tmp_path / "other"), rule, shards=8)
    assert torch.equal(vectors_of(open_dataset(str(tmp_path / "other"))), vectors_of(one))


def test_a_run_starts_from_them(alone: None, dataset, tmp_path) -> None:
    config = settings(dataset.uri, tasks=("next",), max_steps=1)
    config["model"] = {**config["model"], "item_init": "svd"}
    run = train_here(config, tmp_path / "run")
    assert float((weights(run, "01-next")[ITEMS] - vectors_of(dataset)).abs().max()) <= 0.0101  # one step of Adam at 0.01


def test_weight_decay_pulls_matrices_and_the_present_head_alone(alone: None, dataset, tmp_path) -> None:
    """Of two one-step runs, the decayed weights differ by rate · decay · start, and nothing else differs."""
    found = {}
    for decay in (0.0, 0.5):
        config = settings(dataset.uri, tasks=("next",), max_steps=1)
        config["train"]["first"] = {**config["train"]["first"], "weight_decay": decay}
        config["model"] = {**config["model"], "item_init": "svd"}
        found[decay] = weights(train_here(config, tmp_path / f"run-{decay}"), "01-next")
    start = vectors_of(dataset)
    pulled = found[0.0][ITEMS] - found[0.5][ITEMS]
    torch.testing.assert_close(pulled, 0.01 * 0.5 * start, atol=1e-6, rtol=1e-4)
    differ = {name for name, value in found[0.0].items() if not torch.equal(value, found[0.5][name])}
    assert differ == {ITEMS, "backbone.conv_weight", "heads.next.weight"}


def given_file(dataset, path, *, items=None, projection=None, noise=0.0, extra=0):
    """Write vectors of 20 numbers that follow linearly from the items' co-occurrence, as Parquet; `extra` of items that are not known."""
    start = vectors_of(dataset).double()
    projection = torch.randn(8, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if projection is None else projection
    vectors = start @ projection + noise * torch.randn(len(start), projection.shape[1], generator=torch.Generator().manual_seed(2)).double()
    chosen = np.arange(FIRST_ITEM, len(start)) if items is None else np.asarray(items)
    names = dataset.vocabulary("items")["item"].to_pylist()
    ids = [names[item] for item in chosen] + [f"other {item}" for item in range(extra)]
    rows = [*vectors[chosen].tolist(), *[[0.0] * projection.shape[1]] * extra]
    pq.write_table(pa.table({"item": ids, "vector": rows}), path)
    return str(path)


def test_given_vectors_are_mapped_to_where_similar_items_are(dataset, tmp_path) -> None:
    """They hold what the co-occurrence holds, turned and widened: the map finds it, and gives it to items that nobody took too."""
    start = vectors_of(dataset)
    known = trained_items(dataset)
    given = read_item_vectors(given_file(dataset, tmp_path / "v.parquet", extra=3), dataset)
    found, facts = given_vectors(given, start, uri="v")
    assert facts == {"items": dataset.info.items - 2, "given": dataset.info.items - 2, "share": 1.0, "unknown": 3, "width": 20,
                     "learned_from": len(known[known >= FIRST_ITEM]), "explained": facts["explained"]}  # fmt: skip
    assert facts["explained"] > 0.99
    known = torch.from_numpy(known[known >= FIRST_ITEM])
    assert (torch.nn.functional.cosine_similarity(found[known], start[known]) > 0.99).all()
    assert float(found[FIRST_ITEM:].std()) == pytest.approx(SCALE, rel=1e-3)
    assert torch.equal(found[:FIRST_ITEM], start[:FIRST_ITEM])


def test_items_without_a_given_vector_keep_that_of_co_occurrence(dataset, tmp_path) -> None:
    start, known = vectors_of(dataset), trained_items(dataset)
    some = known[known >= FIRST_ITEM][::2]
    new = start.clone()
    new[some[0]] = 0  # as of an item that nobody took
    given = read_item_vectors(given_file(dataset, tmp_path / "v.parquet", items=some), dataset)
    found, facts = given_vectors(given, new, uri="v")
    others = np.setdiff1d(np.arange(len(start)), some)
    assert torch.equal(found[others], new[others])
    assert facts["given"] == len(some)
    assert facts["learned_from"] == len(some) - 1
    assert float(torch.nn.functional.cosine_similarity(found[some[0]], start[some[0]], dim=0)) > 0.9
    with pytest.raises(DataError, match=r"none of its .* vectors is of an item that the first task's training users took"):
        given_vectors(given, torch.zeros_like(start), uri="v")


def test_a_run_starts_from_given_vectors_and_notes_how_many(alone: None, dataset, tmp_path) -> None:
    uri = given_file(dataset, tmp_path / "v.parquet", extra=2)
    config = settings(dataset.uri, tasks=("next",), max_steps=1)
    config["model"] = {**config["model"], "item_init": {"file": uri}}
    run = train_here(config, tmp_path / "run")
    wanted, facts = given_vectors(read_item_vectors(uri, dataset), vectors_of(dataset), uri=uri)
    assert float((weights(run, "01-next")[ITEMS] - wanted).abs().max()) <= 0.0101  # one step of Adam at 0.01
    noted = json.loads((run / "item_vectors.json").read_text())
    assert noted == {"sha256": io.sha256(uri), "tasks": {"next": facts}}
    # a finished first task needs the file no more, wherever it is said to be
    config["tasks"], config["model"]["item_init"] = ["next"], {"file": str(tmp_path / "moved.parquet")}
    before = weights(run, "01-next")
    assert all(torch.equal(value, before[name]) for name, value in weights(train_here(config, run), "01-next").items())


def test_a_run_begins_with_another_ones_stage_where_both_have_the_same_vectors(alone: None, dataset, tmp_path) -> None:
    uri = given_file(dataset, tmp_path / "v.parquet")
    config = settings(dataset.uri, tasks=("next", "likes"), max_steps=1)
    config["model"] = {**config["model"], "item_init": {"file": uri}}
    given = train_here(config, tmp_path / "given")
    other = {**config, "tasks": ["next", "age"]}
    run = train_here(other, tmp_path / "run", begins_with=str(given))
    assert json.loads((run / "item_vectors.json").read_text()) == json.loads((given / "item_vectors.json").read_text())
    assert weights(run, "01-next")[ITEMS].equal(weights(given, "01-next")[ITEMS])
    given_file(dataset, tmp_path / "v.parquet", noise=1.0)
    with pytest.raises(RunError, match="given: began with other item vectors than"):
        train_here(other, tmp_path / "third", begins_with=str(given))
    assert not (tmp_path / "third").exists()
    config["model"] = {**config["model"], "item_init": "uniform"}
    with pytest.raises(RunError, match=r"no stage of it is one of this run: model\.item_init"):
        train_here(config, tmp_path / "third", begins_with=str(given))


def test_given_vectors_that_are_none_are_refused_before_anything_begins(alone: None, dataset, tmp_path) -> None:
    pq.write_table(pa.table({"id": ["i1"], "vector": [[1.0]]}), tmp_path / "v.parquet")
    (tmp_path / "folder").mkdir()
    for file, said in (
        ("v.parquet", "has no column 'item'"),
        ("folder", "is a folder without item-vectors.json"),
        ("none.parquet", "none.parquet: no such file"),
    ):
        config = settings(dataset.uri, tasks=("next",), max_steps=1)
        config["model"] = {**config["model"], "item_init": {"file": str(tmp_path / file)}}
        with pytest.raises(DataError, match=said):
            train_here(config, tmp_path / f"run-{file}")
        assert not list((tmp_path / f"run-{file}").glob("stages/*/model.safetensors"))


@pytest.mark.parametrize("value", ["sdv", {"fil": "x"}, {"file": 3}, {"file": ""}, {"file": "a", "x": 1}, 5])
def test_an_item_init_that_is_none_has_one_message(value) -> None:
    with pytest.raises(ConfigError) as error:
        make_config({"dataset": "d", "model": {"item_init": value}}, where="here")
    assert str(error.value).startswith("here: model.item_init: expected uniform, svd, or {file: VECTORS} with the path")
    assert "\n" not in str(error.value)
