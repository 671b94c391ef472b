"""A linear probe before a stage: the new head alone is trained on the representations that the network gives before the stage changes it.

A head that starts at random draws the backbone along while it learns, and on few users early stopping ends before it has learned (Kumar et
al., Fine-Tuning can Distort Pretrained Features, 2022: first the head, then all). Representations are computed once, without dropout, so
a step costs the head alone.

Legend: B users, E examples, W numbers of a representation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dist_teracon.console import NoProgress, Progress
from dist_teracon.continual.method import Method
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split, Task
from dist_teracon.engine.eager_adam import make_adam
from dist_teracon.hashing import stable_hash
from dist_teracon.models.heads import Head, cross_entropy_sum
from dist_teracon.runtime import Runtime

# More change little in a linear layer's start; the users' representations lie in memory.
_USERS = 16_384
_VALIDATION_EXAMPLES = 16_384
# Examples a step, and Adam's learning rate; docs/log/2026-11-26-linear-probe-and-slow-rate.md has others.
_BATCH = 256
_LEARNING_RATE = 3e-3
# Candidates are the heads after so many steps, twice as many, four times …, up to all.
_FIRST_CANDIDATE = 25


@dataclass(frozen=True)
class LinearProbe:
    """What a start took: training examples, steps of the head that was kept, its mean cross-entropy on validation users."""

    examples: int
    steps: int
    validation_loss: float


@torch.no_grad()
def fit_linear_probe(
    method: Method, dataset: Dataset, task: Task, *, steps: int, dropout: float, smoothing: float, seed: int, batch: int,
    runtime: Runtime, progress: Progress | None = None,
) -> LinearProbe | None:  # fmt: skip
    """Train a task's head alone, in place, the same on all processes at any world size.

    Of the heads after 25, 50, 100 … steps, each the mean of the steps since the one before, that of least cross-entropy on validation
    users is kept.

    Args:
        method: Has begun the task; on the runtime's device.
        dataset: The data set.
        task: An item or profile task.
        steps: Optimiser steps at most.
        dropout: Of representations.
        smoothing: Of the cross-entropy in training.
        seed: The run's.
        batch: Users encoded at a time.
        runtime: This process's place in the world.
        progress: Shows how far it is.

    Returns:
        What the probe took; None, the head as it was, where the task has no training or no validation examples.
    """
    train, validation = (
        _examples(method, dataset, task, split, seed=seed, batch=batch, runtime=runtime, progress=progress)
        for split in (Split.TRAIN, Split.VALIDATION)
    )
    if not train.labels.shape[0] or not validation.labels.shape[0]:
        return None
    head = method.head(task.name)
    # by one process, which sends it to the others: they may be other machines that round otherwise
    generator = torch.Generator().manual_seed(stable_hash(f"{seed}:head start:{task.name}") >> 1)
    fitted = _fit(head, train, validation, steps, dropout, smoothing, generator) if runtime.is_main else None
    weight, bias, kept, loss = runtime.gather(fitted)[0]
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return LinearProbe(train.labels.shape[0], kept, loss)


@dataclass(frozen=True)
class _Examples:
    """Representations `hidden` [B, W], and of each example its row in them, `user` [E], and its label [E]."""

    hidden: Tensor
    user: Tensor
    labels: Tensor

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the representations and labels of some examples."""
        return self.hidden[self.user[chosen]], self.labels[chosen]


def _examples(
    method: Method, dataset: Dataset, task: Task, split: Split, *, seed: int, batch: int, runtime: Runtime, progress: Progress | None
) -> _Examples:
    """Some users of a split with all their labels, in the order of shards, on every process."""
    width, users = method.head(task.name).weight.shape[1], 0
    hidden, user, labels = [np.zeros((0, width), np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    batches = evaluation_batches(
        dataset, task, split, mask_index=method.mask_index(task.name), batch=batch, rank=runtime.rank, world_size=runtime.world_size,
        max_users=_USERS, seed=seed, gather=runtime.gather,
    )  # fmt: skip
    for packed in (progress or NoProgress()).track(iter(batches), len(batches), f"representations, {split.name.lower()}"):
        (examples,) = packed.examples
        hidden.append(method.encode(packed.to(runtime.device), task.name).float().cpu().numpy())
        user.append(examples.index.numpy() + users)
        labels.append(examples.labels.numpy())
        users += packed.rows
    gathered = runtime.gather(tuple(np.concatenate(parts) for parts in (hidden, user, labels)))
    first = np.cumsum([0] + [rows.shape[0] for rows, _, _ in gathered])
    shifted = ((rows, of_rank + start, classes) for (rows, of_rank, classes), start in zip(gathered, first, strict=False))
    columns = zip(*shifted, strict=True)
    return _Examples(*(torch.from_numpy(np.concatenate(column)).to(runtime.device) for column in columns))


def _fit(
    head: Head, train: _Examples, validation: _Examples, steps: int, dropout: float, smoothing: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, int, float]:  # fmt: skip
    """Return the kept head's weight and bias, the steps it took, and its validation cross-entropy."""
    trained, mean = (copy.deepcopy(head).requires_grad_(trains) for trains in (True, False))
    trained.sparse = mean.sparse = False
    optimiser = make_adam(torch.optim.Adam, trained.parameters(), lr=_LEARNING_RATE)
    candidates = [steps >> halvings for halvings in range(steps.bit_length()) if not halvings or steps >> halvings >= _FIRST_CANDIDATE]
    best: tuple[Tensor, Tensor, int, float] | None = None
    order, since = torch.zeros(0, dtype=torch.int64), 0
    for step in range(1, steps + 1):
        if not order.shape[0]:
            order = torch.randperm(train.labels.shape[0], generator=generator)
        chosen, order = order[:_BATCH], order[_BATCH:]
        rows, labels = train.take(chosen.to(train.labels.device))
        if dropout:
            kept = torch.rand(rows.shape, generator=generator) >= dropout
            rows = rows * kept.to(rows) / (1 - dropout)
        with torch.enable_grad():
            loss = cross_entropy_sum(trained, rows, labels, smoothing=smoothing) / rows.shape[0]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        since += 1
        for average, parameter in zip(mean.parameters(), trained.parameters(), strict=True):
            average.lerp_(parameter, 1 / since)
        if step in candidates:
            score = _mean_loss(mean, validation)
            if best is None or score < best[3]:
                best = (mean.weight.cpu().clone(), mean.bias.cpu().clone(), step, score)
            since = 0
    assert best is not None
    return best


def _mean_loss(head: Head, examples: _Examples) -> float:
    number = min(_VALIDATION_EXAMPLES, examples.labels.shape[0])
    hidden, labels = examples.take(torch.arange(number, device=examples.labels.device))
    return float(cross_entropy_sum(head, hidden, labels).detach()) / number
