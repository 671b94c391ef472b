"""Raw files of TTL's public format and size, drawn block by block: what preparation is tested and measured on.

A factor a user drives everything: two of `CLUSTERS` clusters and how much the user leans to the first. Each cluster has its own
shuffle of one Zipf law over the items, and of one over each task's labels; an item may also follow from the one before. So tasks
are related through the clusters, and nothing of the size users × items is ever made.

A block of `BLOCK` users has its own random stream and is always drawn whole, so the first n users of a larger set are those of a
set of n users, whatever the size of the pieces that are written.

Legend: B users of a block, L positions, V items, Y labels of a task, W targets a user, C clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.atomic import atomic_folder
from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.data.schema import DatasetInfo
from dist_teracon.data.sources.sequence_csv import TTL_FILES
from dist_teracon.errors import ConfigError

NAME = "ttl"
DEFAULT_USERS = 1_470_000
ITEMS = 645_974
LENGTH_LIMIT = 100
CLUSTERS = 32
BLOCK = 8192

_ENTROPY = 20261124
_SHORTEST = 3
_FULL_SHARE = 0.2  # of the users whose sequence fills the limit; the others' lengths are uniform, which makes a mean of 60
_FOLLOWS_SHARE = 0.15  # of the items that follow from the one before
_POPULAR_SHARE = 0.2  # of the draws from the popularity that all users share
_EXPONENT = 0.9
_GUIDE = 1 << 16

Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class _LabelTask:
    """A task: its share of the users, its labels, most targets a user; a profile's clusters point at a class with `sure`."""

    name: str
    kind: Literal["item", "profile"]
    share: float
    labels: int
    most: int = 1
    sure: float = 0.0


# Those of docs/method.md, Published figures; life-status shares its clusters' order with age, gender has its own.
TASKS = (
    _LabelTask("click", "item", 0.95, 17_880, most=5),
    _LabelTask("like", "item", 0.17, 7_540, most=5),
    _LabelTask("age", "profile", 1.0, 8, sure=0.6),
    _LabelTask("gender", "profile", 0.99, 2, sure=0.85),
    _LabelTask("life-status", "profile", 0.68, 6, sure=0.5),
)


@dataclass(frozen=True)
class TtlBlock:
    """Some users: sequences of item numbers from 1, right-aligned, and each task's targets.

    Attributes:
        items_BL: int64, 0 before a sequence's first item.
        targets: By task: int64 [B, W], −1 where there is none; users outside the task have none at all.
    """

    items_BL: Int
    targets: dict[str, Int]


class TtlUsers:
    """A generator of users of TTL's shape; the same for everyone but for what is drawn from a block's own stream."""

    def __init__(self) -> None:
        self._zipf = _Zipf(ITEMS)
        self._item_shuffles_CV = _shuffles(0, ITEMS)
        self._next_V = _stream(1).permutation(ITEMS).astype(np.int32)
        self._label_zipf = {task.name: _Zipf(task.labels) for task in TASKS if task.kind == "item"}
        # 'like' takes its order of clusters from 'click', but its own labels
        self._label_shuffles = {task.name: _shuffles(2 + place, task.labels) for place, task in enumerate(TASKS) if task.kind == "item"}
        age_C = _stream(8).permutation(np.arange(CLUSTERS) % 8)
        self._class_C = {"age": age_C, "life-status": (age_C + 2) % 6, "gender": _stream(9).permutation(np.arange(CLUSTERS) % 2)}

    def block(self, number: int) -> TtlBlock:
        """Return block `number`'s users."""
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(_ENTROPY, spawn_key=(100, number))))
        first_B, second_B = draw.integers(CLUSTERS, size=BLOCK), draw.integers(CLUSTERS, size=BLOCK)
        lean_B = 0.5 + 0.5 * draw.random(BLOCK)
        items_BL = self._sequences(draw, first_B, second_B, lean_B)
        targets = {}
        for task in TASKS:
            member_B = draw.random(BLOCK) < task.share
            if task.kind == "item":
                values_BW = self._items_of(draw, task, first_B, second_B, lean_B)
            else:
                sure_B = draw.random(BLOCK) < task.sure
                values_BW = np.where(sure_B, self._class_C[task.name][first_B], draw.integers(task.labels, size=BLOCK))[:, None]
            targets[task.name] = np.where(member_B[:, None], values_BW, -1).astype(np.int64)
        return TtlBlock(items_BL, targets)

    def _sequences(self, draw: np.random.Generator, first_B: Int, second_B: Int, lean_B: Float) -> Int:
        full_B = draw.random(BLOCK) < _FULL_SHARE
        length_B = np.where(full_B, LENGTH_LIMIT, draw.integers(_SHORTEST, LENGTH_LIMIT - 2, size=BLOCK))
        drawn_BL = _by_cluster(draw, self._zipf, self._item_shuffles_CV, first_B, second_B, lean_B, LENGTH_LIMIT)
        follows_BL = draw.random((BLOCK, LENGTH_LIMIT)) < _FOLLOWS_SHARE
        for place in range(1, LENGTH_LIMIT):
            drawn_BL[:, place] = np.where(follows_BL[:, place], self._next_V[drawn_BL[:, place - 1]], drawn_BL[:, place])
        there_BL = np.arange(LENGTH_LIMIT) >= (LENGTH_LIMIT - length_B)[:, None]
        return np.where(there_BL, drawn_BL + 1, 0)

    def _items_of(self, draw: np.random.Generator, task: _LabelTask, first_B: Int, second_B: Int, lean_B: Float) -> Int:
        """Return [B, W] a user's labels: one to `most` draws, a label that comes again left out (−1)."""
        values_BW = _by_cluster(draw, self._label_zipf[task.name], self._label_shuffles[task.name], first_B, second_B, lean_B, task.most)
        count_B = draw.integers(1, task.most + 1, size=BLOCK)
        values_BW[np.arange(task.most) >= count_B[:, None]] = -1
        for place in range(1, task.most):
            again_B = (values_BW[:, :place] == values_BW[:, place, None]).any(axis=1)
            values_BW[again_B, place] = -1
        return values_BW


