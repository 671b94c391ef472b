"""Rows of new items in a finished stage's item tables: copies, means of neighbours, or a linear map from given vectors.

Legend: V items known so far, n new items, C channels, D numbers of a given vector.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.continual.method import Method
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.event_columns import UNKNOWN_TYPE
from dist_teracon.data.input_features import MISSING
from dist_teracon.data.item_vectors_file import ItemVectors, read_item_vectors
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, Split, Task
from dist_teracon.errors import RunError
from dist_teracon.models.input_embedding import ITEM_VALUES, VALUE_TABLES
from dist_teracon.models.item_init import LinearMap
from dist_teracon.runtime import Runtime

NewItems = Literal["unseen", "neighbours", "text"]


def grown_tensors(
    tensors: dict[str, Tensor], tables: Collection[str], dataset: Dataset, *,
    task: str, new_items: NewItems, runtime: Runtime, vectors: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """Give item tables the rows that the data set's new items need.

    Args:
        tensors: A finished stage's.
        tables: Names of the item tables among them (`Method.item_tables`).
        dataset: The version that the next stage learns from.
        task: The task that it learns.
        new_items: What the new rows start as.
        runtime: This process's place; ranks count in their own shards.
        vectors: For `text`, the file of given vectors.

    Returns:
        The tensors, and what was done, for the stage's state.

    Raises:
        TeraconError: the given vectors cannot be read or used.
    """
    old = {name: tensors[name] for name in tables if name in tensors}
    known = min(value.shape[0] for value in old.values()) if old else dataset.info.items
    report: dict[str, Any] = {"items_before": known, "items": dataset.info.items, "new_items": new_items, "started": 0}
    fresh = dataset.info.items - known
    if not fresh:
        return tensors, report
    start: ItemRowInitialiser = CopyUnseen()
    if new_items == "neighbours":
        start = NeighbourMean(*_neighbours(dataset, task, known, runtime))
    elif new_items == "text":
        if vectors is None:
            raise RunError(f"'{task}' was added with --new-items text: name the file of vectors again, by --item-vectors")
        channels = next(iter(old.values())).shape[1]
        start = linear_map(read_item_vectors(vectors, dataset), known, channels=channels, uri=vectors)
    grown = dict(tensors)
    for name, table in old.items():
        rows, done = start.rows(table, fresh)
        report |= done
        grown[name] = torch.cat([table, rows.to(table.dtype)])
    return grown, report


def growth_lines(report: dict[str, Any]) -> list[str]:
    """Return what `grown_tensors` did, for a person."""
    fresh, started = report["items"] - report["items_before"], report["started"]
    if not fresh:
        return []
    ways = {"neighbours": f"{started} start as the mean of their neighbours, ", "text": f"{started} start from given vectors, "}
    lines = [f"{fresh} new items: {ways.get(report['new_items'], '')}{fresh - started} as the unseen item"]
    if "explained" in report:
        lines.append(
            f"a linear map from {report['mapped_from']} known items' vectors explains {report['explained']:.0%} of their rows' variance"
        )
    return lines


def label_lines(method: Method, tensors: dict[str, Tensor], tasks: Sequence[Task]) -> list[str]:
    """Return which finished tasks have labels that came later, for a person: no further stage trains a finished task's labels.

    Args:
        method: Its structure, with heads for today's labels.
        tensors: A finished stage's, from before.
        tasks: Those that were learned.
    """
    lines, state = [], method.state_dict()
    for task in tasks:
        bias = method.head(task.name).bias
        name = next((name for name, value in state.items() if value.data_ptr() == bias.data_ptr()), "")
        fresh = len(bias) - len(tensors[name]) if name in tensors else 0
        if fresh > 0:
            lines.append(
                f"task '{task.name}' has {fresh} labels that came later, and this run does not learn them: they rank behind the others, as "
                "its later stages train their own task's labels alone; to have them recommended, train a new run on this version of the "
                "data (another --run)"
            )
    return lines


def with_new_labels(tensors: dict[str, Tensor], method: Method) -> dict[str, Tensor]:
    """Give heads of finished stages the rows that a later version of the data set has more of, as its first task's new items.

    A new label scores like an item that was never a target: its row is zero, its bias the smallest of the known ones. So have embeddings
    of types of events and of values of side features that came later: they start as the unknown type's and the missing value's. Items'
    features are those of the data set that the method was built from.

    Args:
        tensors: A finished stage's.
        method: Its structure, with heads for today's labels.
    """
    grown, tables = dict(tensors), method.item_tables()
    for name, value in method.state_dict().items():
        known = tensors.get(name)
        if known is not None and name.endswith(ITEM_VALUES) and not method.context.for_use:
            grown[name] = value
            continue
        if known is None or name in tables or known.shape[1:] != value.shape[1:] or known.shape[:1] >= value.shape[:1]:
            continue
        rows = known.new_zeros((value.shape[0] - known.shape[0], *known.shape[1:]))
        if name.endswith("event_embedding.type_weight"):
            rows = rows + known[UNKNOWN_TYPE]
        elif VALUE_TABLES in name:
            rows = rows + known[MISSING]
        grown[name] = torch.cat([known, rows if known.dim() > 1 else rows + known.min()])
    return grown


class ItemRowInitialiser(Protocol):
    """A way to start the rows of new items."""

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the rows of `fresh` new items [n, C], and facts for the stage's state: how many `started` other than unseen."""


