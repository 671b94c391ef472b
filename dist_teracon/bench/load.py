"""A load generator for `dist-teracon bench serve`: requests at a steady rate over connections that stay open, by asyncio alone.

It has one thread and parses as little as it can, since on a small machine it takes from the same cores as the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

_LAST_S = 30.0


@dataclass
class Load:
    """What a rate gave.

    Attributes:
        milliseconds: From when a request was due to its answer, so that waiting for a free connection counts.
        failed: Requests without an answer, or with another status than 200.
        client_s: CPU seconds of this process meanwhile.
        server_s: CPU seconds of the server's processes meanwhile; of a sleeping server they are what its management takes.
    """

    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0
    client_s: float = 0.0
    server_s: float = 0.0

    def cells(self, seconds: float) -> list[str]:
        """Return answers a second, p50, p99 and the largest time, CPU milliseconds of server and client an answer, and failures."""
        if not self.milliseconds:
            return ["0", *["-"] * 5, str(self.failed)]
        p50, p99 = np.quantile(self.milliseconds, [0.5, 0.99])
        answered = len(self.milliseconds)
        cpu = [f"{part * 1e3 / answered:.2f}" for part in (self.server_s, self.client_s)]
        return [f"{answered / seconds:.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{max(self.milliseconds):.1f}", *cpu, str(self.failed)]


def http_request(port: int, path: str, body: bytes) -> bytes:
    """Return the bytes of a POST request."""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def put_under_load(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int, server: int) -> Load:
    """Send requests in turn at a steady rate, whatever the answers do.

    Args:
        port: Of the server, on loopback.
        requests: Whole requests, see `http_request`.
        rate: Requests a second.
        seconds: How long.
        connections: How many are open at a time.
        server: Process id of the server, whose CPU time is counted with its children's.
    """
    before = time.process_time(), cpu_of_tree(server)
    load = asyncio.run(_Client(port, connections).run(requests, rate=rate, count=int(rate * seconds)))
    load.client_s, load.server_s = time.process_time() - before[0], cpu_of_tree(server) - before[1]
    return load


def cpu_of_tree(root: int) -> float:
    """Return the CPU seconds so far of a process and all processes below it that live."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(root)
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = process.cpu_times()
                total += spent.user + spent.system
    return total


class _Client:
    """Connections, and the requests that wait for one."""

    def __init__(self, port: int, connections: int) -> None:
        self._port, self._connections, self._load = port, connections, Load()
        self._idle: list[_Connection] = []
        self._due: deque[tuple[float, bytes]] = deque()

    async def run(self, requests: Sequence[bytes], *, rate: float, count: int) -> Load:
        for _ in range(self._connections):
            await self._connect()
        began = time.perf_counter()
        for number in range(count):
            at = began + number / rate
            if (early := at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._due.append((at, requests[number % len(requests)]))
            self._send()
        until = time.perf_counter() + _LAST_S
        while self._answered < count and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        self._load.failed += count - self._answered
        return self._load

    @property
    def _answered(self) -> int:
        return len(self._load.milliseconds) + self._load.failed

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            await asyncio.sleep(0.1)

    def _send(self) -> None:
        while self._idle and self._due:
            self._idle.pop().send(*self._due.popleft())

    def ready(self, connection: _Connection) -> None:
        """Take a connection that has nothing to do."""
        self._idle.append(connection)
        self._send()

    def answered(self, at: float, *, good: bool) -> None:
        """Count an answer."""
        if good:
            self._load.milliseconds.append((time.perf_counter() - at) * 1e3)
        else:
            self._load.failed += 1

    def lost(self, connection: _Connection) -> None:
        """Open another connection in the place of one that was closed."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._opening = asyncio.get_running_loop().create_task(self._connect())


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, client: _Client) -> None:
        self._client, self._buffer, self._at = client, bytearray(), 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._client.ready(self)

    def send(self, at: float, request: bytes) -> None:
        """Send a request that was due at this time."""
        self._at = at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, _ = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(self._buffer) < len(head) + len(end) + int(length or 0):
            return
        self._client.answered(self._at, good=head[9:12] == b"200")
        self._at = 0.0
        self._buffer.clear()
        self._client.ready(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._at:
            self._client.answered(self._at, good=False)
        self._client.lost(self)
