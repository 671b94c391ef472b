"""Dynamic batches: what came in while the model was computing is computed together next.

A request that finds the model idle does not wait for others, and the busier the model is, the larger batches are; no time is set.

A batch that takes some milliseconds is computed in the event loop's own thread. Handing it to another one takes as long again: two
threads change places at each of the model's many short operations, and each begins with the other's data in the caches. A longer batch,
and one of whose kind nothing is known yet, has a thread of its own, so that the loop goes on answering.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from dist_teracon.errors import TeraconError
from dist_teracon.inference.serving.requests import EncodeRequest, EventsRequest, PredictRequest, RequestError
from dist_teracon.inference.serving.served import Served

# So long the event loop may stand still.
_SHORT_S = 0.010


@dataclass(frozen=True)
class Job:
    """A request for a model; the model stays the one that it came for, also if another takes its name meanwhile."""

    served: Served
    request: EncodeRequest | PredictRequest | EventsRequest

    @property
    def size(self) -> int:
        """Rows that are computed."""
        return 1 if isinstance(self.request, EventsRequest) else len(self.request.histories)

    @property
    def events(self) -> int:
        """Events that are read."""
        request = self.request
        if isinstance(request, EventsRequest):
            return 1 + len(request.items) + len(request.history or ())
        return sum(map(len, request.histories))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for jobs that are computed together."""
        request, model = self.request, id(self.served)
        if isinstance(request, EncodeRequest):
            return model, "encode", request.task, request.shared
        if isinstance(request, PredictRequest):
            return model, "predict", request.task, request.top, request.exclude_seen, request.candidates, request.normalise
        return model, "events", request.task, request.shared, request.at


def run_jobs(jobs: Sequence[Job]) -> list[dict[str, Any] | Exception]:
    """Compute jobs, those of equal keys together; returns each one's answer, or the error that it alone would have."""
    groups: dict[Any, list[int]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault(job.key, []).append(place)
    answers: dict[int, dict[str, Any] | Exception] = {}
    for places in groups.values():
        try:
            found = _together([jobs[place] for place in places])
        except TeraconError as error:
            found = [error] if len(places) == 1 else [answer for place in places for answer in run_jobs([jobs[place]])]
        except Exception as error:
            found = [error] * len(places)
        answers |= dict(zip(places, found, strict=True))
    return [answers[place] for place in range(len(jobs))]


def _together(jobs: Sequence[Job]) -> Sequence[dict[str, Any] | Exception]:
    served, first = jobs[0].served, jobs[0].request
    if isinstance(first, EncodeRequest):
        return served.encode([job.request for job in jobs if isinstance(job.request, EncodeRequest)])
    if isinstance(first, PredictRequest):
        return served.predict([job.request for job in jobs if isinstance(job.request, PredictRequest)])
    return served.events([job.request for job in jobs if isinstance(job.request, EventsRequest)])


class Batcher:
    """Computes jobs one batch at a time, in the order in which they came; short batches in the loop's thread, longer ones in their own.

    Args:
        rows: Rows of a batch, at most; a job that is larger is a batch of its own.
        waiting: Jobs that may wait.
        seen: Told the rows of every batch.
    """

    def __init__(self, *, rows: int, waiting: int, seen: Callable[[int], object] = lambda _: None) -> None:
        self._rows, self._most_waiting, self._seen = rows, waiting, seen
        self._waiting: deque[tuple[Job, asyncio.Future[dict[str, Any]]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._running: asyncio.Task[None] | None = None
        self._calls = 0  # that are in the thread, or wait for it
        self._paces = _Paces()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    async def submit(self, job: Job) -> dict[str, Any]:
        """Return a job's answer, or raise its error.

        Raises:
            RequestError: 503: too many jobs wait.
        """
        if len(self._waiting) >= self._most_waiting:
            raise RequestError(f"{self._most_waiting} requests wait already; try again later", 503)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def between_batches(self, call: Callable[[], Any]) -> Any:
        """Call a function in the model's thread, while no batch is computed."""
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._calls -= 1

    async def _computed(self, jobs: Sequence[Job]) -> list[dict[str, Any] | Exception]:
        # what a snapshot reads in the thread, a batch beside it would change
        if self._calls or self._paces.expected(jobs) > _SHORT_S:
            answers, seconds = await self.between_batches(partial(_timed, jobs))
        else:
            answers, seconds = _timed(jobs)
        if not any(isinstance(answer, Exception) for answer in answers):
            self._paces.note(jobs, seconds)
        return answers

    async def idle(self) -> None:
        """Wait until nothing is left to compute."""
        while self._running is not None and not self._running.done():
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft()]
            rows = taken[0][0].size
            while self._waiting and rows + self._waiting[0][0].size <= self._rows:
                taken.append(self._waiting.popleft())
                rows += taken[-1][0].size
            wanted = [(job, future) for job, future in taken if not future.cancelled()]
            if not wanted:
                continue
            self._seen(sum(job.size for job, _ in wanted))
            answers = await self._computed([job for job, _ in wanted])
            for (_, future), answer in zip(wanted, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def _timed(jobs: Sequence[Job]) -> tuple[list[dict[str, Any] | Exception], float]:
    # of this thread alone: what it waits for others is not the batch's
    began = time.thread_time()
    return run_jobs(jobs), time.thread_time() - began


class _Paces:
    """CPU seconds that batches took, by what was asked for and by events in powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}

    def expected(self, jobs: Sequence[Job]) -> float:
        """Return what a batch will take; infinity where it has a part of which none of its size was computed alone."""
        return sum(self._seconds.get(part, float("inf")) for part in _parts(jobs))

    def note(self, jobs: Sequence[Job], seconds: float) -> None:
        """Take note of what a batch of one part took: a longer time counts at once, shorter ones little by little."""
        part, *others = _parts(jobs)
        if not others:
            before = self._seconds.get(part, seconds)
            self._seconds[part] = max(seconds, before + (seconds - before) / 8)


def _parts(jobs: Sequence[Job]) -> list[Hashable]:
    events: Counter[tuple[str, type, str]] = Counter()
    for job in jobs:
        # one task's labels may be many more than another's
        events[job.served.source.name, type(job.request), job.request.task] += job.events
    return [(*kind, count.bit_length()) for kind, count in events.items()]
