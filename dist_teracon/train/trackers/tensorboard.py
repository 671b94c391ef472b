"""TensorBoard's event files in the run's folder: a TensorBoard run a stage, by its own steps, and one of the scores, by stages.

They follow from `events.jsonl`: what a resumed stage had drawn beyond its checkpoint is drawn anew, in a file that takes the place of the
old one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_teracon.data.schema import folder_of
from dist_teracon.train.trackers.points import Point

FOLDER = "tensorboard"
_SCORES = "scores"
# what TensorBoard looks for
_PREFIX = "events.out.tfevents."


class TensorBoard:
    """Writes the files.

    Args:
        folder: The run's.
        run, config: Not read.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        self._folder = folder / FOLDER
        self._files: dict[str, _EventFile] = {}
        # later names: a TensorBoard that has the old files open goes on to the new ones
        self._turn = 1 + max((_turn_of(path) for path in self._folder.glob(f"*/{_PREFIX}*")), default=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def past(self, point: Point) -> None:
        """Draw a point again: the files are made anew from the log."""
        self.take(point)

    def take(self, point: Point) -> None:
        """Draw a point."""
        name, step = f"{point.stage:02d}-{folder_of(point.task)}", point.step
        if point.ends_stage:
            name, step = _SCORES, point.stage
        elif name not in self._files:  # the files of stages before are whole
            for other in [other for other in self._files if other != _SCORES]:
                self._files.pop(other).close()
        if name not in self._files:
            self._files[name] = _EventFile(self._folder / name, self._turn)
        self._files[name].write(point.values, step=step, time=point.time)

    def flush(self) -> None:
        """Bring the files to disk."""
        for file in self._files.values():
            file.flush()

    def close(self, *, failed: bool) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _turn_of(path: Path) -> int:
    """Return how many times the files were begun until this one."""
    number = path.name.removeprefix(_PREFIX).partition(".")[0]
    return int(number) if number.isdigit() else 0


class _EventFile:
    def __init__(self, folder: Path, turn: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(folder / f"{_PREFIX}{turn:010d}.dist-teracon"))
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        numbers = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(self._event(wall_time=time, step=step, summary=self._summary(value=numbers)))

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()
