"""One optimiser step, and the losses of the steps since they were last fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dist_teracon.continual.method import Method
from dist_teracon.data.batches import PackedBatch
from dist_teracon.engine.contract import Engine
from dist_teracon.runtime import Runtime
from dist_teracon.train.step_watch import StepWatch


class LossModule(nn.Module):
    """What the engine wraps: a batch in, the method's loss terms and their sum out."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.trained = method.module()
        self._loss = method.loss

    def forward(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self._loss(batch)
        return torch.stack(list(terms.values())).sum(), terms


def train_step(
    engine: Engine, method: Method, batch: PackedBatch, *,
    runtime: Runtime, accumulation: int, watch: StepWatch | None = None, measure: Callable[[], None] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Take one optimiser step on this rank's share of a global batch.

    Every term is a local sum over a global count, and the engine averages gradients over ranks and micro-batches, so the loss is
    multiplied by both (docs/method.md, Retention).

    Args:
        engine, method: What is trained.
        batch: The share.
        runtime: This process's place in the world.
        accumulation: Micro-batches of the step.
        watch: Measures it.
        measure: Called once the gradients are there, before the optimiser takes them.

    Returns:
        This rank's part of each term, detached, on the device.
    """
    watch = watch or StepWatch(runtime.device)
    parts: dict[str, Tensor] = {}
    with record_function("replay"):
        batch = method.add_replay(batch)
    watch.take(batch)
    micros = batch.split(accumulation)
    for number, micro in enumerate(micros, start=1):
        watch.mark("forward")
        with record_function("forward"):
            total, terms = engine.loss(micro.to(runtime.device))
        watch.mark("backward")
        with record_function("backward"):
            engine.backward(total * (runtime.world_size * accumulation))
        for name, term in terms.items():
            parts[name] = parts[name] + term.detach() if name in parts else term.detach()
        watch.mark("optimiser")
        if measure is not None and number == len(micros):
            measure()
        with record_function("step"):
            engine.step()
    with record_function("project"):
        method.project(engine)
    watch.mark("data")
    return parts


class LossMeter:
    """Collects the terms of steps on the device and fetches them together, so that no step waits for them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._names: list[str] = []
        self._steps: list[Tensor] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in a step's terms."""
        self._names = list(terms)
        self._steps.append(torch.stack([term.float() for term in terms.values()]))

    def fetch(self) -> list[dict[str, float]]:
        """Return the steps taken in since the last call, each term summed over ranks."""
        if not self._steps:
            return []
        table = self._runtime.all_reduce_sum(torch.stack(self._steps))
        steps = [dict(zip(self._names, row, strict=True)) for row in table.tolist()]
        for step in steps:
            for name, value in step.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += len(steps)
        self._steps = []
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the steps fetched so far."""
        assert not self._steps, "fetch before the state is taken"
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._sums, self._count = dict(state["sums"]), state["count"]

    def means(self) -> dict[str, float]:
        """Return the mean over all steps fetched, and start anew."""
        means: dict[str, Any] = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means
