"""Where a training step's CPU time goes: the product's own functions, timed from outside while a benchmark runs."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dist_teracon.bench.our_stage import OurStage
from dist_teracon.continual import method as method_module
from dist_teracon.continual import teracon as teracon_module
from dist_teracon.data import loader as loader_module
from dist_teracon.models import nextitnet
from dist_teracon.models.network import Network

_ARITHMETIC = ("embedding and pooling", "blocks", "masks", "heads and losses", "backward", "optimiser")


class Clock:
    """CPU seconds by part; a part's time excludes that of the parts called within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[list[Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside for a part."""
        now = time.process_time()
        if self._open:
            self._open[-1][1] += now - self._open[-1][2]
        self._open.append([name, 0.0, now])
        try:
            yield
        finally:
            now = time.process_time()
            name, seconds, since = self._open.pop()
            self.seconds[name] += seconds + now - since
            if self._open:
                self._open[-1][2] = now

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its calls counted."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed

    def table(self, steps: int) -> list[list[str]]:
        """Return rows: part, milliseconds a step, share."""
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return [[name, f"{seconds / steps * 1e3:.2f}", f"{seconds / total:.1%}"] for name, seconds in ordered]

    def overhead(self) -> float:
        """Return the share of what is not arithmetic: data, engine, Python between the parts."""
        return sum(seconds for name, seconds in self.seconds.items() if name not in _ARITHMETIC) / sum(self.seconds.values())


@contextmanager
def profiled(clock: Clock, stage: OurStage) -> Iterator[None]:
    """Time the parts of a stage's epochs while inside."""
    inner = stage.engine._engine.optimizer
    torch_optimizer = getattr(inner, "optimizer", inner)
    patches: list[tuple[Any, str, str]] = [
        (nextitnet, "masked_dilated_conv_stack", "blocks"),
        (nextitnet, "build_layout", "layout"),
        (nextitnet.NextItNet, "forward", "embedding and pooling"),
        (Network, "mask_table", "masks"),
        (method_module, "cross_entropy_sum", "heads and losses"),
        (teracon_module, "squared_error_sum", "heads and losses"),
        (stage.method, "add_replay", "replayed rows"),
        (stage.method, "project", "clamp"),
        (stage.engine, "backward", "engine around backward"),
        (stage.engine, "step", "engine around the optimiser"),
        (stage.engine, "loss", "engine around forward"),
        (torch_optimizer, "step", "optimiser"),
        (torch.Tensor, "backward", "backward"),
        (stage, "epoch", "loop"),
    ]
    before = [(owner, name, owner.__dict__.get(name, _MISSING)) for owner, name, _ in patches]
    # batches are made here instead of by a thread, whose time would fall on whatever runs beside it
    ahead = vars(loader_module)["ahead"]
    try:
        for owner, name, part in patches:
            setattr(owner, name, clock.wrap(part, getattr(owner, name)))
        vars(loader_module)["ahead"] = functools.partial(_counted, clock)
        yield
    finally:
        vars(loader_module)["ahead"] = ahead
        for owner, name, value in before:
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_MISSING = object()
_END = object()


def _counted(clock: Clock, items: Iterator[Any], **_: int) -> Generator[Any]:
    """Pass items on, the time of making them counted as data; what `ahead` takes besides is its thread's."""
    make = clock.wrap("data", next)
    while (item := make(items, _END)) is not _END:
        yield item
