"""The synthetic data set `six-tasks-v1`, whose true probabilities are known (docs/method.md, Synthetic data).

Its output for a given number of users never changes: a test pins the hash, so that nobody tunes the data to a method.

Shapes: `U` users, `B` users of one block, `D` latent dimensions, `V` items, `Y` labels of a task.

How the specification is read where it leaves room; each reading is the one that reproduces its check values:

- Vectors are `standard_normal` draws of the stream (rows in order); a rank permutation is `permutation(size) + 1`.
- An item or label is the first position whose cumulative weight, summed in catalogue order, exceeds `random() · total`.
- A user outside a task takes one draw of the task's stream (the one that decides it) and no more.
- Users of a profile task have one label and take no draw for the number of labels.
- Scores of the oracle and of popularity are realised scores over the labels drawn, one example a label. Popularity ranks by
  the logits b, b', b'' themselves and not by counts; item-a then scores 0.05445, which the specification, rounding twice,
  gives as .055 (and the oracle's 0.91145 for profile-2 as .912).

Weights come from matrix products, so their last bit may differ between machines or block sizes. A draw would notice only if it
fell within that last bit of one of the labels' boundaries: less than one chance in 10^5 for a whole data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.event_columns import NO_COLUMNS, EventColumns
from dist_teracon.data.prepare.tables import LabelTable, SequenceTable, Tables
from dist_teracon.data.synthetic.event_times import TYPES, draw_event_columns
from dist_teracon.errors import ConfigError, nearest
from dist_teracon.hashing import stable_hash

NAME = "six-tasks-v1"
DEFAULT_USERS = 20_000
ITEMS = 5_000
LENGTH_LIMIT = 30
SCHEME = "synthetic:"

_ENTROPY = 20261123
_LATENT = 16
_SHORTEST = 8
# Weights of a block fit in the processor's cache at this size; larger blocks are slower.
_BLOCK = 64

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class _LabelTask:
    """One row of the table in docs/method.md, Synthetic data; `stream` is the spawn key of its random stream."""

    name: str
    kind: Literal["item", "profile"]
    stream: int
    share: float
    labels: int
    most: int
    dimensions: tuple[int, ...]
    scale: float


_TASKS = (
    _LabelTask("item-a", "item", 3, 0.95, 1000, 5, (0, 1, 2, 3, 4, 5, 6, 7), 2 / np.sqrt(8)),
    _LabelTask("item-b", "item", 4, 0.17, 500, 3, (0, 1, 2, 3, 4, 5, 8, 9), 2 / np.sqrt(8)),
    _LabelTask("profile-8", "profile", 5, 1.0, 8, 1, (8, 9, 10, 11), 3 / 2),
    _LabelTask("profile-2", "profile", 6, 0.99, 2, 1, (12, 13, 14, 15), 5 / 2),
    _LabelTask("profile-6", "profile", 7, 0.68, 6, 1, (8, 9, 10, 11), 3 / 2),
)

# The task of `noise=CLASSES`, whose labels follow from nothing: a share of the users, one class each. Its stream is of no other task.
NOISE = "noise"
_NOISE_SHARE, _NOISE_STREAM = 0.5, 8
_PARAMETERS = {
    "users": (1, None, "users=2000"),
    "noise": (2, 10_000, "noise=50"),
    "times": (0, 1, "times=1"),
    "more": (1, 500, "more=34"),
}
# Streams of the further tasks of `more=TASKS`; those of six tasks, noise and times lie below.
_MORE_STREAMS = 100


def six_tasks_v1(users: int = DEFAULT_USERS, *, noise: int | None = None, times: bool = False, more: int = 0) -> Tables:
    """Return the synthetic data set of `users` users: 5,000 items, sequences of 8 to 30, the tasks next, item-a … profile-6.

    The first n users are those of the data set of n users. Names of items, labels and users are their numbers from 0.

    Args:
        users: How many.
        noise: Add a last task, `noise`, that nothing can predict: half of the users, one of so many classes at random. All else stays.
        times: Give events times and types, which tell of `profile-2` and `profile-8` (`event_times.py`). All else stays.
        more: Add so many further tasks, `more-001` on, behind `profile-6`: in turn items and profiles of half of the users. All else stays.

    Raises:
        ConfigError: `users` is not positive.
    """
    if users < 1:
        raise ConfigError(f"data set '{NAME}': users is {users}; it must be at least 1")
    latent_UD = _user_vectors(users)
    values, offsets = _draw_sequences(latent_UD)
    names = [str(user) for user in range(users)]
    hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    columns = _draw_columns(latent_UD, np.diff(offsets)) if times else NO_COLUMNS
    return Tables(
        name=NAME,
        items=[str(item) for item in range(ITEMS)],
        sequences=SequenceTable(names, hashes, values, offsets, columns),
        labels=[*(_draw_labels(task, latent_UD) for task in _tasks(more)), *([] if noise is None else [_draw_noise(users, noise)])],
        length_limit=LENGTH_LIMIT,
        source={
            "format": "synthetic",
            "name": NAME,
            "users": users,
            "seed": _ENTROPY,
            **({} if noise is None else {"noise": noise}),
            **({"times": True} if times else {}),
            **({"more": more} if more else {}),
        },
        types=TYPES if times else (),
    )


def parse_synthetic(uri: str) -> Tables:
    """Return the data set that a URI such as `synthetic:six-tasks-v1?users=2000` names.

    Raises:
        ConfigError: unknown data set or parameter, or a value that is no whole number or out of bounds.
    """
    if not uri.startswith(SCHEME):
        raise ConfigError(f"'{uri}' names no synthetic data set; write {SCHEME}{NAME}?users=2000")
    name, _, query = uri.removeprefix(SCHEME).partition("?")
    if name != NAME:
        raise ConfigError(f"'{uri}': no synthetic data set '{name}'{nearest(name, [NAME])} (there is: {NAME})")
    found: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _PARAMETERS:
            raise ConfigError(f"'{uri}': '{NAME}' has no parameter '{key}'{nearest(key, _PARAMETERS)} (it has: {', '.join(_PARAMETERS)})")
        if key in found:
            raise ConfigError(f"'{uri}': parameter '{key}' is given twice; give it once")
        least, most, example = _PARAMETERS[key]
        if not (value.isascii() and value.isdecimal() and least <= int(value) <= (most or int(value))):
            upper = "" if most is None else f" and at most {most}"
            raise ConfigError(f"'{uri}': {key} is '{value}'; it must be a whole number of at least {least}{upper}, as in {example}")
        found[key] = int(value)
    return six_tasks_v1(
        found.get("users", DEFAULT_USERS), noise=found.get("noise"), times=bool(found.get("times")), more=found.get("more", 0)
    )


def oracle_scores(tables: Tables, *, rows: Int | None = None, given: Literal["user", "popularity"] = "user") -> dict[str, float]:
    """Return by task the score of ranking labels by their true probabilities: the best any model can expect, but for luck.

    Args:
        tables: What `six_tasks_v1` returned.
        rows: int64, rows of the users to score, such as those of the test split; None for all.
        given: What the ranking uses. `user`: the user's latent vector, and for `next` the item before the last; `popularity`: the
            logits b alone.

    Returns:
        MRR@5 of the next and item tasks, accuracy of the profile tasks (none for `popularity`, as profiles have no such
        logits); examples are the users' last items and each label drawn. A task without an example is left out.

    Raises:
        ValueError: the tables are not those of `six_tasks_v1`.
    """
    if tables.source.get("name") != NAME:
        raise ValueError(f"true probabilities are known for '{NAME}' only, not for '{tables.name}'")
    latent_UD = _user_vectors(len(tables.sequences.user_ids))
    chosen_U = np.ones(len(latent_UD), dtype=bool) if rows is None else np.isin(np.arange(len(latent_UD)), rows)
    plain = given == "popularity"
    found = {tables.next_task: _next_hits(tables.sequences, latent_UD, chosen_U, plain=plain)}
    drawn = _tasks(tables.source.get("more", 0))
    for task, table in zip(drawn, tables.labels[: len(drawn)], strict=True):
        if task.kind == "item" or not plain:
            found[task.name] = _label_hits(task, table, latent_UD, chosen_U, plain=plain)
    return {name: float(hits_E.mean()) for name, hits_E in found.items() if len(hits_E)}


def _next_hits(sequences: SequenceTable, latent_UD: Float, chosen_U: NDArray[np.bool_], *, plain: bool) -> Float:
    """Return the reciprocal ranks [E] of the last items of the chosen users."""
    items_VD, popularity_V = _item_vectors()
    ends = sequences.offsets[1:][chosen_U]
    last, query_ED = sequences.values[ends - 1], 1.5 * latent_UD[chosen_U] + 0.75 * items_VD[sequences.values[ends - 2]]
    hits = np.empty(len(ends))
    for block in _blocks(len(ends)):
        logits = popularity_V if plain else popularity_V + query_ED[block] @ items_VD.T / np.sqrt(_LATENT)
        hits[block] = _reciprocal_ranks(logits, last[block])
    return hits


def _label_hits(task: _LabelTask, table: LabelTable, latent_UD: Float, chosen_U: NDArray[np.bool_], *, plain: bool) -> Float:
    """Return the reciprocal ranks, or for a profile the hits, [E] of the labels of the chosen users."""
    vectors_YD, popularity_Y, _ = _label_vectors(task)
    users = np.repeat(table.users, np.diff(table.offsets))
    labels, users = table.values[chosen_U[users]], users[chosen_U[users]]
    hits = np.empty(len(users))
    for block in _blocks(len(users)):
        logits = popularity_Y if plain else _label_logits(task, latent_UD[users[block]], vectors_YD, popularity_Y)
        hits[block] = logits.argmax(1) == labels[block] if task.kind == "profile" else _reciprocal_ranks(logits, labels[block])
    return hits


def _tasks(more: int) -> tuple[_LabelTask, ...]:
    """Return the tasks whose labels follow from users' vectors: the five after `next`, and so many more."""
    return (*_TASKS, *map(_further_task, range(1, more + 1)))


