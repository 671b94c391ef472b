"""Cold start: what is held out, ranks by hand, and vectors that tell what users take against those that do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dist_teracon.cli import main
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.hashing import stable_hash
from dist_teracon.inference.cold_start import PROTOCOLS, Ranking, compare, hold_out
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


def test_the_command_writes_and_the_report_shows(shop, tmp_path, capsys):
    """The run has not learned `category`, whose labels are of what users bought."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(shop.run, run)
    out = tmp_path / "scores.json"
    assert main(["cold-start", str(run), "--target", "category", "--task", "shared", "--task", "next", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "category: 3 labels; " in said
    assert "popularity" in said
    value = json.loads(out.read_text())
    assert json.loads((run / "cold_start.json").read_text()) == {"category": value}
    assert (value["vectors"], value["protocols"]) == (["shared", "next"], list(PROTOCOLS))
    page = render([read_run(run)])
    assert 'id="cold-start"' in page
    assert "those of the user&#39;s own history are no candidates in next, buys<" in page  # as the shop's recipe has it
    score = value["scores"]["cold"]["shared"]["all labels"]["hr@1"]["score"]
    assert f"{score:.3f}"[1:] in page
    assert 'id="cold-start"' not in render([read_run(shop.run)])


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
    from dist_teracon.inference.cold_start import cold_start

    with pytest.raises(ConfigError, match=r"\(kind item\), got one of kind profile"):
        cold_start(from_pretrained(shop.run, stage=2), shop.dataset, "club")
    assert Dataset(shop.dataset).info.task("club").kind == "profile"
