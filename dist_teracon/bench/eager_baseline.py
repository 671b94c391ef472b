"""The method in the plain eager way, as a yardstick of speed: padded rows, one example a (user, target), a teacher and a student
pass a past task, masks rebuilt in every pass, all positions computed. Written for this comparison; trains the same tasks.

Legend: B rows, L positions, C channels, K masked layers, T tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split, Task

EPS = 1e-8


class PlainBlockStack(nn.Module):
    """Residual blocks of `Conv2d` over [B, C, 1, L] with a permute around each; the left is padded in every convolution."""

    def __init__(self, channels: int, dilations: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stages = [step * d for d in dilations for step in (1, 2)]
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, (1, kernel_size), dilation=(1, d)) for d in self.stages)
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPS) for _ in self.stages)

    def forward(self, x_BLC: Tensor, masks_KC: Tensor | None = None) -> Tensor:
        h = x_BLC
        for stage, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            padded = F.pad(h.permute(0, 2, 1).unsqueeze(2), ((self.kernel_size - 1) * self.stages[stage], 0, 0, 0))
            h = torch.relu(norm(conv(padded).squeeze(2).permute(0, 2, 1)))
            if masks_KC is not None:
                h = h * masks_KC[stage]
            if stage % 2:
                h = x_BLC = x_BLC + h
        return h


class EagerNetwork(nn.Module):
    """Item table, blocks, task embeddings, relation layers and a head a task."""

    def __init__(self, items: int, channels: int, dilations: Sequence[int], kernel_size: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.items = nn.Embedding(items, channels)
        self.blocks = PlainBlockStack(channels, dilations, kernel_size)
        layers, n = 2 * len(dilations), len(tasks)
        self.embeddings = nn.ParameterList(torch.rand(layers, channels) * 2 for _ in tasks)
        self.relation_weights = nn.ParameterList(torch.randn(layers, 2 * n - 1) * 0.01 for _ in tasks)
        self.relation_biases = nn.ParameterList(torch.full((layers,), 0.1) for _ in tasks)
        self.heads = nn.ModuleList(nn.Linear(channels, task.labels) for task in tasks)

    def masks(self, task: int, scale: float) -> Tensor:
        """Build a task's masks [K, C] from all embeddings."""
        others = [e for j, e in enumerate(self.embeddings) if j != task]
        columns = [self.embeddings[task], *(signed for e in others for signed in (e, -e))]
        x = torch.tanh(scale * torch.stack(columns, dim=1))  # [K, 2n − 1, C]
        inner = (self.relation_weights[task][:, :, None] * x).sum(1) + self.relation_biases[task][:, None]
        return torch.sigmoid(scale * inner)

    def forward(self, rows_BL: Tensor, task: int, scale: float) -> Tensor:
        hidden = self.blocks(self.items(rows_BL), self.masks(task, scale))
        logits: Tensor = self.heads[task](hidden[:, -1])
        return logits


@dataclass(frozen=True)
class PaddedExamples:
    """One row an example: `rows` int64 [E, L] padded on the left with index 0, `labels` int64 [E]."""

    rows: Tensor
    labels: Tensor

    def batches(self, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches."""
        order = torch.randperm(self.labels.shape[0], generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(batch):
            yield self.rows[chosen], self.labels[chosen]


def padded_examples(dataset: Dataset, task: Task) -> PaddedExamples:
    """Return a task's training examples in the padded form."""
    length = dataset.info.length_limit
    rows, labels = [], []
    for index in range(dataset.info.shards):
        shard, part = dataset.shard(index), dataset.labels(task.name, index).of(Split.TRAIN)
        for place, user in enumerate(part.users):
            sequence = shard.values[shard.offsets[user] : shard.offsets[user + 1]][-length:]
            padded = np.concatenate([np.zeros(length - len(sequence), dtype=np.int64), sequence])
            for label in part.values[part.offsets[place] : part.offsets[place + 1]]:
                rows.append(padded)
                labels.append(label)
    return PaddedExamples(torch.from_numpy(np.stack(rows)), torch.from_numpy(np.asarray(labels, dtype=np.int64)))


class EagerStage:
    """One stage's epochs: the present task's cross-entropy, and for each past task a teacher and a student pass over some rows.

    Args:
        network: All tasks up to the present one, which is the last.
        examples: The present task's.
        batch: Examples a step.
        replayed: Rows of a past task a step.
        learning_rate: Adam's.
    """

    def __init__(self, network: EagerNetwork, examples: PaddedExamples, *, batch: int, replayed: int, learning_rate: float) -> None:
        self.network, self.examples, self.batch, self.replayed = network, examples, batch, replayed
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        self.epochs = 0

    def epoch(self) -> None:
        """Train one epoch."""
        self.epochs += 1
        present = len(self.network.heads) - 1
        batches = list(self.examples.batches(self.batch, self.epochs))
        for number, (rows, labels) in enumerate(batches):
            scale = 0.02 + 49.98 * number / max(1, len(batches) - 1)
            loss = F.cross_entropy(self.network(rows, present, scale), labels)
            for past in range(present):
                chosen = rows[torch.randperm(rows.shape[0])[: self.replayed]]
                with torch.no_grad():
                    expected = self.teacher(chosen, past, scale)
                loss = loss + 0.7 / present * F.mse_loss(self.network(chosen, past, scale), expected)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                for embedding in self.network.embeddings:
                    embedding.clamp_(-6, 6)
