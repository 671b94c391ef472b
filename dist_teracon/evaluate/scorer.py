"""Scores of a method on a task: full ranking over the task's labels by counting, in chunks (SPEC section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.console import NoProgress, Progress
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split
from dist_teracon.evaluate.metrics import METRIC_CUTOFF, count_candidates, reciprocal_rank
from dist_teracon.models.heads import Head, rows_at_once
from dist_teracon.runtime import Runtime


class Encoder(Protocol):
    """What is scored: representations and heads by task name."""

    def mask_index(self, task: str) -> int: ...

    def encode(self, batch: PackedBatch, task: str) -> Tensor: ...

    def head(self, task: str) -> Head: ...


@dataclass(frozen=True)
class UserScores:
    """Scores by user: `user_hash` uint64 [B], `score` float64 [B] the sum over the user's examples, `examples` int64 [B]."""

    user_hash: NDArray[np.uint64]
    score: NDArray[np.float64]
    examples: NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """A task's score.

    Attributes:
        value: Mean over examples; None without any.
        examples: How many there were.
        unseen: Targets that training never saw; each is a miss.
        by_user: This rank's users, for intervals over users.
    """

    value: float | None
    examples: int
    unseen: int
    by_user: UserScores


@torch.no_grad()
def score_task(
    encoder: Encoder, dataset: Dataset, task: str, split: Split, *,
    runtime: Runtime, batch: int, max_users: int | None, seed: int, progress: Progress | None = None,
) -> Score:  # fmt: skip
    """Score a task on a split by its own metric; every rank scores its shards and all get the sum."""
    info = dataset.info.task(task)
    seen = train_counts(dataset, task, runtime) > 0
    # sum of scores, examples, unseen targets
    sums = np.zeros(3)
    users: list[UserScores] = []
    batches = evaluation_batches(
        dataset, info, split, mask_index=encoder.mask_index(task), batch=batch, rank=runtime.rank, world_size=runtime.world_size,
        max_users=max_users, seed=seed, gather=runtime.gather,
    )  # fmt: skip
    for packed in (progress or NoProgress()).track(iter(batches), len(batches), f"scores of {task}, {split.name.lower()}"):
        (examples,) = packed.examples
        known = seen[examples.labels]
        hidden = encoder.encode(packed.to(runtime.device), task)
        values = _score_rows(encoder.head(task), hidden, examples.index, examples.labels, cutoff=METRIC_CUTOFF[info.metric])
        values = torch.where(known, values, 0.0)
        sums += [float(values.sum()), examples.labels.shape[0], int((~known).sum())]
        assert packed.user_hash is not None
        counts = np.bincount(examples.index.numpy(), minlength=packed.rows)
        summed = np.bincount(examples.index.numpy(), weights=values.numpy(), minlength=packed.rows)
        users.append(UserScores(packed.user_hash, summed.astype(np.float64), counts))
    value, count, unseen = runtime.all_reduce_sum(torch.from_numpy(sums)).tolist()
    return Score(value / count if count else None, int(count), int(unseen), _joined(users))


def train_counts(dataset: Dataset, task: str, runtime: Runtime) -> Tensor:
    """How often each label is a training target, int64 [Y] on the CPU; every rank counts in its own shards, all get the sum."""
    own = own_shards(dataset.info.shards, runtime.rank, runtime.world_size)
    return runtime.all_reduce_sum(torch.from_numpy(dataset.train_counts(task, own)))


def _joined(parts: list[UserScores]) -> UserScores:
    if not parts:
        return UserScores(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0, np.int64))
    return UserScores(
        np.concatenate([part.user_hash for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.examples for part in parts]),
    )


def _score_rows(head: Head, hidden_BC: Tensor, index_E: Tensor, labels_E: Tensor, *, cutoff: int) -> Tensor:
    """Expected reciprocal rank of each example, float64 [E] on the CPU. Logits are fp32 at least: in bf16 half of them would tie."""
    dtype = torch.promote_types(hidden_BC.dtype, torch.float32)
    weight, bias, hidden_BC = head.weight.to(dtype), head.bias.to(dtype), hidden_BC.to(dtype)
    values = []
    for chunk in torch.arange(index_E.shape[0]).split(rows_at_once(head.labels)):
        rows, example_row = torch.unique(index_E[chunk], return_inverse=True)
        logits = F.linear(hidden_BC[rows.to(hidden_BC.device)], weight, bias)
        greater, equal = count_candidates(logits, labels_E[chunk].to(logits.device), rows_E=example_row.to(logits.device))
        values.append(reciprocal_rank(greater, equal, cutoff=cutoff).cpu())
    return torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)