class CopyUnseen:
    """New rows are copies of the unseen item's."""

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        return table[UNSEEN_ITEM].repeat(fresh, 1), {}


@dataclass(frozen=True)
class NeighbourMean:
    """New rows are means of known rows: of each new item `new` (from 0), the known ones `beside` it, each so many `times`."""

    new: NDArray[np.int64]
    beside: NDArray[np.int64]
    times: NDArray[np.int64]

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        new, beside, times = (torch.from_numpy(part) for part in (self.new, self.beside, self.times))
        sums = torch.zeros(fresh, table.shape[1], dtype=torch.float64)
        sums.index_add_(0, new, table[beside].double() * times[:, None])
        total = torch.zeros(fresh, dtype=torch.float64).index_add_(0, new, times.double())
        rows = torch.where(total[:, None] > 0, sums / total.clamp_min(1)[:, None], table[UNSEEN_ITEM].double())
        return rows, {"started": int((total > 0).sum())}


@dataclass(frozen=True)
class GivenRows:
    """New rows follow from given vectors: as they are, or by a linear map that is fitted on the known items with vectors.

    Attributes:
        given: The vectors.
        known: Items from here on are new.
    """

    given: ItemVectors
    known: int

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        vectors, items = torch.from_numpy(self.given.vectors), torch.from_numpy(self.given.items)
        old, new = items < self.known, items >= self.known
        facts: dict[str, Any] = {"started": int(new.sum()), "mapped_from": int(old.sum()), "given_unknown": self.given.unknown}
        mapped = vectors[new].double()
        if bool(old.any()):
            learned = LinearMap.fit(vectors[old], table[items[old]])
            mapped = learned.apply(vectors[new])
            facts["explained"] = round(learned.explained, 4)
        rows = table[UNSEEN_ITEM].double().repeat(fresh, 1)
        rows[items[new] - self.known] = mapped
        return rows, facts


def linear_map(given: ItemVectors, known: int, *, channels: int, uri: str) -> GivenRows:
    """Check that given vectors serve the items from `known` on.

    Raises:
        RunError: none of them has a vector; or no known item has one, so that no map can be fitted, and the width is not the table's.
    """
    if not (given.items >= known).any():
        raise RunError(
            f"{uri}: has no vector of a new item ({given.items.size} of known ones, {given.unknown} of items not in the data set)"
        )
    if not (given.items < known).any() and given.vectors.shape[1] != channels:
        raise RunError(
            f"{uri}: vectors are {given.vectors.shape[1]} wide and the model {channels}, and no known item has one from which a map "
            "could be fitted; add the known items' vectors to the file"
        )
    return GivenRows(given, known)


def _neighbours(
    dataset: Dataset, task: str, known: int, runtime: Runtime
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a new item (counted from 0) and a known one beside it in a training user's sequence, and how often, each pair once."""
    found = []
    for shard in own_shards(dataset.info.shards, runtime.rank, runtime.world_size):
        data = dataset.shard(shard)
        rows = take_rows(data.values, data.offsets, dataset.labels(task, shard).of(Split.TRAIN).users)
        inside = np.ones(max(0, rows.values.shape[0] - 1), dtype=bool)
        inside[rows.offsets[1:-1] - 1] = False  # the last of one user and the first of the next are no neighbours
        left, right = rows.values[:-1][inside].astype(np.int64), rows.values[1:][inside].astype(np.int64)
        for one, other in ((left, right), (right, left)):
            kept = (one >= known) & (other < known) & (other >= FIRST_ITEM)
            found.append((one[kept] - known) * known + other[kept])
    pairs, times = np.unique(np.concatenate([np.concatenate(found)] if found else [np.zeros(0, np.int64)]), return_counts=True)
    gathered = runtime.gather((pairs, times))
    keys, places = np.unique(np.concatenate([part for part, _ in gathered]), return_inverse=True)
    counted = np.zeros(keys.shape[0], dtype=np.int64)
    np.add.at(counted, places, np.concatenate([part for _, part in gathered]))
    return keys // known, keys % known, counted
