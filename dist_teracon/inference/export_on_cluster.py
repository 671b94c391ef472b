"""An export's parts written by the workers of a Ray cluster: the same files, one by one, and the same way to go on.

A Ray Data pass over the numbers of the parts, as preparation makes them. What goes through Ray is a part's number (of events also its
users' histories); vectors are written where they are computed, each file whole, and a part's record last. So a stopped export goes on part
by part, on a cluster or on one machine, and its bytes are those of one machine with as many threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dist_teracon import io
from dist_teracon.console import Progress, no_log
from dist_teracon.data.open import SYNTHETIC
from dist_teracon.data.prepare.ray_workers import RayWorkers, connected
from dist_teracon.errors import DataError, TeraconError
from dist_teracon.inference.align import Alignment
from dist_teracon.inference.export_job import MANIFEST, ExportOptions, Job
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.model import PretrainedModel, from_pretrained
from dist_teracon.inference.out_folder import OutFolder
from dist_teracon.inference.sources import UserSource, of_dataset


def write_parts(job: Job, *, progress: Progress) -> None:
    """Write the parts that are not there yet.

    Raises:
        DataError: the cluster does not answer, a worker failed, or workers do not see the run or the data.
    """
    waiting = [number for number in range(job.source.parts) if not job.is_written(number)]
    events = job.source.name["kind"] == "events"
    pieces = [(number, job.source.histories(number) if events else None) for number in waiting]
    work = _PartWriter(
        _place(job.model.run), job.model.stage, str(job.model.device), job.model.fingerprint,
        None if events else _place(str(job.source.name["uri"])), job.source.name, _place(job.folder.uri), job.options, job.kinds,
        job.alignment, job.model.moment,
    )  # fmt: skip
    with connected():
        RayWorkers("").map(work, pieces, done=lambda done: progress.update("exporting", done, len(pieces)))


def _place(uri: str) -> str:
    """Return a place that is the same in a worker's working folder."""
    return str(io.local_path(uri).expanduser().absolute()) if io.is_local(uri) and not uri.startswith(SYNTHETIC) else uri


@dataclass(frozen=True)
class _PartWriter:
    """What a worker does, and all that it needs to know."""

    run: str
    stage: int
    device: str
    fingerprint: str
    data: str | None
    source: dict[str, Any]
    out: str
    options: ExportOptions
    kinds: dict[str, str]
    alignment: Alignment | None
    moment: int

    def __call__(self, piece: tuple[int, Histories | None]) -> None:
        """Write a part."""
        number, given = piece
        try:
            model = _model(self.run, self.stage, self.device)
            model.moment = self.moment
            source = self._source(model, given)
            self._check(model, source)
            Job(model, source, OutFolder(self.out, MANIFEST), self.options, self.kinds, self.alignment).part(number)
        except DataError:
            raise
        except TeraconError as error:
            raise DataError(str(error)) from None

    def _check(self, model: PretrainedModel, source: UserSource) -> None:
        for found, expected, what, where in (
            (model.fingerprint, self.fingerprint, "model", self.run),
            (source.name["version"], self.source["version"], "data set", self.data),
        ):
            if found != expected:
                raise DataError(f"export --cluster: a worker finds another {what} at {where}; is it the same folder on all machines?")

    def _source(self, model: PretrainedModel, given: Histories | None) -> UserSource:
        if self.data is not None:
            return _data(model, self.data)
        assert given is not None and given.users is not None
        users = given.users
        return UserSource(self.source, 1, lambda _: users, lambda _: given, [])


@lru_cache(maxsize=1)
def _model(run: str, stage: int, device: str) -> PretrainedModel:
    """Return the model, loaded once a worker."""
    return from_pretrained(run, stage, device=device)


@lru_cache(maxsize=1)
def _data(model: PretrainedModel, uri: str) -> UserSource:
    return of_dataset(model, uri, log=no_log)