def _further_task(number: int) -> _LabelTask:
    """Return a further task; it reads dimensions from its own number on, so that tasks of near numbers are related."""
    name, stream = f"more-{number:03d}", _MORE_STREAMS + number
    dimensions = tuple((number + place) % _LATENT for place in range(8 if number % 2 else 4))
    if number % 2:
        return _LabelTask(name, "item", stream, 0.5, 200, 3, dimensions, 2 / np.sqrt(8))
    return _LabelTask(name, "profile", stream, 0.5, 2 + number // 2 % 7, 1, dimensions, 3 / 2)


def _stream(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_ENTROPY, spawn_key=(key,))))


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _user_vectors(users: int) -> Float:
    return _stream(1).standard_normal((users, _LATENT))


def _popularity_logits(generator: np.random.Generator, size: int) -> Float:
    return np.asarray(-0.8 * np.log(generator.permutation(size) + 1.0))


def _item_vectors() -> tuple[Float, Float]:
    """Return item vectors [V, D] and popularity logits [V]."""
    generator = _stream(0)
    vectors_VD = generator.standard_normal((ITEMS, _LATENT))
    return vectors_VD, _popularity_logits(generator, ITEMS)


def _label_vectors(task: _LabelTask) -> tuple[Float, Float, np.random.Generator]:
    """Return a task's label vectors [Y, D'], its popularity logits [Y] (zeros for a profile) and its stream from there on."""
    generator = _stream(task.stream)
    vectors_YD = generator.standard_normal((task.labels, len(task.dimensions)))
    popularity_Y = _popularity_logits(generator, task.labels) if task.kind == "item" else np.zeros(task.labels)
    return vectors_YD, popularity_Y, generator


