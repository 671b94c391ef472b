"""Sampled softmax: a head's cross-entropy from its target and m sampled labels, for vocabularies of many millions.

With q the distribution that the negatives are drawn from, `Ẑ = exp(o_y) + 1/m · Σ_{j≠y} exp(o_j) / q_j` over the m draws (with
replacement; a draw that hits the target counts as zero) has the partition sum Z as its mean: this is the log-Q correction, the logit
of a negative being `o_j − log(m·q_j)`. The loss `log Ẑ − o_y` is biased downwards (Jensen), by less the larger m is.

Legend: E examples, C channels, Y labels, M negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.data.batches import to_device
from dist_teracon.models.heads import Head, in_chunks, rows_at_once

Distribution = Literal["log_uniform", "in_batch"]


class SampledLoss(Protocol):
    """A loss of a head that reads drawn labels alone."""

    @property
    def count(self) -> int:
        """How many are drawn for each example, beside its own."""

    def loss(self, head: Head, hidden_EC: Tensor, labels_E: Tensor, *, epoch: int, step: int) -> Tensor:
        """Sum of the examples' losses; what is drawn follows from seed, epoch and step."""


@dataclass(frozen=True)
class Negatives:
    """What negatives a task's head is trained with.

    Attributes:
        count: M.
        distribution: `log_uniform` over the labels in the order of their frequency, one draw a step for all ranks and micro-batches;
            `in_batch`: labels of other examples of the same rank's micro-batch, so what is drawn depends on the number of processes.
        train_counts: How often each label is a training target, int64 [Y].
        seed: Of the draws.
    """

    count: int
    distribution: Distribution
    train_counts: Tensor
    seed: int

    def loss(self, head: Head, hidden_EC: Tensor, labels_E: Tensor, *, epoch: int, step: int) -> Tensor:
        """Sum of the examples' sampled cross-entropies; what is drawn follows from seed, epoch and step."""
        generator = torch.Generator().manual_seed(seed_of_step(self.seed, epoch, step))
        if self.distribution == "log_uniform":
            ranks, log_q = log_uniform_draws(self.train_counts.shape[0], self.count, generator)
            drawn, own = to_device(self.by_frequency[ranks], labels_E.device), None
        else:
            own = torch.arange(labels_E.shape[0])
            if labels_E.shape[0] > self.count:
                own = torch.randperm(labels_E.shape[0], generator=generator)[: self.count]
            own = to_device(own, labels_E.device)
            drawn = labels_E[own]
            log_q = (self.train_counts.double() / self.train_counts.sum()).log()[drawn.cpu()]
        return sampled_cross_entropy_sum(head, hidden_EC, labels_E, drawn, to_device(log_q, hidden_EC.device), drawn_from_E=own)

    @cached_property
    def by_frequency(self) -> Tensor:
        """Labels from the most frequent to the least, int64 [Y]."""
        return torch.argsort(self.train_counts, descending=True, stable=True)


def log_uniform_draws(labels: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ranks 0 … Y − 1 with replacement, `q_k = log((k + 2) / (k + 1)) / log(Y + 1)`: int64 [M] and log q float64 [M]."""
    uniform = torch.rand(count, dtype=torch.float64, generator=generator)
    ranks = (torch.exp(uniform * math.log(labels + 1)).long() - 1).clamp_(0, labels - 1)
    return ranks, torch.log(torch.log1p(1 / (ranks.double() + 1)) / math.log(labels + 1))


def sampled_cross_entropy_sum(
    head: Head, hidden_EC: Tensor, labels_E: Tensor, drawn_M: Tensor, log_q_M: Tensor, *, drawn_from_E: Tensor | None = None
) -> Tensor:
    """Sum of `log Ẑ − o_y` over examples; zero, and part of the graph, for no examples.

    Args:
        head: The head.
        hidden_EC: Representations.
        labels_E: Targets.
        drawn_M: Labels drawn for all examples.
        log_q_M: Their log probabilities.
        drawn_from_E: For in-batch negatives, the example that each was taken from: an example's own label was not drawn for it.
    """
    draws = torch.full((labels_E.shape[0],), max(1, drawn_M.shape[0]), dtype=log_q_M.dtype, device=log_q_M.device)
    if drawn_from_E is not None:
        # an example whose label is among the drawn ones leaves one draw less for itself
        draws[drawn_from_E] = max(1, drawn_M.shape[0] - 1)
    weight_MC, bias_M = head.rows(drawn_M), head.bias.index_select(0, drawn_M)

    def part(hidden: Tensor, rows: Tensor) -> Tensor:
        labels = labels_E[rows]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        own = (hidden.to(wide) * head.rows(labels).to(wide)).sum(1) + head.bias.index_select(0, labels).to(wide)
        logits = F.linear(hidden, weight_MC, bias_M).to(wide)
        corrected = logits - (log_q_M[None, :] + draws[rows].log()[:, None]).to(wide)
        hit = labels[:, None] == drawn_M[None, :]
        everything = torch.cat([own[:, None], corrected.masked_fill(hit, float("-inf"))], dim=1)
        return (torch.logsumexp(everything, dim=1) - own).sum()

    return in_chunks(part, rows_at_once(max(1, drawn_M.shape[0])), hidden_EC, torch.arange(labels_E.shape[0], device=labels_E.device))


def seed_of_step(seed: int, epoch: int, step: int) -> int:
    """Return a generator's seed for a step, apart for any small numbers."""
    mixed = seed
    for part in (epoch, step):
        mixed = ((mixed ^ (part + 0x9E3779B97F4A7C15 + (mixed << 6) + (mixed >> 2))) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
