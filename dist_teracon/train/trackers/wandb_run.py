"""A run on Weights & Biases. Project, mode and key are those of its own variables (`WANDB_PROJECT`, `WANDB_MODE`, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from dist_teracon.train.trackers.identity import known_as
from dist_teracon.train.trackers.points import OF_STEPS, Point


class WandbRun:
    """Logs by the steps of the whole run; a run that goes on is the same run there.

    Args:
        folder: The run's.
        run: Its name.
        config: As JSON values.
    """

    name = "wandb"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        own = folder / ".wandb"
        own.mkdir(exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "dist-teracon"), name=run, id=known_as(folder, self.name, lambda: uuid4().hex[:16]),
            resume="allow", dir=os.environ.get("WANDB_DIR", str(own)), config=dict(config),
        )  # fmt: skip
        self._last = _LastStep(own / "last_step")
        # of a run that goes on, what it has already; offline the library begins a file and does not look at the one before
        offline = getattr(self._run, "offline", False)
        self._logged = self._last.known + 1 if offline else int(getattr(self._run, "step", 0) or 0)

    def past(self, point: Point) -> None:
        """Leave a point out: it was logged then."""

    def take(self, point: Point) -> None:
        """Log a point that lies behind all that were logged."""
        # a run that stopped behind its last step has not logged yet what follows that step, as scores; nothing is added to past steps there
        behind_last = point.run_step == self._logged - 1 and OF_STEPS not in point.values
        if point.run_step >= self._logged or behind_last:
            self._run.log(_named(point), step=max(point.run_step, self._logged))
            self._last.note(point.run_step)

    def flush(self) -> None:
        """Do nothing: the library sends by itself."""

    def close(self, *, failed: bool) -> None:
        """Finish the run there."""
        self._last.close()
        self._run.finish(exit_code=int(failed))


class _LastStep:
    """The last step that was logged from this machine, in a file that a kill does not take away.

    Attributes:
        known: That of the processes before; −1 for none.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self.known = int(os.read(self._file, 40))
        except ValueError:
            self.known = -1

    def note(self, step: int) -> None:
        os.pwrite(self._file, f"{step:<20}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._file)


def _named(point: Point) -> dict[str, float]:
    return {**point.values, "stage": point.stage}