def _label_logits(task: _LabelTask, latent_BD: Float, vectors_YD: Float, popularity_Y: Float) -> Float:
    return np.asarray(popularity_Y + task.scale * (latent_BD[:, task.dimensions] @ vectors_YD.T))


def _draw(weights_BY: Float, uniform_B: Float) -> Int:
    """Return [B] the inverse cumulative distribution of unnormalised weights at `uniform_B` in [0, 1)."""
    cumulative_BY = np.cumsum(weights_BY, axis=1)
    below_BY = cumulative_BY <= (uniform_B * cumulative_BY[:, -1])[:, None]
    # uniform · total may round up to the total itself
    return np.asarray(np.minimum(below_BY.sum(axis=1), weights_BY.shape[1] - 1), dtype=np.int64)


def _reciprocal_ranks(scores_BY: Float, targets_B: NDArray[np.int32], cut: int = 5) -> Float:
    """Return [B] the reciprocal rank of each target by scores [B, Y] or [Y], 0 beyond `cut`; ties do not occur."""
    scores_BY = np.broadcast_to(scores_BY, (len(targets_B), scores_BY.shape[-1]))
    own_B1 = np.take_along_axis(scores_BY, targets_B[:, None].astype(np.int64), axis=1)
    rank_B = 1 + (scores_BY > own_B1).sum(axis=1)
    return np.asarray(np.where(rank_B <= cut, 1.0 / rank_B, 0.0))


