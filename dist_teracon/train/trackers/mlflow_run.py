"""A run on MLflow. Server and experiment are those of its own variables (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_teracon.train.trackers.identity import known_as
from dist_teracon.train.trackers.points import OF_STEPS, Point


class MlflowRun:
    """Logs by the steps of the whole run; a run that goes on is the same run there.

    Args:
        folder: The run's.
        run: Its name.
        config: As JSON values.
    """

    name = "mlflow"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client, self._metric = MlflowClient(), Metric
        self._id = known_as(folder, self.name, lambda: self._created(run, config))
        self._client.update_run(self._id, status="RUNNING")
        # a run that goes on has steps beyond its checkpoint there already
        history = self._client.get_metric_history(self._id, OF_STEPS)
        self._logged = max((metric.step for metric in history), default=-1)
        self._waiting: list[Any] = []

    def _created(self, run: str, config: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dist-teracon")
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        made = self._client.create_run(number, run_name=run)
        self._client.log_dict(made.info.run_id, dict(config), "config.json")
        self._client.log_param(made.info.run_id, "method", config["method"]["name"])
        self._client.log_param(made.info.run_id, "seed", config["seed"])
        return str(made.info.run_id)

    def past(self, point: Point) -> None:
        """Leave a point out: it was logged then."""

    def take(self, point: Point) -> None:
        """Log a point that lies behind all that were logged."""
        # a run that stopped behind its last step has not logged yet what follows that step, as scores
        if point.run_step < self._logged or (point.run_step == self._logged and OF_STEPS in point.values):
            return
        milliseconds = int(1000 * point.time)
        for name, value in {**point.values, "stage": float(point.stage)}.items():
            self._waiting.append(self._metric(re.sub(r"[^\w\-. /]", "_", name), value, milliseconds, point.run_step))
        if len(self._waiting) > 500:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        for first in range(0, len(self._waiting), 1000):  # so many a call at most
            self._client.log_batch(self._id, metrics=self._waiting[first : first + 1000])
        self._waiting = []

    def close(self, *, failed: bool) -> None:
        """Finish the run there."""
        self.flush()
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")
