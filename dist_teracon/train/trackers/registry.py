"""Where a run's curves are shown while it trains (`train.report_to`): a tracker is one file beside this one and one line in `TRACKERS`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dist_teracon import io
from dist_teracon.console import Log
from dist_teracon.errors import ConfigError
from dist_teracon.train.trackers.points import Axes, Point

# name -> module, class, the package that it needs, and what installs that
TRACKERS = {
    "tensorboard": ("tensorboard", "TensorBoard", "tensorboardX", "tensorboardX"),
    "wandb": ("wandb_run", "WandbRun", "wandb", "'dist-teracon[wandb]'"),
    "mlflow": ("mlflow_run", "MlflowRun", "mlflow", "'dist-teracon[mlflow]'"),
}


class Tracker(Protocol):
    """Takes a run's numbers as they come. It is made of the run's folder, the run's name and its configuration as JSON values."""

    name: str

    def past(self, point: Point) -> None:
        """Take a point that was logged before this process began; it may have been taken then already."""

    def take(self, point: Point) -> None:
        """Take a new point."""

    def flush(self) -> None:
        """Have everything so far shown: the run is saved now."""

    def close(self, *, failed: bool) -> None:
        """End."""


def check_trackers(names: Sequence[str], *, where: str) -> None:
    """Check that the packages of trackers are there.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        *_, package, install = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{where}: train.report_to: {name} needs the package {package}, which is not installed: pip install {install}, on every "
                "machine of the run, or leave it out"
            )


class Trackers:
    """A run's trackers; none of them can end the run but by a full disk.

    Args:
        names: Of the trackers.
        folder: The run's.
        run: What a person calls the run.
        config: As JSON values.
        log: Takes lines for a person.
    """

    def __init__(self, names: Sequence[str], folder: Path, *, run: str, config: Mapping[str, Any], log: Log) -> None:
        self._axes, self._log = Axes(), log
        self._open: list[Tracker] = []
        for name in names:
            module, kind, *_ = TRACKERS[name]
            try:
                self._open.append(getattr(importlib.import_module(f"{__package__}.{module}"), kind)(folder, run, config))
            except Exception as error:
                if isinstance(error, OSError) and name == "tensorboard":
                    raise
                self._warn(name, error)

    def past(self, event: Mapping[str, Any]) -> None:
        """Take an event that was logged before."""
        self._each("past", event)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a new event."""
        self._each("take", event)

    def flush(self) -> None:
        """Have everything so far shown."""
        for tracker in list(self._open):
            self._call(tracker, "flush")

    def close(self, *, failed: bool) -> None:
        """End all."""
        for tracker in list(self._open):
            self._call(tracker, "close", failed=failed)

    def _each(self, what: str, event: Mapping[str, Any]) -> None:
        if self._open and (point := self._axes.point(event)) is not None:
            for tracker in list(self._open):
                self._call(tracker, what, point)

    def _call(self, tracker: Tracker, what: str, *arguments: Any, **options: Any) -> None:
        try:
            getattr(tracker, what)(*arguments, **options)
        except Exception as error:  # of a service or its library, of whatever kind
            if isinstance(error, OSError) and tracker.name == "tensorboard":  # its files are the run's
                raise
            self._open.remove(tracker)
            self._warn(tracker.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        self._log(f"warning: train.report_to: {name} fails ({io.redacted(error)}); the run goes on without it")
