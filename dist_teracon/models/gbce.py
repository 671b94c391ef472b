"""Generalised binary cross-entropy: a head learns its target against k labels drawn evenly (gSASRec; Petrov and Macdonald, 2023).

Of few drawn negatives, plain binary cross-entropy makes a model too sure of its targets. gBCE raises the target's probability to the
power β: with α = k / (|Y| − 1) the share of labels that are drawn, `β = α · (t · (1 − 1/α) + 1/α)`. The calibration t = 0 gives β = 1,
plain binary cross-entropy; t = 1 gives β = α, at whose minimum the probabilities are true ones.

Legend: E examples, C channels, Y labels, K drawn labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.data.batches import to_device
from dist_teracon.models.heads import Head, in_chunks, rows_at_once
from dist_teracon.models.sampled_softmax import seed_of_step


@dataclass(frozen=True)
class BinaryNegatives:
    """What labels a task's head is trained against with binary cross-entropy.

    All examples of a step, on all ranks and micro-batches, share one draw without repeats; the publication draws for each sequence.

    Attributes:
        count: How many labels to draw; at most |Y| − 1 are.
        calibration: t.
        labels: |Y|.
        seed: Of the draws.
    """

    count: int
    calibration: float
    labels: int
    seed: int

    @property
    def power(self) -> float:
        """β."""
        alpha = self.drawn / max(1, self.labels - 1)
        return alpha * (self.calibration * (1 - 1 / alpha) + 1 / alpha)

    @property
    def drawn(self) -> int:
        """K."""
        return max(1, min(self.count, self.labels - 1))

    def start(self, counts_Y: Tensor) -> Tensor:
        """Return the biases [Y] of least expected loss where nothing is known of a user: the labels' log-odds in the training examples.

        Else a head of many labels would have to lower all of its logits first, by a way that Adam takes a rate's step at a time.

        Args:
            counts_Y: How often each label is a training target; each half an example more, so that none is at −∞.
        """
        share_Y = (counts_Y.double() + 0.5) / (counts_Y.double().sum() + 0.5 * self.labels + 0.5)
        return (self.power * share_Y / ((1 - share_Y) * self.drawn / self.labels)).log()

    def loss(self, head: Head, hidden_EC: Tensor, labels_E: Tensor, *, epoch: int, step: int) -> Tensor:
        """Sum of the examples' losses; what is drawn follows from seed, epoch and step."""
        generator = torch.Generator().manual_seed(seed_of_step(self.seed, epoch, step))
        # a permutation of a vocabulary of many millions would cost more than the loss
        few = self.labels <= 64 * self.drawn
        drawn = torch.randperm(self.labels, generator=generator)[: self.drawn] if few else _apart(self.labels, self.drawn, generator)
        return gbce_sum(head, hidden_EC, labels_E, to_device(drawn, labels_E.device), self.power)


def _apart(labels: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw different labels of many, evenly: those that come twice are drawn again."""
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(labels, (count - len(drawn),), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn


def gbce_sum(head: Head, hidden_EC: Tensor, labels_E: Tensor, drawn_K: Tensor, power: float) -> Tensor:
    """Sum of `−1/(K + 1) · (β · log σ(o_y) + Σ_{j≠y} log(1 − σ(o_j)))` over examples; zero, and part of the graph, for none.

    Args:
        head: The head.
        hidden_EC: Representations.
        labels_E: Targets.
        drawn_K: Labels drawn for all examples; one that is an example's target does not count for it.
        power: β.
    """
    weight_KC, bias_K = head.rows(drawn_K), head.bias.index_select(0, drawn_K)

    def part(hidden: Tensor, rows: Tensor) -> Tensor:
        labels = labels_E[rows]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        own = (hidden.to(wide) * head.rows(labels).to(wide)).sum(1) + head.bias.index_select(0, labels).to(wide)
        # −log(1 − σ(o)) = softplus(o)
        others = F.softplus(F.linear(hidden, weight_KC, bias_K).to(wide)).masked_fill(labels[:, None] == drawn_K[None, :], 0)
        return (others.sum() - power * F.logsigmoid(own).sum()) / (drawn_K.shape[0] + 1)

    return in_chunks(part, rows_at_once(drawn_K.shape[0]), hidden_EC, torch.arange(labels_E.shape[0], device=labels_E.device))