class _Zipf:
    """Ranks from 0 by Zipf's law, through the inverse of a cumulative table and a guide into it."""

    def __init__(self, size: int) -> None:
        weights = np.arange(1, size + 1, dtype=np.float64) ** -_EXPONENT
        self.cumulative = np.cumsum(weights) / weights.sum()
        self.cumulative[-1] = 1.0
        self.size = size

    def ranks(self, uniform: Float) -> Int:
        """Return the ranks at uniform numbers in [0, 1), of any shape."""
        flat = uniform.ravel()
        order = np.argsort((flat * _GUIDE).astype(np.uint16), kind="stable")  # neighbours in the table follow one another
        ranks = np.empty(flat.size, dtype=np.int64)
        ranks[order] = np.searchsorted(self.cumulative, flat[order], side="right")
        return np.minimum(ranks, self.size - 1).reshape(uniform.shape)


def _by_cluster(
    draw: np.random.Generator, zipf: _Zipf, shuffles_CY: NDArray[np.int32], first_B: Int, second_B: Int, lean_B: Float, places: int
) -> Int:
    """Draw [B, places] values: of the shared popularity, of the first cluster or of the second."""
    pick_BL = draw.random((len(first_B), places))
    ranks_BL = zipf.ranks(draw.random((len(first_B), places)))
    own_BL = np.where(pick_BL < _POPULAR_SHARE + (1 - _POPULAR_SHARE) * lean_B[:, None], first_B[:, None], second_B[:, None])
    return np.where(pick_BL < _POPULAR_SHARE, ranks_BL, shuffles_CY[own_BL, ranks_BL]).astype(np.int64)


def _stream(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_ENTROPY, spawn_key=(key,))))


def _shuffles(key: int, size: int) -> NDArray[np.int32]:
    """Return [C, size] a permutation a cluster."""
    draw = _stream(20 + key)
    return np.stack([draw.permutation(size).astype(np.int32) for _ in range(CLUSTERS)])


