"""Cold start: what is held out, ranks by hand, and vectors that tell what users take against those that do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dist_teracon.cli import main
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset, Labels
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.hashing import stable_hash
from dist_teracon.inference.cold_start import PROTOCOLS, Ranking, cold_start, compare, hold_out, in_a_row
from dist_teracon.inference.neumf import FACTORS, NeuMF, Pairs, scores_of
from dist_teracon.report.html import render
from dist_teracon.report.run_data import read_run

LABELS = 30


def made(users=400, seed=0):
    """Users of five tastes with one to five labels of their taste's six; half of them in one label alone."""
    generator = np.random.default_rng(seed)
    taste = np.arange(users) % 5
    lists = [6 * taste[user] + generator.permutation(6)[: 1 + generator.integers(0, 5) * (user % 2)] for user in range(users)]
    hashes = np.array([stable_hash(f"user {user}") for user in range(users)], dtype=np.uint64)
    return taste, np.concatenate(lists), ragged.offsets_of([len(part) for part in lists]), hashes


def test_the_last_label_is_held_out_and_a_repeated_one_counts_once():
    _, values, offsets, hashes = made()
    values, offsets = np.insert(values, offsets[1], values[0]), offsets + (np.arange(len(offsets)) > 0)  # user 0 takes it twice
    found = hold_out(values, offsets, hashes, LABELS, users=10**6, seed=0)
    for user in (0, 1, 3, 399):
        own = list(dict.fromkeys(values[offsets[user] : offsets[user + 1]].tolist()))
        assert found.held[user] == own[-1]
        assert found.pairs.labels[found.pairs.users == user].tolist() == own[:-1]
        assert found.trained[user] == len(own) - 1
    assert not set(found.validation) & set(found.scored)
    assert len(found.validation) + len(found.scored) == 400
    assert 20 < len(found.validation) < 65
    assert (found.trained[found.scored][found.group("cold")] < 2).all()
    assert (found.trained[found.scored][found.group("warm")] >= 2).all()
    with pytest.raises(DataError, match="users with labels to train on"):
        hold_out(values[:3], np.arange(4), hashes[:3], LABELS, users=10, seed=0)


def test_ranks_by_hand_without_what_the_user_took():
    """Scores fall with the label's number; ties have the mean over their orders."""
    _, values, offsets, hashes = made()
    seen = (np.zeros(400, np.int64), np.arange(401))  # everyone's history has label 0
    found = hold_out(values, offsets, hashes, LABELS, seen=seen, users=10**6, seed=0)
    assert found.held_in(seen) == (found.held[found.scored] == 0).sum() > 0
    ranking = Ranking(found, found.scored, seed=3)
    falling = torch.arange(LABELS, 0, -1).float()
    hits = ranking.hits(lambda users: falling.repeat(len(users), 1))
    equal = ranking.hits(lambda users: torch.zeros(len(users), LABELS))
    for row, user in enumerate(found.scored.tolist()):
        held, trained = found.held[user], found.pairs.labels[found.pairs.users == user]
        candidates = [label for label in range(LABELS) if label == held or (label not in trained and label != 0)]
        rank = sum(label < held for label in candidates)
        drawn = ranking.drawn[row]
        assert not set(drawn) & {held, *trained.tolist(), 0}
        assert sorted(drawn[drawn >= 0]) == [label for label in candidates if label != held]  # fewer than 99: all of them
        assert hits[row, 2].tolist() == [float(rank < k) for k in (1, 5, 10)]
        assert hits[row, 0].tolist() == [float(sum(drawn[:19] < held) - sum(drawn[:19] < 0) < k) for k in (1, 5, 10)]
        assert equal[row, 2].tolist() == pytest.approx([k / len(candidates) for k in (1, 5, 10)])
        assert equal[row, 0].tolist() == pytest.approx([k / 20 for k in (1, 5, 10)])
    again = Ranking(found, found.scored, seed=3)
    assert np.array_equal(again.drawn, ranking.drawn)


def test_rows_of_one_user_are_one_user():
    labels = Labels(np.array([2, 3, 5, 6, 9]), np.array([7, 8, 1, 9, 4, 6], np.int32), np.array([0, 2, 3, 4, 5, 6]), np.zeros(6, np.int8))
    values, counts, last = in_a_row(labels, np.array([50, 10, 50, 20, 20], np.uint64))
    assert values.tolist() == [7, 8, 9, 1, 4, 6]
    assert counts.tolist() == [3, 1, 2]
    assert labels.users[last].tolist() == [5, 3, 9]


def test_a_user_of_a_split_by_time_counts_once(tmp_path, monkeypatch):
    """Buys of the days 40 to 99 stand in three rows a user; the last one is held out, with the history before day 80."""
    from shop import make_shop_run, prepare_shop

    import dist_teracon
    from dist_teracon.inference import cold_start as module

    raw, day, start = tmp_path / "raw", 86_400, 1_600_000_000
    raw.mkdir()
    moments = {name: start + at * day for name, at in (("labels_from", 40), ("validation_from", 60), ("test_from", 80))}
    # views on each third day; a buy in each period
    rows = [f"u{user},v{(user + at) % 9},{start + at * day},view" for user in range(80) for at in range(user % 3, 100, 3)]
    rows += [f"u{user},b{(user + at) % 7},{start + at * day},buy" for user in range(80) for at in (50, 70, 90)]
    (raw / "events.csv").write_text("\n".join(["user,item,timestamp,type", *rows]) + "\n")
    (raw / "users.csv").write_text("user,club\n" + "".join(f"u{user},{user % 2}\n" for user in range(80)))
    tasks = {"club": {"kind": "profile"}, "buys": {"kind": "item", "events": {"type": "buy"}}}
    data = prepare_shop(raw, tmp_path / "data", tasks=tasks, split={"by": "time", **moments})
    run = make_shop_run(data, tmp_path / "run", tasks=["next", "club"])
    found = {}
    monkeypatch.setattr(module, "compare", lambda vectors, interactions, **_: found.update(vectors=vectors, of=interactions))
    cold_start(dist_teracon.from_pretrained(run), data, "buys")
    of = found["of"]
    assert len(of.hashes) == len(set(of.hashes.tolist())) == len(found["vectors"]["shared"]) == 80
    assert of.trained.tolist() == [2] * 80  # none of them is cold
    names = Dataset(data).vocabulary("buys")["label"].to_pylist()
    bought = {stable_hash(f"u{user}"): f"b{(user + 90) % 7}" for user in range(80)}
    assert [names[label] for label in of.held] == [bought[int(value)] for value in of.hashes]


