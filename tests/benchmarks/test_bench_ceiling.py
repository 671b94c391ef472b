"""The scores that sequences of the synthetic users allow lie between those of popularity and of the oracle."""

from __future__ import annotations

import numpy as np

from dist_teracon.bench.ceiling import _posterior, ceiling
from dist_teracon.cli import main
from dist_teracon.data.synthetic.six_tasks import _item_vectors, _stream, oracle_scores, six_tasks_v1


def test_the_ceiling_lies_between_popularity_and_the_oracle():
    users = 300
    scores = {name: hits.mean() for name, hits in ceiling(users, draws=8).items()}
    oracle, popular = (oracle_scores(six_tasks_v1(users), given=given) for given in ("user", "popularity"))
    for task in ("item-a", "profile-8", "profile-2", "profile-6"):
        assert scores[task] < 0.95 * oracle[task]
    for task in ("next", "item-a", "item-b"):
        assert scores[task] > 1.3 * popular[task]
    assert scores["profile-8"] > 0.4


def test_a_long_sequence_determines_the_user():
    items, popularity = _item_vectors()
    user = np.linspace(-1.5, 1.5, items.shape[1])
    generator, sequence = _stream(99), [0]
    for _ in range(3000):
        logits = popularity + items @ (1.5 / 4 * user + 0.75 / 4 * items[sequence[-1]])
        weights = np.cumsum(np.exp(logits))
        sequence.append(int(np.searchsorted(weights, generator.random() * weights[-1])))
    mode, precision = _posterior(np.array(sequence, dtype=np.int32), items, popularity)
    deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert deviation.max() < 0.1
    assert np.abs((mode - user) / deviation).max() < 4


def test_the_table_has_every_task(capsys):
    assert main(["bench", "ceiling", "--users", "40", "--draws", "2"]) == 0
    output = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in output.splitlines()[4:]] == [
        "| next", "| item-a", "| item-b", "| profile-8", "| profile-2", "| profile-6",
    ]  # fmt: skip