def _draw_sequences(latent_UD: Float) -> tuple[NDArray[np.int32], Int]:
    """Return the users' sequences, values [N] and offsets [U + 1]."""
    users = len(latent_UD)
    # Users take unequal numbers of draws, so where a user's begin follows from the lengths before.
    uniforms = _stream(2).random(users * (LENGTH_LIMIT + 1))
    lengths, starts = np.empty(users, dtype=np.int64), np.empty(users, dtype=np.int64)
    position = 0
    for user in range(users):
        lengths[user] = _SHORTEST + int((LENGTH_LIMIT - _SHORTEST + 1) * uniforms[position])
        starts[user] = position + 1
        position += 1 + int(lengths[user])
    offsets = ragged.offsets_of(lengths)
    values = np.empty(offsets[-1], dtype=np.int32)
    items_VD, popularity_V = _item_vectors()
    transposed_DV = np.ascontiguousarray(items_VD.T) / np.sqrt(_LATENT)
    for block in _blocks(users):
        query_BD = 1.5 * latent_UD[block]
        for step in range(int(lengths[block].max())):
            on = np.flatnonzero(lengths[block] > step) + block.start
            logits_BV = query_BD[on - block.start] @ transposed_DV
            if step:
                logits_BV += 0.75 * items_VD[values[offsets[on] + step - 1]] @ transposed_DV
            logits_BV += popularity_V
            # Logits stay below about 40, so the exponential needs no shift.
            values[offsets[on] + step] = _draw(np.exp(logits_BV, out=logits_BV), uniforms[starts[on] + step])
    return values, offsets


def _draw_labels(task: _LabelTask, latent_UD: Float) -> LabelTable:
    """Draw who takes part in a task, and the labels without replacement."""
    vectors_YD, popularity_Y, generator = _label_vectors(task)
    uniforms = generator.random(len(latent_UD) * (2 + task.most))
    members, counts, starts = [], [], []
    position = 0
    for user in range(len(latent_UD)):
        member = uniforms[position] < task.share
        position += 1
        if not member:
            continue
        count = 1
        if task.kind == "item":
            count += int(task.most * uniforms[position])
            position += 1
        members.append(user)
        counts.append(count)
        starts.append(position)
        position += count
    users_R, counts_R, starts_R = (np.array(column, dtype=np.int64) for column in (members, counts, starts))
    offsets = ragged.offsets_of(counts_R)
    values = np.empty(offsets[-1], dtype=np.int32)
    for block in _blocks(len(users_R)):
        weights_BY = np.exp(_label_logits(task, latent_UD[users_R[block]], vectors_YD, popularity_Y))
        for step in range(int(counts_R[block].max())):
            on = np.flatnonzero(counts_R[block] > step)
            drawn = _draw(weights_BY[on], uniforms[starts_R[block][on] + step])
            values[offsets[:-1][block][on] + step] = drawn
            # A drawn label leaves the distribution; the others' weights are renormalised by the next draw.
            weights_BY[on, drawn] = 0.0
    return LabelTable(task.name, task.kind, [str(label) for label in range(task.labels)], users_R, values, offsets)


def _draw_columns(latent_UD: Float, lengths_U: Int) -> EventColumns:
    """Draw times from the direction in which `profile-2`'s classes differ, and types from the dimensions of `profile-8`."""
    of_two, of_eight = (next(task for task in _TASKS if task.name == name) for name in ("profile-2", "profile-8"))
    vectors_YD, _, _ = _label_vectors(of_two)
    apart_D = vectors_YD[1] - vectors_YD[0]
    direction_U = latent_UD[:, of_two.dimensions] @ (apart_D / np.linalg.norm(apart_D))
    return draw_event_columns(direction_U, latent_UD[:, of_eight.dimensions], lengths_U, _stream)


def _draw_noise(users: int, classes: int) -> LabelTable:
    """Draw who takes part in the task of noise, and a class of each; two draws a user, so that more users change nothing of the first."""
    uniforms_U2 = _stream(_NOISE_STREAM).random((users, 2))
    members = np.flatnonzero(uniforms_U2[:, 0] < _NOISE_SHARE)
    labels = np.minimum((uniforms_U2[members, 1] * classes).astype(np.int32), classes - 1)
    return LabelTable(NOISE, "profile", [str(label) for label in range(classes)], members, labels, ragged.offsets_of(np.ones_like(members)))
