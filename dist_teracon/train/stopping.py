"""SIGTERM, as before a machine is taken away, SIGHUP, as when the terminal closes, and SIGINT: a run is saved and ends.

The step is finished before. Where there is nothing to save but what is on disk already (pseudo-labels, evaluation of a stage), the run
ends at once. A second signal ends the process at once anywhere.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from dist_teracon.runtime import Runtime

# Exit statuses as a shell has them for a process that the signal ended.
_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
# Several processes ask one another at most so many optimiser steps apart.
ASK_EVERY = 16


class StopSignals:
    """Whether this process was asked to stop.

    Args:
        says: Whether to answer the signal with a line on standard error; in a distributed run only the main process does.
    """

    def __init__(self, *, says: bool = False) -> None:
        self.received = 0
        self._says, self._deferred = says, False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take a signal; the handler of all."""
        if self.received:
            if number == signal.SIGHUP:  # a terminal that closes may send several
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if self._says:
            when = "after this step and its checkpoint" if self._deferred else "at once"
            name = signal.Signals(number).name
            # not through the buffers of sys.stderr, which the signal may have interrupted
            with suppress(OSError):  # the terminal may be gone
                os.write(2, f"\ndist-teracon: {name}: stopping {when}, a second signal does not wait; the same command goes on\n".encode())
        if not self._deferred:
            raise _exit(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Take a signal without acting on it: `agreed` is asked at the points where the run can stop."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def agreed(self, runtime: Runtime) -> int:
        """Return the signal that any process of the group has received, or 0; all ranks call it."""
        if runtime.world_size == 1:
            return self.received
        flags = torch.tensor([float(self.received == number) for number in _STATUS])
        found = runtime.all_reduce_sum(flags)
        return next((int(number) for number, flag in zip(_STATUS, found, strict=True) if flag), 0)

    @staticmethod
    def stop(number: int) -> None:
        """End the run.

        Raises:
            SystemExit: after SIGTERM, with status 143, and SIGHUP, with 129.
            KeyboardInterrupt: after SIGINT.
        """
        raise _exit(number)


def _exit(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(_STATUS[signal.Signals(number)])


@contextmanager
def stop_signals(*, says: bool = True) -> Iterator[StopSignals]:
    """Take SIGTERM, SIGHUP and SIGINT for as long as a run lasts, but those that are ignored, as SIGHUP by `nohup`.

    In another thread than the first, whose owner takes them, nothing is changed.
    """
    signals = StopSignals(says=says)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in _STATUS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_input() -> None:
    """Ask this process to stop, as SIGTERM does, when its standard input ends: whoever started it, and held the other end, is gone."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="input", daemon=True).start()
