"""Where a step's time goes, and which batches were last trained on: measured without making a step wait.

On a GPU the parts of a step are bounded by CUDA events, which are read when the losses are fetched, long after they have happened.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from dist_teracon.data.batches import PackedBatch
from dist_teracon.runtime import Runtime

# What a step consists of: the loader (waited for, and replayed rows put in), forward, backward, the exchange of gradients with the other
# ranks and waiting for them, the optimiser.
PARTS = ("data", "forward", "backward", "wait", "optimiser")
# So many batches are kept at most.
KEPT = 64


@dataclass
class StepWatch:
    """Measures the steps since it was last read, and keeps their batches.

    Attributes:
        device: Where steps are computed.
        steps, rows: Of the steps since the last `read`; rows with those that were replayed.
        checkpoints, checkpoint_seconds: Written since the last `read`, and how long steps waited for them.
        batches: The last batches that this rank trained on, its share with the replayed rows, oldest first.
    """

    device: torch.device
    steps: int = 0
    rows: int = 0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    batches: deque[PackedBatch] = field(default_factory=lambda: deque(maxlen=KEPT))
    _part: str = ""
    _since: float = 0.0
    _seconds: dict[str, float] = field(default_factory=dict)
    _whole: float = 0.0
    _events: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)

    def mark(self, part: str) -> None:
        """Begin a part of a step, and end the one before; an empty name ends it alone."""
        now, before = time.perf_counter(), self._part
        if before:
            self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
            self._whole += now - self._since
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((part, event))
        self._part, self._since = part, now

    def take(self, batch: PackedBatch) -> None:
        """Note the batch of the present step, as it is on the host."""
        self.steps += 1
        self.rows += batch.rows
        self.batches.append(batch)

    def saved(self, seconds: float) -> None:
        """Note a checkpoint, for which no step was taken for so long."""
        self.checkpoints += 1
        self.checkpoint_seconds += seconds

    def read(self, runtime: Runtime) -> dict[str, Any]:
        """Return the means over steps and ranks since the last call, and begin anew; all ranks call it, once the device has done the steps.

        Returns:
            `users_per_s` of all ranks together, `seconds` of a step and of its parts, `memory_bytes`, the largest of any rank: of a GPU
            what was allocated at most, of a CPU what the process has held at most. `checkpoints`, where any were written: their `count`,
            and the `seconds` for which this process took no step because of them.
        """
        seconds, steps, count = self._parts(), max(1, self.steps), len(PARTS)
        own = [seconds.get(part, 0.0) / steps for part in PARTS] + [self._whole / steps, self.rows / steps]
        of_rank = torch.zeros(count + 2 + runtime.world_size, dtype=torch.float64)
        of_rank[: count + 2] = torch.tensor(own, dtype=torch.float64)
        of_rank[count + 2 + runtime.rank] = _peak_memory(self.device)
        summed = runtime.all_reduce_sum(of_rank).tolist()
        means = [value / runtime.world_size for value in summed[: count + 1]]
        written = {"count": self.checkpoints, "seconds": self.checkpoint_seconds}
        self.steps = self.rows = self.checkpoints = 0
        self.checkpoint_seconds = 0.0
        self._seconds, self._whole = {}, 0.0
        self._events = self._events[-1:]
        return {
            "users_per_s": summed[count + 1] / means[-1] if means[-1] else 0.0,
            "seconds": {"step": means[-1], **dict(zip(PARTS, means[:-1], strict=True))},
            "memory_bytes": int(max(summed[count + 2 :])),
            **({"checkpoints": written} if written["count"] else {}),
        }

    def _parts(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return self._seconds
        found = {"data": self._seconds.get("data", 0.0)}  # the host waits for the loader, and the GPU computes meanwhile
        for (part, begun), (_, ended) in zip(self._events, self._events[1:], strict=False):
            if part and part != "data":
                found[part] = found.get(part, 0.0) + begun.elapsed_time(ended) / 1000
        return found


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