def blocks(users: int) -> Iterator[TtlBlock]:
    """Yield the blocks of a set of `users` users; the last one is cut.

    Raises:
        ConfigError: `users` is not positive.
    """
    if users < 1:
        raise ConfigError(f"data set '{NAME}': users is {users}; it must be at least 1")
    source = TtlUsers()
    for number in range(-(-users // BLOCK)):
        block, left = source.block(number), users - number * BLOCK
        yield block if left >= BLOCK else TtlBlock(block.items_BL[:left], {name: own[:left] for name, own in block.targets.items()})


def write_raw(users: int, out: Path) -> Iterator[int]:
    """Write the six raw files into a local folder that appears whole; yields the users written so far.

    Raises:
        ConfigError: `users` is not positive.
        DataError: `out` is there already and not empty.
    """
    digits_of_item = _Digits(ITEMS + 1)
    done = 0
    with atomic_folder(out) as folder, ExitStack() as stack:
        files: dict[str, Any] = {task: stack.enter_context((folder / name).open("wb")) for name, task in TTL_FILES.items()}
        for block in blocks(users):
            history_BL = digits_of_item.with_comma(block.items_BL)
            last_BL = history_BL.copy()
            last_BL[:, -1] = digits_of_item.with_end(block.items_BL[:, -1])
            files["watching"].write(_bytes(last_BL))
            for task in TASKS:
                rows = np.flatnonzero(block.targets[task.name][:, 0] >= 0)
                files[task.name].write(_bytes(np.hstack((history_BL[rows], digits_of_item.targets(block.targets[task.name][rows])))))
            done += len(block.items_BL)
            yield done


def raw_files(out: str, *, users: int | None = None, progress: Progress | None = None) -> None:
    """Write the raw files of a set of `users` users, by default all 1.47 million, into a local folder.

    Raises:
        ConfigError: `users` is not positive, or `out` is no local folder.
        DataError: `out` is there already and not empty.
    """
    count = DEFAULT_USERS if users is None else users
    if not io.is_local(out):
        raise ConfigError(f"--raw: raw files are written to a local folder, not to {out}")
    for done in write_raw(count, io.output_folder(out)):
        (progress or NoProgress()).update("drawing", done, count)


def prepare_ttl(
    out: str,
    *,
    users: int | None = None,
    split: Literal["users", "rows", "last"] | None = None,
    min_count: int | None = None,
    shards: int | None = None,
    shown: str | None = None,
    log: Log = no_log,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Prepare a data set of `users` users by way of its raw files, which are kept next to `out` meanwhile; raises as `prepare`."""
    from dist_teracon.data.prepare.pipeline import existing_dataset, fingerprint, prepare
    from dist_teracon.data.prepare.workspace import folder_beside

    count = DEFAULT_USERS if users is None else users
    made_from = {"format": "synthetic", "name": NAME, "users": count, "seed": _ENTROPY}
    made_from |= {"split": split, "min_count": min_count, "shards": shards}
    made_from["fingerprint"] = fingerprint(made_from)
    if (there := existing_dataset(out, made_from)) is not None:
        log(f"{out}: is there already, made from the same options; nothing to do")
        return there
    with folder_beside(out, "drawing") as folder:
        raw = str(folder / NAME)
        raw_files(raw, users=count, progress=progress)
        return prepare(
            "ttl", raw, out, split=split, min_count=min_count, shards=shards, made_from=made_from, shown=shown, log=log, progress=progress
        )


class _Digits:
    """Numbers as text, eight bytes each with NUL for nothing: `7,` or `7` and a line's end."""

    def __init__(self, size: int) -> None:
        texts = np.arange(size).astype("S7")
        self._comma = np.char.add(texts, b",").astype("S8").view("<u8")
        self._end = np.char.add(texts, b"\n").astype("S8").view("<u8")

    def with_comma(self, values: Int) -> NDArray[np.uint64]:
        return np.asarray(self._comma[values], dtype=np.uint64)

    def with_end(self, values: Int) -> NDArray[np.uint64]:
        return np.asarray(self._end[values], dtype=np.uint64)

    def targets(self, values_BW: Int) -> NDArray[np.uint64]:
        """Return [B, 1 + W] an empty field, which makes the `,,`, and the targets; −1 is nothing."""
        last_B = (values_BW >= 0).cumsum(axis=1).argmax(axis=1)
        words_BW = np.where(values_BW >= 0, self.with_comma(values_BW), np.uint64(0))
        rows = np.arange(len(values_BW))
        words_BW[rows, last_B] = self.with_end(values_BW[rows, last_B])
        return np.hstack((np.full((len(values_BW), 1), ord(","), dtype=np.uint64), words_BW))


def _bytes(words: NDArray[np.uint64]) -> bytes:
    """Return the text of eight-byte words without their NULs."""
    text = np.ascontiguousarray(words).view(np.uint8).ravel()
    return text[text != 0].tobytes()
