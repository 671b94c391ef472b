"""Who holds a run or another folder: a process, as another one can recognise it, on the same machine or on another."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from dist_teracon.errors import TeraconError
from dist_teracon.locks import exclusive_lock


@dataclass(frozen=True)
class Holder:
    """A process.

    Attributes:
        token: Drawn by the process; no two are equal.
        machine: Hash of the machine's name, its boot and the process's container; machines are told apart by it, not named.
        pid: Of the process, there.
        started: When the process began, in the system's own count: another process may get the number later.
        since: When it took hold, seconds since 1970.
    """

    token: str
    machine: str
    pid: int
    started: str
    since: float

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process as a holder."""
        return cls(uuid4().hex, _machine(), os.getpid(), _start_of(os.getpid()), round(time.time(), 3))

    @classmethod
    def from_json(cls, value: Any) -> Holder | None:
        """Return a holder that was written as JSON; None where there is none."""
        try:
            return cls(str(value["token"]), str(value["machine"]), int(value["pid"]), str(value["started"]), float(value["since"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended: it ran on this machine, and there is no such process any more."""
        return self.machine == _machine() and _start_of(self.pid) != self.started

    def __str__(self) -> str:
        """Name it for a person."""
        where = "this machine" if self.machine == _machine() else f"machine {self.machine}"
        return f"process {self.pid} on {where}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


@contextmanager
def hold_folder(folder: Path, refusal: Callable[[str], TeraconError]) -> Iterator[Callable[[], bool]]:
    """Hold a local folder, which is there, for writing; it is free again when the process ends, however it ends.

    What it gives tells whether the folder still lies where it was.

    Args:
        folder: The folder; the lock is its file `.lock`.
        refusal: From who holds it, in brackets after a blank or nothing where it is not known, to the error to raise.

    Raises:
        TeraconError: `refusal`, where another process holds it.
    """

    def busy(note: str) -> TeraconError:
        try:
            holder = Holder.from_json(json.loads(note))
        except ValueError:
            holder = None
        return refusal(f" ({holder})" if holder else "")

    with exclusive_lock(folder / ".lock", busy, note=json.dumps(asdict(Holder.this_process()))) as is_there:
        yield is_there


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = str(Path("/proc/self/ns/pid").stat().st_ino)  # containers of one machine count their processes apart
    except OSError:
        boot = numbers = ""
    return hashlib.sha256(f"{platform.node()}/{boot}/{numbers}".encode()).hexdigest()[:8]


def _start_of(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
