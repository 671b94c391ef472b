"""`dist-teracon cold-start`: recommendation in a task that the model never saw, to users with many, few or no items in it.

Each user's last label of the task is held out, the others are trained on; users with fewer than two of these are cold. NeuMF is fitted on
the model's frozen vectors, on random vectors of the same width, and with user vectors of its own to learn, beside popularity. The held-out
label is ranked among 19 and 99 drawn ones and among all.

Legend: U users, D numbers of a vector, Y labels, T users that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.console import Log, no_log
from dist_teracon.data import ragged
from dist_teracon.data.dataset import Labels
from dist_teracon.data.open import open_dataset
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.evaluate.metrics import Outcomes, hit
from dist_teracon.evaluate.scorer import excludes_seen
from dist_teracon.hashing import mix64, stable_hash
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.neumf import Pairs, fit, scores_of
from dist_teracon.inference.probe import kind_of, without_features
from dist_teracon.inference.sources import of_dataset

CUTOFFS = (1, 5, 10)
SAMPLED = (19, 99)
COLD_BELOW = 2
GROUPS = ("all", "warm", "cold")
DRAWS = 300
_VALIDATION = 0.1
_LEAST_USERS = 20
_USERS_AT_ONCE = 1024

ScoresOf = Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Interactions:
    """A task's labels by user, the last one held out.

    Attributes:
        pairs: What is trained on.
        held: int64 [U], the held-out label of each user.
        trained: int64 [U], how many labels of each user are trained on.
        left_out: Ragged by user (values, offsets): labels that are not ranked for the user, as they are known to be taken.
        validation: Users whose held-out label chooses the epoch; the others are scored.
        scored: int64 [T], the users who are scored.
        hashes: uint64 [U].
    """

    pairs: Pairs
    held: NDArray[np.int64]
    trained: NDArray[np.int64]
    left_out: tuple[NDArray[np.int64], NDArray[np.int64]]
    validation: NDArray[np.int64]
    scored: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def held_in(self, lists: tuple[NDArray[np.int64], NDArray[np.int64]]) -> int:
        """Return how many scored users' held-out labels are in their own one of some lists, ragged by user."""
        values, offsets = lists
        row = np.repeat(np.arange(len(self.held)), np.diff(offsets))
        return len(np.intersect1d(row[values == self.held[row]], self.scored))

    def group(self, name: str) -> NDArray[np.bool_]:
        """Return which of the scored users a group has."""
        trained = self.trained[self.scored]
        return np.ones(len(trained), bool) if name == "all" else (trained < COLD_BELOW) == (name == "cold")


def hold_out(
    values: NDArray[np.int64], offsets: NDArray[np.int64], hashes: NDArray[np.uint64], labels: int, *,
    seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None, users: int, seed: int,
) -> Interactions:  # fmt: skip
    """Hold out each user's last label.

    Args:
        values, offsets: Ragged by user: labels in their order, one at least a user; a label that comes again counts once.
        hashes: Of the users.
        labels: Y.
        seen: Ragged by user: labels that are not to be ranked, as they stand in the user's history.
        users: How many are scored at most, those of least hash.
        seed: Of the choice of validation users.

    Raises:
        DataError: too few users to learn from or to score.
    """
    values, offsets = ragged.distinct(values, offsets)
    last = np.zeros(len(values), dtype=bool)
    last[offsets[1:] - 1] = True
    trained = np.diff(offsets) - 1
    row = np.repeat(np.arange(len(trained)), trained)
    pairs = Pairs(row, values[~last], len(trained), labels)
    known = (values[~last], ragged.offsets_of(trained))
    if seen is not None:
        known = _beside(known, seen)
    place = mix64(hashes, key=stable_hash(f"cold-start:{seed}")).astype(np.float64) / 2.0**64
    order = np.argsort(place, kind="stable")
    validating = order[place[order] < _VALIDATION]
    scored = order[place[order] >= _VALIDATION][:users]
    if len(np.unique(row)) < _LEAST_USERS or len(validating) < _LEAST_USERS // 4 or len(scored) < _LEAST_USERS:
        raise DataError(
            f"cold-start: {len(np.unique(row))} users with labels to train on, {len(validating)} to choose the epoch and {len(scored)} to "
            f"score; expected {_LEAST_USERS}, {_LEAST_USERS // 4} and {_LEAST_USERS} at least"
        )
    return Interactions(pairs, values[last], trained, known, validating, np.sort(scored), hashes)


