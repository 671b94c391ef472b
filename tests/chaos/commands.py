"""The command `train`, in processes that are forked from one which has imported everything: what a person would type again."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooks import Operations

from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.console import Console
from dist_teracon.errors import TeraconError
from dist_teracon.runtime import process_group
from dist_teracon.train.run import train
from dist_teracon.train.run_folder import RunFolder

# How long any command may take, in seconds; and how long the other processes may go on when one has failed.
LIMIT_S, GRACE_S = 300.0, 5.0


@dataclass(frozen=True)
class Place:
    """Where a command works.

    Attributes:
        run: Folder or URI of the run.
        cache: Where the data set is prepared on first use.
        scratch: Where a run on a store is written on this machine.
        log: Takes the standard error of every process.
        variables: Environment variables.
    """

    run: str
    cache: Path
    scratch: Path
    log: Path
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class At:
    """An operation of one rank, and what to do before it: a signal to itself, or a limit for the size of files."""

    activity: str
    number: int
    signal: int = signal.SIGKILL
    file_limit: int | None = None
    rank: int = 0

    def __str__(self) -> str:
        """Name it for a report."""
        return f"{self.activity} {self.number}" + (f" of rank {self.rank}" if self.rank else "")

    def act(self) -> None:
        """Do it."""
        if self.file_limit is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the log is a file too
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        else:
            os.kill(os.getpid(), self.signal)


class Command:
    """A command that is under way.

    Args:
        config: The run's configuration.
        place: Where it works.
        ranks: Processes.
        at: What happens to it.
        counts: File for the operations that rank 0 has counted.
    """

    def __init__(
        self, config: dict[str, Any], place: Place, *, ranks: int = 1, at: At | None = None, counts: Path | None = None
    ) -> None:  # fmt: skip
        port = _free_port()
        self.children = [fork(lambda rank=rank: _train(config, place, rank, ranks, port, at, counts)) for rank in range(ranks)]
        self.codes: dict[int, int] = {}
        self.stopped = False
        self._began, self._failed_at = time.monotonic(), 0.0

    def poll(self) -> bool:
        """Return whether all processes have ended; where one has failed the others are ended after a while, as launchers do."""
        for child in self.children:
            if child not in self.codes:
                found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
                if found and os.WIFSTOPPED(status):
                    self.stopped = True
                elif found:
                    self.codes[child] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if any(self.codes.values()) and not self._failed_at:
            self._failed_at = now
        late = (self._failed_at and now - self._failed_at > GRACE_S) or now - self._began > LIMIT_S
        for child in self.children if late else ():
            if child not in self.codes:
                os.kill(child, signal.SIGKILL)
        return len(self.codes) == len(self.children)

    def wait(self, until: Callable[[], bool] = lambda: False) -> list[int]:
        """Wait for the end, or until something else holds; returns the exit codes so far, negative for signals."""
        while not self.poll() and not until():
            time.sleep(0.01)
        return [self.codes[child] for child in self.children if child in self.codes]

    def send(self, number: int) -> None:
        """Send a signal to every process."""
        for child in self.children:
            if child not in self.codes:
                with suppress(ProcessLookupError):
                    os.kill(child, number)


def fork(action: Callable[[], int]) -> int:
    """Run an action in a process of its own; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        code = action()
    except BaseException:
        traceback.print_exc()
        code = 70
    os._exit(code)


def in_child(action: Callable[[], Any]) -> Any:
    """Return an action's result, as JSON has it, from a process of its own: libraries of stores do not go well with forks."""
    reading, writing = os.pipe()

    def write() -> int:
        with os.fdopen(writing, "w") as file:
            json.dump(action(), file)
        return 0

    child = fork(write)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError("a helper process failed; see its traceback above")
    return json.loads(text)


def what_lasts(place: Place) -> dict[str, str]:
    """Return the SHA-256 of everything in a finished run that does not depend on time."""

    def hashes() -> dict[str, str]:
        os.environ.update(place.variables)
        run = RunFolder.open_for_reading(place.run, place.scratch.parent / "views").path
        files: Iterable[Path] = (run / "stages").rglob("*")
        kept = [run / "results.json", *(path for path in files if path.name == "model.safetensors" or path.suffix == ".arrow")]
        return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}

    return in_child(hashes)  # type: ignore[no-any-return]


def count_events(place: Place) -> int:
    """Return how many events a finished run has logged."""

    def count() -> int:
        os.environ.update(place.variables)
        run = RunFolder.open_for_reading(place.run, place.scratch.parent / "views").path
        return (run / "events.jsonl").read_bytes().count(b"\n")

    return int(in_child(count))


def _train(
    config: dict[str, Any], place: Place, rank: int, ranks: int, port: int, at: At | None, counts: Path | None
) -> int:  # fmt: skip
    with place.log.open("a") as log:
        os.dup2(log.fileno(), 2)
    own = {"DIST_TERACON_CACHE": str(place.cache), "DIST_TERACON_SCRATCH": str(place.scratch), **place.variables}
    os.environ.update(own)
    if ranks > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
    here = at if at is not None and at.rank == rank else None
    roots = (place.run, str(place.cache), str(place.scratch))
    operations = Operations(roots, None if here is None else (here.activity, here.number), lambda: here.act() if here else None)
    operations.install()
    try:
        with process_group() as runtime:
            train(validate(RunConfig, config, where="chaos"), runtime, place.run, where="chaos", console=Console(active=runtime.is_main))
    except (TeraconError, OSError) as error:
        print(f"dist-teracon: error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    if counts is not None and not rank:
        operations.write(counts)
    return 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
