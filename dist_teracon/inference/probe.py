"""`dist-teracon probe`: how well frozen vectors tell labels that the model never saw, beside features that cost nothing.

One fixed protocol for all features, close to that of the RecSys Challenge of 2025: a linear layer and a small network on standardised
features, a few epochs, of both the epoch with the best validation score kept, one score on test users. Intervals are bootstraps over test
users, the same draws for all features.

Legend: U users, D features, Y classes, V items.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedRows
from dist_teracon.engine.eager_adam import make_adam
from dist_teracon.errors import ConfigError, DataError, TeraconError
from dist_teracon.evaluate.baselines import SvdFeatures
from dist_teracon.evaluate.candidates import outcomes
from dist_teracon.evaluate.metrics import Metric, Outcomes, parse_metric
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.labels_file import UserLabels
from dist_teracon.inference.model import SHARED, PretrainedModel
from dist_teracon.inference.sources import UserSource

Features = NDArray[np.float32]

# The protocol.
HIDDEN, DROPOUT, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 256, 0.3, 10, 256, 1e-3, 1e-2
COUNTED_ITEMS = 256
DRAWS = 300
_LEAST_USERS = 20


@dataclass(frozen=True)
class ProbeScore:
    """The score of features.

    Attributes:
        name: What they are.
        score: On test users.
        interval: Of 95 per cent.
        draws: The scores of the bootstrap's draws, in one order for all features.
    """

    name: str
    score: float
    interval: tuple[float, float]
    draws: NDArray[np.float64] = field(repr=False)

    def difference(self, other: ProbeScore) -> tuple[float, float, float]:
        """Return by how much the score is above another's, with the paired interval of 95 per cent."""
        low, high = np.percentile(self.draws - other.draws, [2.5, 97.5])
        return self.score - other.score, float(low), float(high)


class Probe:
    """A linear layer or a small network on frozen features, fitted on training users; validation users choose, the layer of equals.

    Args:
        features_UD: Of all users.
        labels: Their labels.
        metric: Chooses the epoch, by its score on validation users.
        seed: Of initial values, batches and dropout.
    """

    def __init__(self, features_UD: Features, labels: UserLabels, metric: Metric, *, seed: int = 0) -> None:
        train = labels.split == 0
        self._mean, self._scale = features_UD[train].mean(axis=0), features_UD[train].std(axis=0)
        self._scale[self._scale < 1e-6] = 1.0
        inputs, targets = self._inputs(features_UD[train]), torch.from_numpy(labels.labels[train])
        held, best = labels.split == 1, -np.inf
        for hidden in (0, HIDDEN):
            generator = torch.Generator().manual_seed(seed)
            self._network = _network(inputs.shape[1], len(labels.classes), generator, hidden=hidden)
            if hidden == 0:
                kept = self._network
            optimiser = make_adam(torch.optim.AdamW, self._network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for _ in range(EPOCHS):
                self._network.train()
                for chosen in torch.randperm(len(targets), generator=generator).split(BATCH):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(self._network(inputs[chosen]), targets[chosen]).backward()
                    optimiser.step()
                score = metric.score(self.outcomes(features_UD[held], labels.labels[held]))
                if score is not None and score > best:
                    best, kept = score, copy.deepcopy(self._network)
        self._network = kept.eval()

    @torch.no_grad()
    def outcomes(self, features_UD: Features, labels: NDArray[np.int64]) -> Outcomes:
        """Return what metrics read, of some users."""
        self._network.eval()
        logits = torch.cat([self._network(part) for part in self._inputs(features_UD).split(8192)])
        return outcomes(logits, torch.from_numpy(labels), keep_logits=True)

    def _inputs(self, features_UD: Features) -> torch.Tensor:
        return torch.from_numpy((features_UD - self._mean) / self._scale)


def _network(inputs: int, classes: int, generator: torch.Generator, *, hidden: int) -> nn.Sequential:
    """Return a linear layer, alone or behind two hidden ones with LayerNorm and dropout; draws follow from the generator alone."""
    layers: list[nn.Module] = []
    for width in (inputs, hidden) if hidden else ():
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), _Dropout(generator)]
    network = nn.Sequential(*layers, nn.Linear(hidden or inputs, classes))
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                bound = 1 / layer.in_features**0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
    return network


