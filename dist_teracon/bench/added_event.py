"""What an event added to a state takes, beside a whole history encoded; for `bench use` and `bench serve`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_teracon.bench.measure import Timing, alternate, median_ratio
from dist_teracon.inference.model import PretrainedModel


@dataclass(frozen=True)
class AddedEvent:
    """CPU seconds of this process, in rounds in which all take turns.

    Attributes:
        events: Of the history: 100, or as many as the model reads.
        encode: The history encoded.
        extend: Its last event added to the state of those before.
        beyond: One event added to the state of a history as long as the model reads, which is cut then.
    """

    events: int
    encode: Timing
    extend: Timing
    beyond: Timing

    @property
    def ratio(self) -> float:
        """How many times less than encoding the history its last event takes."""
        return median_ratio(self.encode, self.extend)

    @classmethod
    def measured(cls, model: PretrainedModel, task: str, *, repeats: int, events: int = 100) -> AddedEvent:
        """Measure on a history of drawn items."""
        limit = model.reader.length
        names = [name for name in model.items.names if name is not None]
        history = list(np.random.default_rng(0).choice(names, limit))
        read = history[: min(events, limit)]
        shorter, full = model.state(read[:-1], task), model.state(history, task)
        timings = alternate(
            {
                "encode": lambda: model.encode([read], task),
                "extend": lambda: model.extend(shorter, read[-1]),
                "beyond": lambda: model.extend(full, read[0]),
            },
            repeats=repeats,
            warm_up=5,
        )
        return cls(len(read), timings["encode"], timings["extend"], timings["beyond"])