def _beside(
    one: tuple[NDArray[np.int64], NDArray[np.int64]], other: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Return both lists of each user in a row."""
    lengths = np.diff(one[1]) + np.diff(other[1])
    row = np.concatenate([np.repeat(np.arange(len(lengths)), np.diff(part[1])) for part in (one, other)])
    return np.concatenate([one[0], other[0]])[np.argsort(row, kind="stable")], ragged.offsets_of(lengths)


class Ranking:
    """Ranks held-out labels of some users: among all labels, and among drawn ones that are the same for every system.

    Args:
        found: The task's labels by user.
        users: Whom.
        seed: Of the drawn labels.
    """

    def __init__(self, found: Interactions, users: NDArray[np.int64], *, seed: int) -> None:
        self._found, self._users = found, users
        self.drawn = np.stack([self._draw(user, seed) for user in users.tolist()])

    def hits(self, scores: ScoresOf) -> NDArray[np.float64]:
        """Return the chance that the held-out label is among the first k: float64 [T, protocols, cutoffs], ties in random order."""
        parts = []
        for first in range(0, len(self._users), _USERS_AT_ONCE):
            users = self._users[first : first + _USERS_AT_ONCE]
            logits = scores(users).float().clone()
            held = torch.from_numpy(self._found.held[users])
            own = logits.gather(1, held[:, None])
            values, offsets = self._found.left_out
            rows = np.repeat(np.arange(len(users)), np.diff(offsets)[users])
            left_out = ragged.take(values, offsets, users)[0]
            logits[torch.from_numpy(rows), torch.from_numpy(left_out)] = -torch.inf
            logits.scatter_(1, held[:, None], own)
            drawn = torch.from_numpy(self.drawn[first : first + _USERS_AT_ONCE])
            among = logits.gather(1, drawn.clamp_min(0)).masked_fill(drawn < 0, -torch.inf)
            parts.append(np.stack([*(_chances(own, among[:, :count]) for count in SAMPLED), _chances(own, logits, itself=1)], axis=1))
        return np.concatenate(parts)

    def _draw(self, user: int, seed: int) -> NDArray[np.int64]:
        """Return labels that a user is not known to have taken, −1 where there are no more."""
        values, offsets = self._found.left_out
        taken = np.append(values[offsets[user] : offsets[user + 1]], self._found.held[user])
        generator = np.random.default_rng([seed, int(self._found.hashes[user])])
        labels = self._found.pairs.num_labels
        # a few more than are needed; all labels, where there are not many
        most = SAMPLED[-1]
        some = generator.integers(0, labels, 4 * (most + len(taken)))
        _, first = np.unique(some, return_index=True)
        some = some[np.sort(first)]
        some = some[~np.isin(some, taken)]
        if len(some) < most:
            some = generator.permutation(labels)
            some = some[~np.isin(some, taken)]
        drawn = np.full(most, -1, dtype=np.int64)
        drawn[: min(most, len(some))] = some[:most]
        return drawn


def _chances(own: Tensor, others: Tensor, *, itself: int = 0) -> NDArray[np.float64]:
    """Return [·, cutoffs] from the score of the held-out label and those of others, it among them or not."""
    greater, equal = (others > own).sum(dim=1), (others == own).sum(dim=1) - itself
    counted = Outcomes(np.zeros(len(own), np.int64), greater.numpy(), equal.numpy())
    return np.stack([hit(counted, k) for k in CUTOFFS], axis=1)


@dataclass(frozen=True)
class System:
    """What recommends, and how well: `hits` float64 [T, protocols, cutoffs]."""

    name: str
    hits: NDArray[np.float64] = field(repr=False)


PROTOCOLS = (*(f"1+{count}" for count in SAMPLED), "all labels")


@dataclass(frozen=True)
class ColdStart:
    """What was found.

    Attributes:
        target: The task.
        labels: Y.
        users: Scored users by group.
        unseen: Held-out labels of scored users that nobody has in training.
        systems: The model's vectors first, then what stands beside them.
        own: How many of the systems are the model's vectors.
        groups: Which scored users each group has.
    """

    target: str
    labels: int
    users: dict[str, int]
    unseen: int
    systems: list[System]
    own: int
    groups: dict[str, NDArray[np.bool_]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the scores with intervals of 95 per cent as JSON values."""
        tables = {group: self._scores(mask) for group, mask in self.groups.items() if mask.any()}
        return {
            "target": self.target, "labels": self.labels, "users": self.users, "unseen_targets": self.unseen, "cold_below": COLD_BELOW,
            "protocols": list(PROTOCOLS), "cutoffs": list(CUTOFFS), "vectors": [system.name for system in self.systems[: self.own]],
            "scores": tables,
        }  # fmt: skip

    def _scores(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """Return by system and protocol the hit rates of a group, with intervals and differences to the best system beside the model."""
        draws = _draws(int(mask.sum()))
        means = {system.name: system.hits[mask].mean(axis=0) for system in self.systems}
        drawn = {system.name: np.tensordot(draws, system.hits[mask], axes=1) for system in self.systems}
        others = [system.name for system in self.systems[self.own :]]
        table: dict[str, Any] = {}
        for place, system in enumerate(self.systems):
            entry: dict[str, Any] = {}
            table[system.name] = entry
            for number, protocol in enumerate(PROTOCOLS):
                best = max(others, key=lambda name: means[name][number, -1])
                for column, cutoff in enumerate(CUTOFFS):
                    own = drawn[system.name][:, number, column]
                    value: dict[str, Any] = {"score": float(means[system.name][number, column]), "interval": _interval(own)}
                    if place < self.own:
                        gain = float(means[system.name][number, column] - means[best][number, column])
                        value |= {"to": best, "gain": gain, "gain_interval": _interval(own - drawn[best][:, number, column])}
                    entry.setdefault(protocol, {})[f"hr@{cutoff}"] = value
        return table

    def lines(self) -> list[str]:
        """Return tables for people."""
        found = self.to_json()
        counts = ", ".join(f"{self.users[group]} {group}" for group in GROUPS[1:])
        lines = [
            f"{self.target}: {self.labels} labels; {self.users['all']} users scored ({counts}: fewer than {COLD_BELOW} labels to train on)"
        ]
        if self.unseen:
            lines.append(f"{self.unseen} held-out labels are of nobody in training")
        width = max(len(system.name) for system in self.systems)
        # of few labels all are drawn
        heads = [*(f"1+{min(count, self.labels - 1)}" for count in SAMPLED), PROTOCOLS[-1]]
        if self.labels - 1 < SAMPLED[-1]:
            lines.append(f"there are {self.labels - 1} labels beside the held-out one, so up to {SAMPLED[-1]} drawn ones are all of them")
        for group, table in found["scores"].items():
            lines += ["", f"{group} users{'':{max(0, width - len(group) - 6)}}  " + "  ".join(f"{head:^17}" for head in heads)]
            lines.append(
                f"{'HR@':>{width}}  " + "  ".join("  ".join(f"{cutoff:>5}" for cutoff in CUTOFFS) + "  " for _ in PROTOCOLS).rstrip()
            )
            for name, entry in table.items():
                cells = ["  ".join(f"{entry[protocol][f'hr@{cutoff}']['score']:.3f}" for cutoff in CUTOFFS) for protocol in PROTOCOLS]
                lines.append(f"{name:{width}}  " + "    ".join(cells))
            for system in self.systems[: self.own]:
                value = table[system.name]["all labels"]["hr@10"]
                low, high = value["gain_interval"]
                lines.append(f"HR@10 of all labels, {system.name}: {value['gain']:+.4f} [{low:+.4f}, {high:+.4f}] to {value['to']}")
        return lines


def _draws(users: int) -> NDArray[np.float64]:
    """Return how often each user is in each draw of the bootstrap, as shares [draws, users]."""
    generator = np.random.default_rng(0)
    return generator.multinomial(users, np.full(users, 1 / users), size=DRAWS) / users


def _interval(draws: NDArray[np.float64]) -> list[float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def cold_start(
    model: PretrainedModel, data: str, target: str, *,
    tasks: Sequence[str] = ("shared",), users: int = 20_000, seed: int = 0, log: Log = no_log,
) -> ColdStart:  # fmt: skip
    """Compare recommendation from a model's frozen vectors with that from others, on warm and on cold users.

    Args:
        model: The model.
        data: The data set, the model's own or another with the same items.
        target: An item task of it that the model has not learned.
        tasks: Whose vectors, as of `probe`.
        users: How many are scored at most.
        seed: Of users, drawn labels and networks.
        log: Takes a line for a person.

    Raises:
        ConfigError: the model has learned the task, or it ranks no labels.
        DataError: no such task, too few users, or vectors that are not finite.
    """
    if seed < 0:
        raise ConfigError(f"--seed: expected 0 or more, got {seed}")
    dataset = open_dataset(data, log=log)
    task = dataset.info.task(target)
    if target in model.tasks:
        raise ConfigError(
            f"--target {target}: the model has learned it, and with it labels that are held out here; take a stage before it (--stage), or "
            "a run that was trained on the other tasks"
        )
    if not task.ranks_labels or task.predicts_next:
        raise ConfigError(f"--target {target}: expected a task whose labels are recommended (kind item), got one of kind {task.kind}")
    kinds = {name: kind_of(model, name) for name in tasks}
    source = of_dataset(model, data, log=log)
    for note in source.notes:
        log(note)
    values, counts, hashes, seen, unknown = [], [], [], [], 0
    vectors: dict[str, list[NDArray[np.float32]]] = {name: [] for name in kinds}
    without = excludes_seen(dataset.info, target, model.config.evaluate.exclude_seen)
    label_of = dataset.label_of_item(target) if without else None
    closed, told = dataset.info.inputs.closed_to([target]), log
    for shard in range(dataset.info.shards):
        labels, found = dataset.labels(target, shard), dataset.shard(shard)
        of_people, number, last = in_a_row(labels, found.user_hash[labels.users])
        people = labels.users[last]
        values.append(of_people)
        counts.append(number)
        hashes.append(found.user_hash[people])
        if label_of is not None:
            seen.append(_labels_seen(found.values, found.offsets, dataset.earlier_labels(target, shard), people, label_of))
        (histories,) = without_features(model, [source.histories(shard)], closed, log=told)
        told = no_log  # once
        unknown += int(histories.strange[people].sum())
        for name, kind in kinds.items():
            for first in range(0, len(people), 512):
                rows = people[first : first + 512].tolist()
                vectors[name].append(_finite(model.vectors(histories.of(rows), kind).float().cpu().numpy(), name))
    if unknown:
        log(f"{unknown} events of these users are of items that the model does not know; it reads them as unseen")
    known = (np.concatenate([part[0] for part in seen]), ragged.offsets_of(np.concatenate([part[1] for part in seen]))) if seen else None
    interactions = hold_out(
        np.concatenate(values), ragged.offsets_of(np.concatenate(counts)), np.concatenate(hashes), task.labels,
        seen=known, users=users, seed=seed,
    )  # fmt: skip
    if known is not None and (own := interactions.held_in(known)):
        log(f"{target}: the held-out label of {own} scored users is in their own history, whose other items are not ranked")
    return compare({name: np.concatenate(parts) for name, parts in vectors.items()}, interactions, target=target, seed=seed, log=log)


def in_a_row(labels: Labels, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lay the labels of a user's rows behind one another: under a split by time a user has a row for each period, in their order.

    Args:
        labels: Of a shard.
        hashes: Of the rows' users.

    Returns:
        int64: the labels, user by user; how many each user has; the last of each user's rows, of which history and vector are.
    """
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    user = np.argsort(np.argsort(first))[inverse]  # numbered in the order of their first rows
    order = np.argsort(user, kind="stable")
    values, _ = ragged.take(labels.values.astype(np.int64), labels.offsets, order)
    return values, np.bincount(user, weights=labels.counts).astype(np.int64), order[np.cumsum(np.bincount(user)) - 1]


def _finite(vectors: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(vectors).all():  # nothing is greater than NaN, so a held-out label would seem to be first
        raise DataError(f"cold-start: vectors '{name}' have numbers that are not finite; the run is broken")
    return vectors


def _labels_seen(
    values: NDArray[Any], offsets: NDArray[np.int64], earlier: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    users: NDArray[np.int64], label_of: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Return the labels that are items of users' histories, or of what is known before these, and how many each user has."""
    items, ends = ragged.take(values, offsets, users)
    labels, ends = ragged.keep(label_of[items], ends, label_of[items] >= 0)
    if earlier is not None:
        labels, ends = ragged.side_by_side((labels, ends), ragged.take(*earlier, users))
    return labels.astype(np.int64), np.diff(ends)


def compare(
    vectors: dict[str, NDArray[np.float32]], found: Interactions, *, target: str, seed: int, log: Log = no_log
) -> ColdStart:  # fmt: skip
    """Fit NeuMF on vectors [U, D] by name and on what stands beside them, and score all on the same users and drawn labels."""
    validation, ranking = Ranking(found, found.validation, seed=seed), Ranking(found, found.scored, seed=seed)
    place = PROTOCOLS.index("1+99"), CUTOFFS.index(10)

    def score(scores: ScoresOf) -> float:
        return float(validation.hits(scores)[:, place[0], place[1]].mean())

    width = max(part.shape[1] for part in vectors.values())
    random = np.random.default_rng(seed).standard_normal((found.pairs.num_users, width)).astype(np.float32)
    systems = []
    for name, part in {**vectors, "random vectors": random, "learned vectors": None}.items():
        log(f"{target}: NeuMF on {name}")
        systems.append(System(name, ranking.hits(scores_of(fit(part, found.pairs, score, seed=seed)))))
    counts = np.bincount(found.pairs.labels, minlength=found.pairs.num_labels)
    popular = torch.from_numpy(counts.astype(np.float32))
    systems.append(System("popularity", ranking.hits(lambda users: popular.repeat(len(users), 1))))
    groups = {name: found.group(name) for name in GROUPS}
    unseen = int((counts[found.held[found.scored]] == 0).sum())
    sizes = {name: int(mask.sum()) for name, mask in groups.items()}
    return ColdStart(target, found.pairs.num_labels, sizes, unseen, systems, len(vectors), groups)