class _Dropout(nn.Module):
    """Dropout whose draws come from a generator of its own."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape, generator=self._generator) >= DROPOUT) / (1 - DROPOUT)

    def __deepcopy__(self, memo: object) -> _Dropout:
        return self  # generators cannot be copied, and nothing here changes


def default_metric(classes: int, name: str | None = None) -> Metric:
    """Return the metric of a probe: by default AUROC for two classes, else accuracy.

    Raises:
        ConfigError: an unknown metric, or one that is not for classes.
    """
    try:
        metric = parse_metric(name or ("auroc" if classes == 2 else "accuracy"))
    except ValueError as error:
        raise ConfigError(f"--metric: {error}") from None
    if metric.ranks_labels or not metric.higher_is_better:
        raise ConfigError(f"--metric: expected accuracy, macro-f1 or auroc, got '{name}'")
    return metric


def score_features(name: str, features_UD: Features, labels: UserLabels, metric: Metric, *, seed: int = 0) -> ProbeScore:
    """Return the probe's score of some features on the test users.

    Raises:
        DataError: too few users, or the metric is not defined on them.
    """
    check_sizes(labels)
    probe, test = Probe(features_UD, labels, metric, seed=seed), labels.split == 2
    return bootstrapped(name, probe.outcomes(features_UD[test], labels.labels[test]), metric, seed=seed)


def check_sizes(labels: UserLabels) -> None:
    """Raise DataError where there are too few users to learn from, or to score."""
    sizes = np.bincount(labels.split, minlength=3)
    if sizes.min() < _LEAST_USERS // 4 or sizes.sum() < 4 * _LEAST_USERS:
        raise DataError(
            f"labels: {sizes[0]} training, {sizes[1]} validation and {sizes[2]} test users are known to the data; too few for a probe "
            f"(at least {4 * _LEAST_USERS} in all); are the user ids those of the data?"
        )


def bootstrapped(name: str, found: Outcomes, metric: Metric, *, seed: int) -> ProbeScore:
    """Return a score with its interval over users."""
    score = metric.score(found)
    if score is None:
        raise DataError(f"labels: '{metric.name}' is not defined on the test users; do they have one class alone?")
    generator, draws = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        chosen = generator.integers(0, len(found.labels), len(found.labels))
        drawn = Outcomes(found.labels[chosen], found.greater[chosen], found.equal[chosen], found.class_scores[chosen])
        value = metric.score(drawn)
        draws.append(score if value is None else value)
    low, high = np.percentile(draws, [2.5, 97.5])
    return ProbeScore(name, score, (float(low), float(high)), np.array(draws))


def labelled_histories(source: UserSource, labels: UserLabels) -> tuple[list[Histories], UserLabels, int]:
    """Return the histories of the labelled users, part by part, their labels in that order, and how many labels have no user.

    Raises:
        DataError: no labelled user is in the source.
    """
    wanted, parts, names = set(labels.users), [], []
    for part in range(source.parts):
        users = source.users(part).to_pylist()
        rows = [row for row, user in enumerate(users) if user in wanted]
        if rows:
            parts.append(source.histories(part).take(rows))
            names += [users[row] for row in rows]
    found, places = labels.of(names)
    if not names:
        raise DataError(
            f"labels: none of {len(labels.users)} users is in the data (as '{labels.users[0]}'); are the user ids those of the data?"
        )
    order = np.argsort(places)
    kept = UserLabels(names, found.labels[order], found.classes, found.split[order])
    return parts, kept, len(labels.users) - len(names)


def without_features(
    model: PretrainedModel, parts: list[Histories], closed: Collection[str], *, log: Callable[[str], None]
) -> list[Histories]:  # fmt: skip
    """Return histories without the features of users that tell what is asked of the vectors; tells which the model would have read."""
    names = [feature.name for feature in model.inputs.user]
    if names and (shut := [place for place, name in enumerate(names) if name in closed]):
        log(f"vectors are made without {', '.join(names[place] for place in shut)} of users, which the labels' task must not read")
        return [part.without_features(shut) for part in parts]
    return parts


def encoded(model: PretrainedModel, parts: list[Histories], kind: str) -> Features:
    """Return the vectors of histories, float32 [U, W]."""
    found = []
    for part in parts:
        for first in range(0, len(part), 512):
            found.append(model.vectors(part.between(first, min(first + 512, len(part))), kind).float().cpu().numpy())
    return np.concatenate(found)


def baseline_features(
    model: PretrainedModel, parts: list[Histories], labels: UserLabels, *, seed: int
) -> dict[str, Callable[[], Features]]:  # fmt: skip
    """Return features that cost no training, by name: SVD of items, event counts, and the mean of the model's item vectors."""
    values, offsets = ragged.concatenate([(part.rows.values, part.rows.offsets) for part in parts])
    if (padding := model.reader.padding) is not None:  # what fills histories up is no event
        values, offsets = ragged.keep(values, offsets, values != padding)
    rows = PackedRows(values, offsets)
    train = np.flatnonzero(labels.split == 0)
    return {
        "SVD of items": lambda: SvdFeatures.fit(values, offsets, items=model.num_items, train_users=train, seed=seed).projected,
        "event counts": lambda: _event_counts(rows, model.num_items),
        "mean of item vectors": lambda: _item_mean(rows, model.item_vectors()),
    }


def _event_counts(rows: PackedRows, items: int) -> Features:
    """Return log(1 + count) of the most frequent items and of all events, [U, at most 257]."""
    frequent = np.argsort(-np.bincount(rows.values, minlength=items), kind="stable")[:COUNTED_ITEMS]
    column = np.full(items, -1, dtype=np.int64)
    column[frequent] = np.arange(len(frequent))
    counts = np.zeros((rows.rows, len(frequent) + 1), dtype=np.float32)
    lengths = np.diff(rows.offsets)
    user, place = np.repeat(np.arange(rows.rows), lengths), column[rows.values]
    np.add.at(counts, (user[place >= 0], place[place >= 0]), 1)
    counts[:, -1] = lengths
    return np.log1p(counts)


