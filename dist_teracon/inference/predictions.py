"""The labels that score highest for each user.

Legend: B users, Y labels, C channels, k how many are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data import ragged
from dist_teracon.errors import DataError
from dist_teracon.evaluate.candidates import LeftOut, items_left_out
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.vocabulary import Vocabulary
from dist_teracon.models.heads import Head, rows_at_once


@dataclass(frozen=True)
class Predictions:
    """Ranked labels of users, best first.

    Attributes:
        task: Whose labels.
        indices: int64 [B, k], labels by index; −1 where a user has fewer than k candidates.
        scores: float32 [B, k], logits, or probabilities where they were asked for; NaN where there is no label.
        users: Names of the users, where they came with the events.
        unknown: Events whose item the model does not know.
        names: The task's labels.
        unknown_candidates: Candidates that are no labels of the task, so that they are not ranked.
    """

    task: str
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    users: pa.Array | None
    unknown: int
    names: Vocabulary
    unknown_candidates: int = 0

    @property
    def labels(self) -> list[list[str]]:
        """The labels' names, a list a user."""
        return [self.names.array[row[row >= 0]].tolist() for row in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        """Yield for each user its labels with their scores, best first."""
        for names, scores in zip(self.labels, self.scores, strict=True):
            yield list(zip(names, scores[: len(names)].tolist(), strict=True))

    def to_arrow(self) -> pa.Table:
        """Return a table of user (its place where it has no name), labels and scores, lists of equal length."""
        there = self.indices >= 0
        offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32))
        labels = pa.array(self.names.array[self.indices[there]].tolist(), pa.string())
        users = self.users if self.users is not None else pa.array(np.arange(len(self)))
        scores = pa.array(self.scores[there], pa.float32())
        columns = {"labels": pa.ListArray.from_arrays(offsets, labels), "scores": pa.ListArray.from_arrays(offsets, scores)}
        return pa.table({"user": users, **columns})


