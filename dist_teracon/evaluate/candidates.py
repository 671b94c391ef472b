"""Full ranking by counting: how many labels score higher than an example's target, how many the same (docs/method.md, Evaluation).

Legend: B rows (users), C channels, E examples, Y labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data import ragged
from dist_teracon.evaluate.metrics import BEYOND_EVERY_CUTOFF, Outcomes, joined
from dist_teracon.models.heads import Head, rows_at_once

# Labels compared at a time: several examples of one row share its logits, and only so many of them are laid out an example.
_LABELS_AT_ONCE = 1 << 16


def count_candidates(logits_BY: Tensor, labels_E: Tensor, *, rows_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Count for each example the labels that score higher than its own, and the others that score the same: two int64 [E].

    A score that is not a number counts as higher, and an own score that is none has more above it than any cutoff reaches, so that
    a broken model never wins.

    Args:
        logits_BY: Scores of rows.
        labels_E: The examples' labels.
        rows_E: The row that each example reads; None where examples and rows are the same.
    """
    labels = logits_BY.shape[1]
    rows = torch.arange(labels_E.shape[0], device=logits_BY.device) if rows_E is None else rows_E
    target = logits_BY[rows, labels_E][:, None]
    greater, equal = torch.full_like(labels_E, labels), torch.full_like(labels_E, -1)
    shared = rows_E is not None and not torch.equal(rows, torch.arange(logits_BY.shape[0], device=rows.device))
    for piece in logits_BY.split(_LABELS_AT_ONCE, dim=1):
        compared = piece[rows] if shared else piece
        # in 32 bits, which takes a third less time
        greater -= (compared <= target).sum(dim=1, dtype=torch.int32)
        equal += (compared == target).sum(dim=1, dtype=torch.int32)
    greater = greater.masked_fill(target.isnan().squeeze(1), BEYOND_EVERY_CUTOFF)
    return greater, equal.clamp_min(0)


@dataclass(frozen=True)
class LeftOut:
    """Labels that rows' rankings leave out: row r's are `labels[offsets[r]:offsets[r + 1]]`.

    Attributes:
        labels: int64 [P].
        offsets: int64 [B + 1].
    """

    labels: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def remove(self, logits_RY: Tensor, rows_R: Tensor) -> None:
        """Set the logits of what some rows leave out to minus infinity, in place."""
        rows = rows_R.numpy()
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        labels = torch.from_numpy(self.labels[ragged.positions(self.offsets[rows], lengths)])
        row_of_label = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths))
        logits_RY[row_of_label.to(logits_RY.device), labels.to(logits_RY.device)] = -torch.inf

    def holds(self, targets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which examples have a target that their row leaves out: a miss, whatever the model.

        Args:
            targets: integers [E], labels.
            rows: int64 [E], each example's row.
        """
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        example = np.repeat(np.arange(len(rows)), lengths)
        same = self.labels[ragged.positions(self.offsets[rows], lengths)] == targets[example]
        found: NDArray[np.bool_] = np.bincount(example[same], minlength=len(rows)) > 0
        return found


def items_left_out(
    values: NDArray[np.int32], offsets: NDArray[np.int64], label_of_item: NDArray[np.int64], *,
    earlier: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> LeftOut:  # fmt: skip
    """Return the labels that are items of rows' own sequences, or were taken before these.

    Args:
        values: int32 [N], item indices, row behind row.
        offsets: int64 [B + 1].
        label_of_item: int64 [items], each item's label, −1 for none.
        earlier: Ragged [B], labels of what was taken before; None where it is not known.
    """
    labels = label_of_item[values]
    found = ragged.keep(labels, offsets, labels >= 0)
    return LeftOut(*(found if earlier is None else ragged.side_by_side(found, earlier)))


def score_rows(
    head: Head, hidden_BC: Tensor, index_E: Tensor, labels_E: Tensor, *,
    seen_Y: Tensor | None = None, keep_logits: bool = False, left_out: LeftOut | None = None,
) -> Outcomes:  # fmt: skip
    """Score examples with a head, in chunks that never hold more logits than fit; logits are fp32 at least, as in bf16 half would tie.

    Args:
        head: The task's head.
        hidden_BC: Representations.
        index_E: The row that each example reads.
        labels_E: Targets, int64 on the CPU.
        seen_Y: Whether training saw a label; a target that it never saw is a miss. None for all.
        keep_logits: Whether the outcomes hold the class scores, which profile tasks' metrics read.
        left_out: Labels that do not take part in a row's ranking; as a target such a label is a miss.
    """
    dtype = torch.promote_types(hidden_BC.dtype, torch.float32)
    weight, bias, hidden_BC = head.weight.to(dtype), head.bias.to(dtype), hidden_BC.to(dtype)
    parts = []
    for chunk in torch.arange(index_E.shape[0]).split(rows_at_once(head.labels)):
        rows, example_row = torch.unique(index_E[chunk], return_inverse=True)
        logits = F.linear(hidden_BC[rows.to(hidden_BC.device)], weight, bias)
        if left_out is not None:
            left_out.remove(logits, rows)
        found = outcomes(logits, labels_E[chunk], rows_E=example_row, seen_Y=seen_Y, keep_logits=keep_logits)
        if left_out is not None:
            gone = logits[example_row.to(logits.device), labels_E[chunk].to(logits.device)].isneginf().cpu().numpy()
            found = replace(found, greater=np.where(gone, BEYOND_EVERY_CUTOFF, found.greater))
        parts.append(found)
    return joined(parts) if parts else no_outcomes(head.labels if keep_logits else None)


def outcomes(
    logits_BY: Tensor, labels_E: Tensor, *, rows_E: Tensor | None = None, seen_Y: Tensor | None = None, keep_logits: bool = False
) -> Outcomes:
    """Return the outcomes of examples from their rows' logits; arguments as of `score_rows`."""
    device = logits_BY.device
    counts = count_candidates(logits_BY, labels_E.to(device), rows_E=None if rows_E is None else rows_E.to(device))
    greater, equal = (count.cpu() for count in counts)
    if seen_Y is not None:
        greater = greater.masked_fill(~seen_Y[labels_E], BEYOND_EVERY_CUTOFF)
    kept: NDArray[np.floating] | None = None
    if keep_logits:
        kept = (logits_BY if rows_E is None else logits_BY[rows_E.to(device)]).cpu().numpy()
    return Outcomes(labels_E.numpy(), greater.numpy(), equal.numpy(), kept)


def no_outcomes(classes: int | None) -> Outcomes:
    """Return the outcomes of no example, with class scores of so many classes where a number is given."""
    none = np.zeros(0, np.int64)
    return Outcomes(none, none, none, None if classes is None else np.zeros((0, classes), np.float32))
