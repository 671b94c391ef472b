"""`dist-teracon bench serve`: a served model under load on loopback at rising rates, and an event added against a history encoded."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from dist_teracon.arguments import as_count, as_positive
from dist_teracon.bench.added_event import AddedEvent
from dist_teracon.bench.load import http_request, put_under_load
from dist_teracon.bench.measure import circumstances, markdown_table, median_ratio
from dist_teracon.errors import RunError
from dist_teracon.inference.model import PretrainedModel, from_pretrained

_START_S = 180.0
_HEADER = [
    "path", "asked, 1/s", "answered, 1/s", "p50 ms", "p99 ms", "largest ms", "server CPU, ms each", "client CPU, ms each", "failed",
]  # fmt: skip


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
    with _server(options.run, port) as server:
        for path in options.paths:
            requests = [http_request(port, path, _body(path, options.task, *entry)) for entry in enumerate(histories)]
            load = partial(put_under_load, port, requests, connections=options.connections, server=server)
            load(rate=options.rates[0], seconds=1.0)  # what is made on first use is no part of the figures
            for rate in options.rates:
                found = load(rate=rate, seconds=options.seconds)
                rows.append([path, f"{rate:g}", *found.cells(options.seconds)])
    print(markdown_table(_HEADER, rows))
    print()
    print(_added(model, options.task, repeats=options.repeats))
    print(f"\n{options.events} events, {options.connections} connections; {circumstances('ray', 'torch')}")


@contextmanager
def _server(run: str, port: int) -> Iterator[int]:
    """Have `dist-teracon serve` in a process of its own, whose id is yielded."""
    # its lines go to standard error, so that standard output has the tables alone
    process = subprocess.Popen([sys.executable, "-m", "dist_teracon.cli", "serve", run, "--port", str(port)], stdout=2)
    try:
        until = time.monotonic() + _START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RunError("bench serve: the server did not start; its messages stand above")
            time.sleep(0.5)
        yield process.pid
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


def _body(path: str, task: str, user: int, history: list[str]) -> bytes:
    if path == "/events":
        return json.dumps({"user": user, "items": history[:1], "task": task}).encode()
    return json.dumps({"histories": [history], "task": task}).encode()


def _added(model: PretrainedModel, task: str, *, repeats: int) -> str:
    """Return the table of one event added against a history encoded, both without HTTP."""
    found = AddedEvent.measured(model, task, repeats=repeats)
    rows = [[f"{found.events} events encoded", f"{found.encode.median * 1e3:.2f}", ""]]
    rows.append(["their last one added to a state", f"{found.extend.median * 1e3:.2f}", f"{found.ratio:.1f}"])
    beyond = f"one more than the limit of {model.reader.length} added"
    rows.append([beyond, f"{found.beyond.median * 1e3:.2f}", f"{median_ratio(found.encode, found.beyond):.1f}"])
    return markdown_table(["", "CPU ms", "times less"], rows)
