"""What trackers draw: the numbers in a run's events, each with its place on the axes of optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# The number that every logged step has, and nothing else.
OF_STEPS = "loss/total"
# Fields of an event whose mappings are curves, and the names of these.
_CURVES = {"loss": "loss", "rho": "rho", "rows": "replayed rows"}


@dataclass(frozen=True)
class Point:
    """Numbers at one moment.

    Attributes:
        stage, task: The stage, from 1, and the task that it learns.
        step: Optimiser steps of the stage so far.
        run_step: Of the run.
        time: Unix seconds.
        values: By name; those of a finished stage are called `score/…`.
        ends_stage: These are a finished stage's scores.
    """

    stage: int
    task: str
    step: int
    run_step: int
    time: float
    values: dict[str, float]
    ends_stage: bool = False


class Axes:
    """Follows a run's events from the first on, and counts its steps."""

    def __init__(self) -> None:
        self._stage, self._phase = 0, ""
        self._before_stage = self._before_phase = self._last = 0

    def point(self, event: Mapping[str, Any]) -> Point | None:
        """Return an event's numbers, or None where it has none to draw."""
        stage = event.get("stage")
        if not isinstance(stage, int):
            return None
        self._follow(stage, str(event.get("phase", self._phase)))
        kind = event.get("event")
        if kind == "step":
            self._last = self._before_phase + int(event["step"])
        values = {name: value for name, value in _values(event) if math.isfinite(value)}
        if kind not in ("step", "epoch", "scores") or not values:
            return None
        time, task = float(event.get("time", 0.0)), str(event.get("task", ""))
        return Point(stage, task, self._last, self._before_stage + self._last, time, values, kind == "scores")

    def _follow(self, stage: int, phase: str) -> None:
        if stage != self._stage:
            self._before_stage += self._last
            self._stage, self._phase, self._before_phase, self._last = stage, phase, 0, 0
        elif phase != self._phase:
            self._phase, self._before_phase = phase, self._last


def _values(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    kind = event.get("event")
    if kind == "step":
        yield OF_STEPS, sum(event["loss"].values())
        for field, name in _CURVES.items():
            yield from ((f"{name}/{part}", float(value)) for part, value in (event.get(field) or {}).items() if _is_number(value))
        for field, name in (("gradient_norm", "gradient norm"), ("learning_rate", "learning rate")):
            if _is_number(event.get(field)):
                yield name, float(event[field])
        timing = event.get("timing") or {}
        yield from ((f"seconds a step/{part}", float(value)) for part, value in timing.get("seconds", {}).items())
        for field, name in (("users_per_s", "users a second"), ("memory_bytes", "memory bytes"), ("mfu", "mfu")):
            if _is_number(timing.get(field)):
                yield name, float(timing[field])
    elif kind == "epoch":
        yield from ((f"epoch loss/{part}", float(value)) for part, value in (event.get("loss") or {}).items())
        if _is_number(event.get("validation")):
            yield f"validation/{event.get('metric')}", float(event["validation"])
    elif kind == "scores":
        yield from ((f"score/{task}", float(value)) for task, value in event["scores"].items() if _is_number(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