def _item_mean(rows: PackedRows, vectors_VC: Features) -> Features:
    sums = np.zeros((rows.rows, vectors_VC.shape[1]), dtype=np.float64)
    lengths = np.diff(rows.offsets)
    for first in range(0, rows.rows, 4096):
        begin, end = rows.offsets[first], rows.offsets[min(first + 4096, rows.rows)]
        own = vectors_VC[rows.values[begin:end]].astype(np.float64)
        np.add.at(sums, np.repeat(np.arange(first, min(first + 4096, rows.rows)), lengths[first : first + 4096]), own)
    return (sums / np.maximum(1, lengths)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        metric: By which.
        users: Users by part: training, validation, test.
        classes: Names of the classes.
        unmatched: Labels whose user is not in the data.
        vectors: Scores of the model's vectors.
        baselines: Scores of the features beside them.
    """

    metric: str
    users: tuple[int, int, int]
    classes: list[str]
    unmatched: int
    vectors: list[ProbeScore]
    baselines: list[ProbeScore]

    def lines(self) -> list[str]:
        """Return a table for people."""
        train, validation, test = self.users
        best = max(self.baselines, key=lambda entry: entry.score, default=None)
        lines = [f"{len(self.classes)} classes; {train} training, {validation} validation, {test} test users; {self.metric}"]
        if self.unmatched:
            lines.append(f"{self.unmatched} labels are of users that are not in the data; left out")
        width = max(len(entry.name) for entry in [*self.vectors, *self.baselines])
        for entry in [*self.vectors, *self.baselines]:
            line = f"{entry.name:{width}}  {entry.score:.4f}  [{entry.interval[0]:.4f}, {entry.interval[1]:.4f}]"
            if best is not None and entry in self.vectors:
                gain, low, high = entry.difference(best)
                line += f"  {gain:+.4f} [{low:+.4f}, {high:+.4f}] to {best.name}"
            lines.append(line)
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""

        def entry(score: ProbeScore) -> dict[str, Any]:
            return {"score": score.score, "interval": list(score.interval)}

        return {
            "metric": self.metric,
            "users": list(self.users),
            "classes": self.classes,
            "unmatched": self.unmatched,
            "vectors": {score.name: entry(score) for score in self.vectors},
            "baselines": {score.name: entry(score) for score in self.baselines},
        }


def probe(
    model: PretrainedModel, source: UserSource, labels: UserLabels, *,
    tasks: list[str], metric: str | None = None, seed: int = 0, closed: Collection[str] = (), log: Callable[[str], None] = lambda _: None,
) -> ProbeResult:  # fmt: skip
    """Probe a model's frozen vectors, beside the baselines.

    Args:
        model: The model.
        source: Where the users' histories come from.
        labels: Labels by user.
        tasks: Whose vectors: tasks, `shared` (the model's default), `shared:mean`, `shared:open`, `shared:concat`.
        metric: Its name; AUROC for two classes and accuracy for more where None.
        seed: Of the probes.
        closed: Features of users that tell the labels; vectors are made without them, whatever their task reads.
        log: Takes lines for a person.

    Raises:
        ConfigError: an unknown task or metric.
        DataError: too few labelled users in the source.
    """
    chosen = default_metric(len(labels.classes), metric)
    kinds = {task: kind_of(model, task) for task in tasks}
    parts, known, unmatched = labelled_histories(source, labels)
    check_sizes(known)
    parts = without_features(model, parts, closed, log=log)
    vectors = [score_features(name, encoded(model, parts, kind), known, chosen, seed=seed) for name, kind in kinds.items()]
    baselines = []
    for name, make in baseline_features(model, parts, known, seed=seed).items():
        try:
            baselines.append(score_features(name, make(), known, chosen, seed=seed))
        except TeraconError as error:
            log(f"{name}: left out ({error})")
    train, validation, test = np.bincount(known.split, minlength=3).tolist()
    return ProbeResult(chosen.name, (train, validation, test), known.classes, unmatched, vectors, baselines)


def kind_of(model: PretrainedModel, task: str) -> str:
    """Return what `model.vectors` calls a kind of vectors: a task's, `shared`, or `shared:open` and its like.

    Raises:
        ConfigError: there is none.
    """
    name, colon, way = task.partition(":")
    if colon and name == SHARED and way in ("mean", "open", "concat"):
        return model.kind_of_vector(SHARED, way)  # type: ignore[arg-type]
    return model.kind_of_vector(task)


def every_vector(model: PretrainedModel) -> list[str]:
    """Return all kinds of vectors that a model has, for `--task all`."""
    ways = ("mean", "open", "concat") if model.shares_backbone else ("concat",)
    return [*(f"{SHARED}:{way}" for way in ways), *model.tasks]
