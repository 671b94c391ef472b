"""One more event of one user, whose vector is read under one mask, by NumPy from the item's id to the vector.

At the size of one user's numbers most of what torch takes is preparation (`conv_step_row`), before and after the stack as in it.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from dist_teracon.models.backbone import Backbone
from dist_teracon.models.conv_step_row import Float, RowStepper
from dist_teracon.models.item_table import ItemTable

# Of the mean's variance, as `mean_of_sums` has it.
_EPS = 1e-8


class RowReader:
    """Reads an event by its item alone; with the weights as they are when this is made.

    Args:
        backbone: The backbone, whose item table is on a CPU.
        stepper: Of its stack.
    """

    def __init__(self, backbone: Backbone, stepper: RowStepper) -> None:
        self._table: Float = backbone.item_embedding.weight.detach().numpy()
        self._stepper, self._pooling = stepper, backbone.pooling

    @staticmethod
    def reads(backbone: Backbone) -> bool:
        """Whether an event of this backbone is no more than a row of its item table, and a vector no more than events.

        Not of a backbone that embeds or pools in a way of its own.
        """
        more = (backbone.event_embedding, backbone.item_features, backbone.user_features, backbone.history_features)
        own = type(backbone)
        as_ever = all(getattr(own, name) is getattr(Backbone, name) for name in ("embed", "embed_items", "encode"))
        return as_ever and type(backbone.item_embedding) is ItemTable and all(part is None for part in more)

    def read(
        self, items: NDArray[np.int32], kept: Float, total: NDArray[np.float64] | None, *, gone: np.int32 | None
    ) -> tuple[Float, Float, NDArray[np.float64] | None]:
        """Return the vector [W], what the next event needs [P, C], and the sum of the events' embeddings [C].

        Args:
            items: The longer history, the event being the last.
            kept: What this event needs.
            total: The sum before; None where no mean is read.
            gone: The event that left the history, as it has a length limit.
        """
        x = self._table[items[-1]]
        hidden, longer = self._stepper.step(x, kept)
        if total is None:
            return hidden.copy(), longer, None
        total = total + x
        if gone is not None:
            total -= self._table[gone]
        mean = total / len(items)
        mean -= np.add.reduce(mean) / len(mean)
        mean *= 1 / sqrt(mean.dot(mean) / len(mean) + _EPS)
        vector = np.add(hidden, mean, dtype=np.float32) if self._pooling == "mean" else np.concatenate([hidden, mean], dtype=np.float32)
        return vector, longer, total