def best_labels(
    head: Head, hidden_BC: Tensor, *, top: int, left_out: LeftOut | None, candidates: Sequence[NDArray[np.int64]] | None, normalise: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `top` labels of highest logit and their scores, [B, k] each, in chunks that never hold more logits than fit.

    Equal scores stand in the order of their labels. The logits are those of `evaluate/candidates.py`, fp32 at least.

    Args:
        head: The task's.
        hidden_BC: Representations.
        top: How many at most.
        left_out: Labels that do not take part, by user.
        candidates: Labels that take part, for each user or one array for all; None for all labels.
        normalise: Give probabilities over the labels that take part instead of logits.
    """
    dtype = torch.promote_types(hidden_BC.dtype, torch.float32)
    weight, bias, hidden_BC = head.weight.to(dtype), head.bias.to(dtype), hidden_BC.to(dtype)
    columns = torch.arange(head.labels)
    if candidates is not None and len(candidates) == 1:
        columns = torch.from_numpy(np.unique(candidates[0]))
        weight, bias = (part.index_select(0, columns.to(part.device)) for part in (weight, bias))
    found: list[tuple[Any, Any]] = [(np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))]
    for rows in torch.arange(hidden_BC.shape[0]).split(rows_at_once(head.labels)):
        logits = F.linear(hidden_BC[rows.to(hidden_BC.device)], weight, bias)
        if candidates is not None and len(candidates) > 1:
            logits = _only(logits, [candidates[row] for row in rows.tolist()])
        if left_out is not None:
            _leave_out(logits, rows, columns, left_out, head.labels)
        scores = torch.softmax(logits, dim=1) if normalise else logits
        found.append(_best(scores, logits, columns, min(top, len(columns))))
    width = max(part[0].shape[1] for part in found)
    indices = np.concatenate([part[0].reshape(-1, width) for part in found])
    return indices, np.concatenate([part[1].reshape(-1, width) for part in found])


def joined(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the labels and scores of several batches, [B, k]; rows of fewer labels are filled up with −1 and NaN."""
    width = max((indices.shape[1] for indices, _ in parts), default=0)

    def filled(values: NDArray[Any], fill: float) -> NDArray[Any]:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    indices = [filled(part, -1) for part, _ in parts] or [np.zeros((0, 0), np.int64)]
    scores = [filled(part, np.nan) for _, part in parts] or [np.zeros((0, 0), np.float32)]
    return np.concatenate(indices).astype(np.int64), np.concatenate(scores).astype(np.float32)


def _only(logits: Tensor, candidates: Sequence[NDArray[np.int64]]) -> Tensor:
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, labels in enumerate(candidates):
        kept[row, torch.from_numpy(labels).to(kept.device)] = True
    return logits.masked_fill(~kept, -torch.inf)


def _leave_out(logits: Tensor, rows: Tensor, columns: Tensor, left_out: LeftOut, labels: int) -> None:
    """Remove labels in place, where the columns of the logits are some of the labels."""
    if len(columns) == labels:
        left_out.remove(logits, rows)
        return
    for place, row in enumerate(rows.tolist()):
        own = left_out.labels[left_out.offsets[row] : left_out.offsets[row + 1]]
        gone = torch.from_numpy(np.isin(columns.numpy(), own))
        logits[place, gone.to(logits.device)] = -torch.inf


def _best(scores: Tensor, logits: Tensor, columns: Tensor, top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels and scores of the best columns; −1 and NaN where a logit is minus infinity."""
    values, places = torch.topk(logits, top, dim=1)
    # of those that equal the last one `topk` takes any, and the first ones are asked for
    least = values[:, -1:]
    tied = ((logits == least).sum(dim=1) > (values == least).sum(dim=1)) & ~least[:, 0].isneginf()
    if (rows := tied.nonzero()[:, 0]).numel():
        places[rows] = torch.sort(logits[rows], dim=1, descending=True, stable=True).indices[:, :top]
    places = places.gather(1, torch.argsort(places, dim=1))
    values = logits.gather(1, places)
    places = places.gather(1, torch.argsort(values, dim=1, descending=True, stable=True))
    kept = scores.gather(1, places).float().cpu().numpy()
    gone = logits.gather(1, places).isneginf().cpu().numpy()
    labels = columns[places.cpu()].numpy()
    return np.where(gone, -1, labels), np.where(gone, np.float32("nan"), kept)


def candidate_labels(names: Vocabulary, candidates: Sequence[Any], users: int, *, task: str) -> tuple[list[NDArray[np.int64]], int]:
    """Return the labels of candidates in raw ids, an array for all users or one for each, and how many ids are no labels.

    Args:
        names: The task's labels.
        candidates: Ids, or a list of them for each user; those that are no labels are left out.
        users: How many.
        task: The task's name.

    Raises:
        DataError: no list, a list for another number of users, or one without any label.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence | np.ndarray):
        raise DataError(f"candidates: expected a list of ids, or a list of them for each user, got {type(candidates).__name__}")
    each = len(candidates) > 0 and not isinstance(candidates[0], str) and isinstance(candidates[0], Sequence | np.ndarray)
    if each and len(candidates) != users:
        raise DataError(f"candidates: expected a list for each of {users} users, got {len(candidates)}")
    found, unknown = [], 0
    for number, ids in enumerate(candidates if each else [candidates]):
        labels = np.array([names.index(id_text(value)) for value in ids], dtype=np.int64)
        if not (labels >= 0).any():
            whose = f" of user {number}" if each else ""
            raise DataError(f"candidates{whose}: none of {len(labels)} ids is a label of task '{task}'")
        found.append(labels[labels >= 0])
        unknown += int((labels < 0).sum())
    return found, unknown


def not_recommended(
    read: Histories, first: int, end: int, label_of_item: NDArray[np.int64], labels: Vocabulary, *, seen: bool, padding: int | None
) -> LeftOut:  # fmt: skip
    """Return the labels that some users are not recommended.

    Args:
        read: Histories of users.
        first, end: Which of them.
        label_of_item: Which label each item is, −1 for none.
        labels: Names of the labels.
        seen: Leave out the items of their own histories.
        padding: The item that fills short rows, where there is one; never recommended.
    """
    offsets = read.seen.offsets[first : end + 1]
    values, offsets = read.seen.values[offsets[0] : offsets[-1]], offsets - offsets[0]
    if not seen:
        values, offsets = values[:0], np.zeros_like(offsets)
    if padding is not None:
        values, offsets = np.insert(values, offsets[1:], padding), offsets + np.arange(len(offsets))
    beside = None
    if seen and read.strange_names is not None:  # items outside of the catalogue may be labels
        names, ends = ragged.take(*read.strange_names, np.arange(first, end))
        places = np.array([labels.index(name) for name in names], dtype=np.int64)
        beside = ragged.keep(places, ends, places >= 0)
    return items_left_out(values, offsets, label_of_item, earlier=beside)
