"""`dist-teracon bench serve`: a served model under load on loopback at rising rates, and an event added against a history encoded."""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dist_teracon.arguments import as_count, as_positive
from dist_teracon.bench.measure import alternate, circumstances, markdown_table, median_ratio
from dist_teracon.errors import RunError
from dist_teracon.inference.model import PretrainedModel, from_pretrained

_START_S = 180.0


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench serve", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of the run that is served")
    parser.add_argument("--task", default="shared", help="whose vectors, or for /predict whose labels (shared)")
    parser.add_argument("--paths", nargs="+", default=["/encode", "/events"], choices=("/encode", "/events", "/predict"))
    parser.add_argument("--rates", nargs="+", type=as_positive, default=[50, 100, 200, 400], metavar="N", help="requests a second")
    parser.add_argument("--seconds", type=as_positive, default=10.0, help="of each rate (10)")
    parser.add_argument("--events", type=as_count, default=30, help="of a history (30)")
    parser.add_argument("--connections", type=as_count, default=16, help="of the client (16)")
    parser.add_argument("--repeats", type=as_count, default=50, help="of an event against a history of 100 (50)")
    options = parser.parse_args(arguments)
    model = from_pretrained(options.run)
    names = [name for name in model.items.names if name is not None]
    histories = [list(np.random.default_rng(seed).choice(names, options.events)) for seed in range(256)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = []
    with _server(options.run, port):
        for path in options.paths:
            for rate in options.rates:
                bodies = [_body(path, options.task, history, user) for user, history in enumerate(histories)]
                load = _load(port, path, bodies, rate=rate, seconds=options.seconds, connections=options.connections)
                rows.append([path, f"{rate:g}", *load.cells(options.seconds)])
    print(markdown_table(["path", "asked, 1/s", "answered, 1/s", "p50 ms", "p99 ms", "largest ms", "failed"], rows))
    print()
    print(_extending(model, options.task, repeats=options.repeats))
    print(f"\n{options.events} events, {options.connections} connections; {circumstances('ray', 'torch')}")


@contextmanager
def _server(run: str, port: int) -> Iterator[None]:
    """Have `dist-teracon serve` in a process of its own."""
    # its lines go to standard error, so that standard output has the tables alone
    process = subprocess.Popen([sys.executable, "-m", "dist_teracon.cli", "serve", run, "--port", str(port)], stdout=2)
    try:
        until = time.monotonic() + _START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RunError("bench serve: the server did not start; its messages stand above")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _body(path: str, task: str, history: list[str], user: int) -> bytes:
    if path == "/events":
        return json.dumps({"user": user, "items": history[:1], "task": task}).encode()
    return json.dumps({"histories": [history], "task": task}).encode()


@dataclass
class _Load:
    """What a rate gave: milliseconds from when a request was due to its answer, so that waiting for a free connection counts."""

    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0

    def cells(self, seconds: float) -> list[str]:
        if not self.milliseconds:
            return ["0", "-", "-", "-", str(self.failed)]
        p50, p99 = np.quantile(self.milliseconds, [0.5, 0.99])
        answered = len(self.milliseconds) / seconds
        return [f"{answered:.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{max(self.milliseconds):.1f}", str(self.failed)]


def _load(port: int, path: str, bodies: Sequence[bytes], *, rate: float, seconds: float, connections: int) -> _Load:
    """Send requests at a steady rate, whatever the answers do."""
    due: queue.SimpleQueue[tuple[float, bytes] | None] = queue.SimpleQueue()
    found, lock = _Load(), threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (entry := due.get()) is not None:
            at, body = entry
            try:
                connection.request("POST", path, body)
                answer = connection.getresponse()
                answer.read()
                good = answer.status == 200
            except (OSError, http.client.HTTPException):
                connection.close()
                good = False
            with lock:
                if good:
                    found.milliseconds.append((time.perf_counter() - at) * 1e3)
                else:
                    found.failed += 1
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        at = began + number / rate
        if (early := at - time.perf_counter()) > 0:
            time.sleep(early)
        due.put((at, bodies[number % len(bodies)]))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    return found


def _extending(model: PretrainedModel, task: str, *, repeats: int) -> str:
    """Return the table of one event added against 100 events encoded, both without HTTP."""
    names = [name for name in model.items.names if name is not None]
    history = list(np.random.default_rng(0).choice(names, 100))
    state = model.state(history, task)
    timings = alternate(
        {"encode": lambda: model.encode([history], task), "extend": lambda: model.extend(state, history[0])}, repeats=repeats
    )
    ratio = median_ratio(timings["encode"], timings["extend"])
    rows = [["100 events encoded", f"{timings['encode'].median * 1e3:.2f}", ""]]
    rows.append(["one event added to them", f"{timings['extend'].median * 1e3:.2f}", f"{ratio:.1f}"])
    return markdown_table(["", "CPU ms", "times less"], rows)
