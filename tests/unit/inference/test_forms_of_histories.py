"""Histories and questions in the forms that people's programs have them, and what is told of events on the way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shop import RECIPE, make_shop_run, prepare_shop

import dist_teracon
from dist_teracon.data.schema import FIRST_ITEM
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.evaluate import evaluate
from dist_teracon.inference.export import export
from dist_teracon.inference.export_job import ExportOptions
from dist_teracon.inference.labels_file import UserLabels
from dist_teracon.inference.padded import padded_model
from dist_teracon.inference.predictions import best_labels
from dist_teracon.inference.probe import baseline_features
from dist_teracon.inference.sources import of_dataset, of_events
from dist_teracon.models.heads import Head

HISTORIES = [["p01", "p02"], ["p03"], ["p05", "p06", "p07"]]
KINDS = (
    pa.list_(pa.string_view()),
    pa.large_list(pa.large_string()),
    pa.list_view(pa.string()),
    pa.large_list_view(pa.string_view()),
    pa.list_(pa.dictionary(pa.int32(), pa.string())),
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists_of_every_type_of_arrow(model, kind):
    column = pa.array(HISTORIES, pa.list_(kind.value_type)) if pa.types.is_list(kind) else pa.array(HISTORIES, kind)
    assert np.array_equal(model.encode(column), model.encode(HISTORIES))
    assert np.array_equal(model.encode(column[1:]), model.encode(HISTORIES[1:]))


def test_blanks_around_ids_are_cut_off_as_in_preparation(model):
    blank = [[f" {item}\u00a0" for item in history] for history in HISTORIES]
    for histories in (blank, pa.array(blank)):
        assert np.array_equal(model.encode(histories), model.encode(HISTORIES))
        assert model.last_unknown == 0
    assert model.predict(HISTORIES, "next", candidates=["p09 "]).labels == [["p09"]] * 3


def test_candidates_that_are_no_labels_are_counted(model):
    found = model.predict(HISTORIES, "next", candidates=["p09", "p10", "p09", "nobody", "rare"], top=9, exclude_seen=False)
    assert [sorted(row) for row in found.labels] == [["p09", "p10"]] * 3
    assert found.unknown_candidates == 2
    assert model.predict(HISTORIES, "next", candidates=[["p09", "x"], ["p10"], ["x", "y", "p11"]]).unknown_candidates == 3
    assert model.predict(HISTORIES, "next").unknown_candidates == 0


def test_candidates_of_each_user_in_several_batches(model):
    candidates = [["p10", "p11", "p12"], ["p13", "p14"], ["p15"]]
    whole = model.predict(HISTORIES, "next", candidates=candidates)
    assert [sorted(labels) for labels in whole.labels] == candidates
    for batch in (1, 2):  # the last batch has one user
        parts = model.predict(HISTORIES, "next", candidates=candidates, batch=batch)
        assert parts.labels == whole.labels
        assert [len(row) for row in parts] == [3, 2, 1]


def test_a_frame_with_ids_of_several_kinds_and_columns_of_any(model):
    frame = pd.DataFrame(
        {
            "user": ["a", "a", 1, 1.0, "1"],
            "item": ["p02", "p01", "p03", "p04", "p05"],
            "timestamp": [1.7e9 + 2, 1.7e9 + 1, 1.7e9, 1.7e9 + 1, 1.7e9 + 2],
            "type": pd.Categorical(["view"] * 5),
            "odd": [object(), 1, "x", [2], {}],
        }
    )
    read = model.histories(frame)
    assert read.users.to_pylist() == ["1", "a"]
    assert np.array_equal(model.encode(frame), model.encode([["p03", "p04", "p05"], ["p01", "p02"]]))
    for wrong, said in (
        (frame.assign(item=[object(), 1, "x", 2, 3]), "column 'item': expected ids that are texts or whole numbers"),
        (pd.DataFrame([["a", "p01", "p02"]], columns=["user", "item", "item"]), "column 'item' stands there more than once"),
    ):
        with pytest.raises(DataError, match=said):
            model.histories(wrong)


def test_what_is_guessed_or_not_read_is_told(shop, model, tmp_path):
    table = pq.read_table(shop.events / "events.parquet")
    assert "events: no column of times; the order of the file is taken" in model.histories(table.drop_columns(["timestamp"])).notes()[0]
    (tmp_path / "events").mkdir()
    pq.write_table(table, tmp_path / "events" / "part-0.parquet")
    (tmp_path / "events" / "part-1.parquet.lz4").write_bytes(b"\0")
    notes = model.histories(str(tmp_path)).notes()
    assert "not read: events/part-1.parquet.lz4, which is neither CSV nor Parquet by its name and content" in notes
    assert not any("not read" in note for note in model.histories(table).notes())


@pytest.fixture(scope="module")
def padded(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded")
    dataset = prepare_shop(shop.events, folder / "dataset", history={**RECIPE["history"], "padding": "token"})
    return dataset, dist_teracon.from_pretrained(make_shop_run(dataset, folder / "run"))


def test_padding_is_no_event_and_no_recommendation(shop, padded, tmp_path):
    dataset, model = padded
    items = model.info.items - FIRST_ITEM - 1
    for exclude_seen, left_out in ((None, [2, 1, 3]), (False, [0, 0, 0])):
        labels = model.predict(HISTORIES, "next", top=50, exclude_seen=exclude_seen).labels
        assert not any("<padding>" in row for row in labels)
        assert [len(row) for row in labels] == [items - count for count in left_out]
    events = {}
    for uri, source_model in ((dataset, model), (shop.dataset, model)):
        source = of_dataset(source_model, uri, log=lambda _: None)
        parts = [source.histories(part) for part in range(source.parts)]
        events[uri] = {user: count for part in parts for user, count in zip(part.users.to_pylist(), part.events.tolist(), strict=True)}
        assert all((np.diff(part.rows.offsets) == model.info.length_limit).all() for part in parts)
    export(model, of_dataset(model, dataset, log=print), str(tmp_path / "out"), ExportOptions(items=True, labels=("next",)))
    for name, column in (("items", "item"), ("labels_next", "label")):
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table[column].to_pylist() == model.items.names[FIRST_ITEM:-1]
        assert len(table["vector"]) == len(table)
    assert events[dataset] == events[shop.dataset]
    assert min(events[dataset].values()) < model.info.length_limit


def test_a_program_fills_histories_up_and_knows_the_unseen_item(model, padded):
    """`padded_model` before it is exported: what is not known is unseen, and rows are filled up as `encode` fills them."""
    histories = [["p01", "nobody", "p03"], ["p05"], [f"p{place:02d}" for place in range(8)]]
    lengths = torch.tensor([3, 1, 8])
    for one in (model, padded[1]):
        items = torch.full((3, 8), one.num_items + 5)
        for row, history in enumerate(histories):
            items[row, : len(history)] = torch.tensor([one.items.index(item) for item in history])
        assert -1 in items
        vectors, logits = padded_model(one, "buys")(items, lengths)
        expected = one.encode(histories, "buys")
        np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-5)
        head = one.method.head("buys")
        np.testing.assert_allclose(logits, expected @ head.weight.detach().numpy().T + head.bias.detach().numpy(), atol=1e-4)


def test_what_fills_histories_up_is_nothing_to_a_probe(shop, model, padded):
    """Event counts, the mean of items and the SVD are those of the events alone."""
    features = []
    for one, uri in ((model, shop.dataset), (padded[1], padded[0])):
        source = of_dataset(one, uri, log=lambda _: None)
        parts = [source.histories(part) for part in range(source.parts)]
        users = [user for part in parts for user in part.users.to_pylist()]
        labels = UserLabels(users, np.zeros(len(users), np.int64), ["a", "b"], (np.arange(len(users)) % 3).astype(np.int8))
        made = baseline_features(one, parts, labels, seed=0)
        events = np.concatenate([part.events for part in parts])
        np.testing.assert_allclose(np.expm1(made["event counts"]()[:, -1]), events, rtol=1e-6)
        features.append(dict(zip(users, made["event counts"](), strict=True)))
        table, own = one.item_vectors(), parts[0].seen
        means = [table[own.values[begin:end][-8:]].mean(axis=0) for begin, end in zip(own.offsets[:-1], own.offsets[1:], strict=True)]
        np.testing.assert_allclose(made["mean of item vectors"]()[: len(means)], means, atol=1e-5)
    width = min(len(next(iter(part.values()))) for part in features) - 1
    assert all(np.array_equal(features[0][user][:width], row[:width]) for user, row in features[1].items())


def test_equal_scores_stand_in_the_order_of_labels_at_the_end_of_the_list_too():
    head = Head(4, 1000, generator=torch.Generator()).requires_grad_(False)
    head.weight.zero_()
    head.bias.zero_()
    head.bias[500], head.bias[7] = 1.0, -torch.inf
    hidden = torch.zeros(3, 4)
    found = best_labels(head, hidden, top=9, left_out=None, candidates=None, normalise=False)[0]
    assert found.tolist() == [[500, 0, 1, 2, 3, 4, 5, 6, 8]] * 3
    own = [np.arange(900, 400, -1), np.array([3, 2]), np.array([9, 500, 8, 8])]
    found = best_labels(head, hidden, top=3, left_out=None, candidates=own, normalise=False)[0]
    assert found.tolist() == [[500, 401, 402], [2, 3, -1], [500, 8, 9]]


def test_histories_of_another_model_are_refused(shop, model, padded, tmp_path):
    """Their numbers are of its items; models of one data set share theirs."""
    read = model.histories(HISTORIES)
    with pytest.raises(ConfigError, match="were read for a model of other items, columns or length"):
        padded[1].encode(read)
    other = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "run", seed=4))
    assert np.array_equal(other.encode(read), other.encode(HISTORIES))
    assert np.array_equal(dist_teracon.from_pretrained(shop.run, stage=1).encode(read.slice(1, 3), "next"),
                          dist_teracon.from_pretrained(shop.run, stage=1).encode(HISTORIES[1:], "next"))  # fmt: skip


def test_padded_and_plain_data_sets_score_the_same_in_one_model(shop, model, padded):
    dataset, padded_model = padded
    for scored in (model, padded_model):
        one, other = ([(score.task, score.values) for score in evaluate(scored, uri)] for uri in (dataset, shop.dataset))
        assert one == other


def taken(source):
    """Return by user's id the items that rankings of a source's histories leave out."""
    found = {}
    for part in range(source.parts):
        read = source.histories(part)
        for user, low, high in zip(source.users(part), read.seen.offsets[:-1], read.seen.offsets[1:], strict=True):
            found[str(user)] = {int(item) for item in read.seen.values[low:high]} - {0, 1}
    return found


@pytest.mark.parametrize("length", [8, 4])
def test_a_data_set_knows_what_was_taken_before_its_histories(shop, tmp_path, length):
    """Of a model that reads as much of a history as the data set keeps, and of one that reads less."""
    own = prepare_shop(shop.events, tmp_path / "data", history={**RECIPE["history"], "length": length})
    model = dist_teracon.from_pretrained(make_shop_run(own, tmp_path / "run"))
    of_set, of_raw = taken(of_dataset(model, shop.dataset, log=print)), taken(of_events(model, str(shop.events)))
    assert of_set and of_set == {user: of_raw[user] for user in of_set}
    assert max(map(len, of_set.values())) > 8


def test_an_evaluation_says_what_its_data_set_does_not_know(shop, tmp_path):
    free = {"history": {**RECIPE["history"], "repeats": True}, "tasks": {"buys": {**RECIPE["tasks"]["buys"], "repeats": True}}}
    own = prepare_shop(shop.events, tmp_path / "data", **free)
    model, said = dist_teracon.from_pretrained(make_shop_run(own, tmp_path / "run", tasks=["next", "buys"])), []
    evaluate(model, exclude_seen=True, log=said.append)
    assert sum("events before these are ranked" in line for line in said) == 1
    said.clear()
    evaluate(model, log=said.append)
    assert not any("are ranked" in line for line in said)
