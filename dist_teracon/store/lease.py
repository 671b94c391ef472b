"""One writer of a run on a store: a lease with a heartbeat, which another process takes over once the heartbeat has stopped.

    RUN/lease/00000007.json     the seventh lease: who holds it, how often it has beaten, whether it was given back

Every taking of the run is a new object with the next number, which only one process can create. Only its holder writes it again, so no
write depends on another's. A process that wants the run watches the newest lease by its own clock: if it changes, its holder lives, and
the process is refused; if it stays the same for as long as it lasts, the next lease is created. No two clocks are compared. A holder that
stood still (a machine suspended, a store out of reach) finds a newer lease than its own before it writes the next manifest, and stops.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from dist_teracon import io
from dist_teracon.console import Log, no_log
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.store.holder import Holder
from dist_teracon.store.objects import Objects

LASTS_S = 30.0
# How many heartbeats a lease lasts without one; how many looks at a foreign lease in the time that it lasts.
_BEATS, _LOOKS = 3, 30
_FOLDER = "lease"


class Lease:
    """The right to write a run on a store.

    Args:
        objects: The run's objects.
        lasts_s: Seconds after the last heartbeat until another process may take the run.
        log: Takes a line where another holder has to be waited for.
    """

    def __init__(self, objects: Objects, *, lasts_s: float = LASTS_S, log: Log = no_log) -> None:
        self._objects, self._lasts_s, self._log = objects, lasts_s, log
        self.holder = Holder.this_process()
        self._number = self._beat = 0
        self._lost = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the run; waits for a holder whose heartbeat may have stopped.

        Raises:
            RunError: another process holds it.
        """
        newest = self._newest()
        if newest:
            self._await_end(newest)
        if not self._objects.create(self._key(newest + 1), self._record()):
            raise self._refusal(self._read(newest + 1))
        self._number = newest + 1
        self._thread.start()
        older = [number for number in self._numbers() if number < newest]
        self._objects.delete(self._key(number) for number in older)

    def check(self) -> None:
        """Check that the run is still this process's.

        Raises:
            RunError: another process has taken it over.
            DataError: the store fails.
        """
        if not self._lost and (newest := self._newest()) > self._number:
            self._lose(newest)
        if self._lost:
            raise RunError(self._lost)

    @property
    def lost(self) -> str:
        """What a person is told where another process has taken the run over, as far as it was noticed; else nothing."""
        return self._lost

    def release(self) -> None:
        """Give the run back, so that another process need not wait; no mistake where the store fails or the lease is lost."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        if self._number and not self._lost:
            with suppress(TeraconError, OSError):
                self._objects.write(self._key(self._number), self._record(released=True))

    # -- the heartbeat

    def _keep(self) -> None:
        while not self._stop.wait(self._lasts_s / _BEATS):
            try:
                if (newest := self._newest()) > self._number:
                    self._lose(newest)
                    return
                self._beat += 1
                self._objects.write(self._key(self._number), self._record())
            except Exception as error:  # the store may come back; whether the lease was lost meanwhile is checked before each manifest
                if not isinstance(error, TeraconError) and not io.is_store_error(error):
                    raise

    def _lose(self, newest: int) -> None:
        other = Holder.from_json(self._read(newest).get("holder"))
        self._lost = f"{self._objects.uri}: this run was taken over by {other or 'another process'}; this process stops"

    # -- other holders

    def _await_end(self, newest: int) -> None:
        """Return once the lease of that number has ended.

        Raises:
            RunError: its holder lives.
        """
        record = self._read(newest)
        holder = Holder.from_json(record.get("holder"))
        if record.get("released") or (holder is not None and holder.is_dead):
            return
        lasts_s = float(record.get("lasts_s", self._lasts_s))
        self._log(f"{self._objects.uri}: is held by {holder or 'another process'}; waiting up to {lasts_s:g} s for a sign of life")
        deadline = time.monotonic() + lasts_s
        while time.monotonic() < deadline:
            time.sleep(lasts_s / _LOOKS)
            now = self._read(newest)
            if now.get("released"):
                return
            if now != record or self._newest() > newest:
                raise self._refusal(self._read(self._newest()))

    def _refusal(self, record: dict[str, Any]) -> RunError:
        holder = Holder.from_json(record.get("holder")) or "another process"
        return RunError(f"{self._objects.uri}: {holder} is writing this run; wait for it, stop it, or name another place with --run")

    # -- objects

    def _numbers(self) -> list[int]:
        names = [name.removesuffix(".json") for name in self._objects.names(_FOLDER)]
        return sorted(int(name) for name in names if name.isdecimal())

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    @staticmethod
    def _key(number: int) -> str:
        return f"{_FOLDER}/{number:08d}.json"

    def _read(self, number: int) -> dict[str, Any]:
        """Return a lease; empty where it is gone or damaged, which counts as one that does not change."""
        try:
            value = json.loads(self._objects.read(self._key(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _record(self, *, released: bool = False) -> bytes:
        value = {"holder": asdict(self.holder), "beat": self._beat, "lasts_s": self._lasts_s, "released": released}
        return json.dumps(value).encode()
