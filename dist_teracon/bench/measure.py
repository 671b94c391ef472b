"""Measuring on shared, noisy machines: candidates alternate in one run, medians and quantiles of CPU-seconds (or a device's time)."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from dist_teracon.errors import RunError

_POLL_S = 0.01
_LAST_LINES = 15  # of a command that failed


@dataclass(frozen=True)
class Timing:
    """Times of one candidate, seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median."""
        return float(np.median(self.seconds))

    def quantile(self, share: float) -> float:
        """Return a quantile, as .2 or .8."""
        return float(np.quantile(self.seconds, share))


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1, clock: Callable[[], float] = time.process_time
) -> dict[str, Timing]:
    """Time candidates in turn, so that a machine's moods fall on all of them alike.

    Args:
        candidates: Name to what is timed.
        repeats: Rounds that count.
        warm_up: Rounds before them that do not.
        clock: Seconds; `time.process_time` counts this process's CPU time alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, run in candidates.items():
            began = clock()
            run()
            if turn >= warm_up:
                seconds[name].append(clock() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def median_ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times less `fast` took: the median of the rounds' ratios."""
    return float(np.median(np.asarray(slow.seconds) / np.asarray(fast.seconds)))


def use_one_thread() -> None:
    """Have this process's mathematics on one thread; call it before anything else imports torch."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    import torch

    torch.set_num_threads(1)


class PeakMemory:
    """The largest anonymous resident memory beyond that at the beginning, bytes, while something runs; as a context."""

    def __enter__(self) -> PeakMemory:
        self.start, self.most, self._stop = _resident(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.most = max(self.most, _resident() - self.start)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, _resident() - self.start)


def _resident() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) * 1024


def peak_memory() -> int:
    """Return this process's largest resident size so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def circumstances(*packages: str) -> str:
    """Return one line that a table of results carries: date, processor, cores, versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    return f"{time.strftime('%Y-%m-%d')}, {_processor()}, {cores} cores, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def run_to_its_end(command: Sequence[str], what: str, *, environment: Mapping[str, str] | None = None) -> None:
    """Run a command in a process of its own.

    Args:
        command: The command.
        what: What it is, for an error.
        environment: Its variables; this process's where it is left out.

    Raises:
        RunError: it failed; has the end of its messages.
    """
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RunError(f"{what} failed: " + "\n".join(ended.stderr.splitlines()[-_LAST_LINES:]))
