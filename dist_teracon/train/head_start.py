"""A new head's start: steps of its own on what the network tells of users before the stage changes it.

A head that starts at random draws the backbone along while it learns, and on few users early stopping ends before it has learned (Kumar et
al., Fine-Tuning can Distort Pretrained Features, 2022: first the head, then all). Representations are computed once, without dropout, so
a step costs the head alone.

Legend: E examples, W numbers of a representation, Y labels.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from dist_teracon.continual.method import Method
from dist_teracon.data.loader import evaluation_batches
from dist_teracon.data.schema import Split, Task
from dist_teracon.data.shards import Dataset
from dist_teracon.data.tables import stable_hash
from dist_teracon.engine.contract import Runtime
from dist_teracon.models.heads import Head, cross_entropy_sum

# More users change little in a linear layer's start, and all their representations lie in memory.
_USERS = 16_384
# Examples a step, and Adam's learning rate: docs/experiments.md has others. The mean of the second half's weights is taken.
_BATCH = 256
_LEARNING_RATE = 3e-3


@torch.no_grad()
def start_head(
    method: Method, dataset: Dataset, task: Task, *, steps: int, dropout: float, smoothing: float, seed: int, batch: int, runtime: Runtime
) -> int:
    """Train a task's head alone, in place, the same on all processes at any world size; returns the number of examples.

    Args:
        method: Has begun the task; on the runtime's device.
        dataset: The data set.
        task: An item or profile task.
        steps: Optimiser steps.
        dropout: Of representations.
        smoothing: Of the cross-entropy.
        seed: The run's.
        batch: Users encoded at a time.
        runtime: This process's place in the world.
    """
    hidden_EW, labels_E = _representations(method, dataset, task, seed=seed, batch=batch, runtime=runtime)
    head = method.head(task.name)
    if labels_E.shape[0]:
        # by one process and told to the others, which may be other machines that round otherwise
        values = _fit(head, hidden_EW, labels_E, steps, dropout, smoothing, seed, task) if runtime.is_main else None
        weight, bias = runtime.gather(values)[0]
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return labels_E.shape[0]


def _representations(
    method: Method, dataset: Dataset, task: Task, *, seed: int, batch: int, runtime: Runtime
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Representations [E, W] and labels [E] of some training users' examples, in the order of shards."""
    width = method.head(task.name).weight.shape[1]
    hidden, labels = [np.zeros((0, width), np.float32)], [np.zeros(0, np.int64)]
    batches = evaluation_batches(
        dataset, task, Split.TRAIN, slot=method.slot(task.name), batch=batch, rank=runtime.rank, world_size=runtime.world_size,
        max_users=_USERS, seed=seed, gather=runtime.gather,
    )  # fmt: skip
    for packed in batches:
        (examples,) = packed.examples
        encoded = method.encode(packed.to(runtime.device), task.name).float().cpu()
        hidden.append(encoded[examples.index].numpy())
        labels.append(examples.labels.numpy())
    told = runtime.gather((np.concatenate(hidden), np.concatenate(labels)))
    rows, classes = (torch.from_numpy(np.concatenate(parts)).to(runtime.device) for parts in zip(*told, strict=True))
    return rows, classes


def _fit(
    head: Head, hidden_EW: Tensor, labels_E: Tensor, steps: int, dropout: float, smoothing: float, seed: int, task: Task
) -> tuple[Tensor, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(stable_hash(f"{seed}:head start:{task.name}") >> 1)
    trained = copy.deepcopy(head).requires_grad_(True)
    trained.sparse = False
    optimiser = torch.optim.Adam(trained.parameters(), lr=_LEARNING_RATE)
    means = [torch.zeros_like(parameter) for parameter in trained.parameters()]
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        if not order.shape[0]:
            order = torch.randperm(labels_E.shape[0], generator=generator)
        chosen, order = order[:_BATCH].to(labels_E.device), order[_BATCH:]
        rows = hidden_EW[chosen]
        if dropout:
            kept = torch.rand(rows.shape, generator=generator) >= dropout
            rows = rows * kept.to(rows) / (1 - dropout)
        with torch.enable_grad():
            loss = cross_entropy_sum(trained, rows, labels_E[chosen], smoothing=smoothing) / rows.shape[0]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (number := step - steps // 2) >= 0:
            for mean, parameter in zip(means, trained.parameters(), strict=True):
                mean.lerp_(parameter, 1 / (number + 1))
    weight, bias = (mean.cpu() for mean in means)
    return weight, bias