@pytest.mark.parametrize("frozen", [True, False])
def test_all_labels_score_as_their_pairs(frozen):
    network = NeuMF(torch.randn(7, 4) if frozen else None, users=7, labels=9, seed=1)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.5)
    users, labels = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    expected = network(users.reshape(-1), labels.reshape(-1)).view(7, 9)
    torch.testing.assert_close(scores_of(network)(np.arange(7)), expected, atol=1e-5, rtol=1e-5)
    assert network.item_gmf.weight.shape == (9, FACTORS)


def test_drawn_labels_are_not_the_users_own():
    pairs = Pairs(np.repeat(np.arange(50), 5), np.tile(np.arange(5), 50), 50, 8)
    drawn = pairs.not_taken(np.repeat(np.arange(50), 40), np.random.default_rng(0))
    assert set(drawn) == {5, 6, 7}


def test_vectors_that_tell_the_taste_serve_cold_users():
    taste, values, offsets, hashes = made(600)
    vectors = np.eye(5, dtype=np.float32)[taste] + 0.1 * np.random.default_rng(1).standard_normal((600, 5)).astype(np.float32)
    result = compare({"own": vectors}, hold_out(values, offsets, hashes, LABELS, users=10**6, seed=0), target="t", seed=0)
    found = result.to_json()
    cold = found["scores"]["cold"]
    assert list(cold) == ["own", "random vectors", "learned vectors", "popularity"]
    assert cold["own"]["all labels"]["hr@10"]["score"] > 0.9
    for name in ("random vectors", "learned vectors", "popularity"):
        assert cold[name]["all labels"]["hr@10"]["interval"][1] < 0.7
    gain = cold["own"]["all labels"]["hr@10"]
    assert 0.2 < gain["gain_interval"][0] <= gain["gain"] <= gain["gain_interval"][1]
    assert found["users"]["all"] == found["users"]["warm"] + found["users"]["cold"]
    assert found["vectors"] == ["own"]


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_and_the_report_shows(shop, tmp_path, capsys):
    """The run has not learned `category`, whose labels are of what users bought."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(shop.run, run)
    out = tmp_path / "scores.json"
    assert main(["cold-start", str(run), "--target", "category", "--task", "shared", "--task", "next", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "category: 3 labels; " in said
    assert "there are 2 labels beside the held-out one, so up to 99 drawn ones are all of them" in said
    assert "popularity" in said
    value = json.loads(out.read_text())
    assert json.loads((run / "cold_start.json").read_text()) == {"category": value}
    assert (value["vectors"], value["protocols"]) == (["shared", "next"], list(PROTOCOLS))
    page = render([read_run(run)])
    assert 'id="cold-start"' in page
    assert "those of the user&#39;s own history are no candidates in next, buys<" in page  # as the shop's recipe has it
    score = value["scores"]["cold"]["shared"]["all labels"]["hr@1"]["score"]
    assert f"<td>{score:.3f} ± " in page
    gain = value["scores"]["cold"]["shared"]["all labels"]["hr@10"]
    assert f'<th scope="col">HR@10 all labels, less {gain["to"]}</th>' in page
    assert f"<td>{gain['gain']:+.3f} [" in page
    assert 'id="cold-start"' not in render([read_run(shop.run)])


@pytest.mark.parametrize(("task", "options", "said"), [("shared", {"seed": -1}, "--seed: expected 0 or more"), ("next", {}, "not finite")])
def test_what_cannot_be_compared_is_refused(shop, monkeypatch, task, options, said):
    from dist_teracon import from_pretrained

    model = from_pretrained(shop.run)
    monkeypatch.setattr(model, "vectors", lambda rows, kind: torch.full((rows.rows, 3), torch.nan))
    with pytest.raises((ConfigError, DataError), match=said):
        cold_start(model, shop.dataset, "category", tasks=[task], **options)


@pytest.mark.parametrize(
    ("target", "said"),
    [("buys", "the model has learned it"), ("next", "the model has learned it"), ("categry", "did you mean 'category'")],
)
def test_targets_that_are_none(shop, capsys, target, said):
    assert main(["cold-start", str(shop.run), "--target", target]) == 2
    assert said in capsys.readouterr().err
    assert not (shop.run / "cold_start.json").exists()


def test_a_profile_task_is_no_target(shop, model):
    from dist_teracon import from_pretrained

    with pytest.raises(ConfigError, match=r"\(kind item\), got one of kind profile"):
        cold_start(from_pretrained(shop.run, stage=2), shop.dataset, "club")
    assert Dataset(shop.dataset).info.task("club").kind == "profile"
