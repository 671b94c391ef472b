"""Ray clusters of this machine for tests: with free ports and token authentication, and stopped afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_START_S = 90.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        address: Of its head, as `RAY_ADDRESS` takes it.
        dashboard: URL of its job server, or nothing.
        environment: Variables with which programs reach it.
        folder: Where Ray keeps its files.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path
    _nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, *, cpus: int) -> subprocess.Popen[bytes]:
        """Start one more node on this machine; returns its process."""
        return self._start("--address", self.address, "--num-cpus", str(cpus))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes have joined."""
        until = time.monotonic() + _START_S
        while sum(b"Ray runtime started" in log.read_bytes() for log in self.folder.glob("node-*.log")) < count:
            assert time.monotonic() < until
            time.sleep(0.2)

    def remove_node(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node with all that runs on it, as when its machine is switched off."""
        _end(node, signal.SIGKILL)
        self._nodes.remove(node)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        number = len(list(self.folder.glob("node-*.log")))
        common = ["--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 << 20}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *common, *options]
        with (self.folder / f"node-{number}.log").open("wb") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self._nodes.append(node)
        return node

    def stop(self) -> None:
        """Stop every node."""
        for node in reversed(self._nodes):
            _end(node, signal.SIGTERM)
        self._nodes = []


@contextmanager
def ray_cluster(*, cpus: int, dashboard: bool = False, pythonpath: Path | None = None, bare: bool = False) -> Iterator[Cluster]:
    """Start a cluster of one node; yields it once it answers.

    Args:
        cpus: Of the node.
        dashboard: Whether it takes jobs.
        pythonpath: A folder from which its processes import first.
        bare: Leave out the PYTHONPATH of this process, as on a machine without this checkout.
    """
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # short: sockets lie below it, whose paths are limited
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    port, dashboard_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "RAY_worker_niceness": "0",  # Ray's own 15 leaves workers next to nothing beside other tests
    }  # fmt: skip
    if bare:
        environment.pop("PYTHONPATH", None)
    elif pythonpath is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(pythonpath), environment.get("PYTHONPATH"))))
    cluster = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}" if dashboard else "", environment, folder)
    options = ["--include-dashboard=false"]
    if dashboard:
        options = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        options += [f"--dashboard-agent-listen-port={free_port()}"]
    try:
        head = cluster._start(
            "--head", "--port", str(port), "--num-cpus", str(cpus), "--temp-dir", str(folder / "r"),
            f"--ray-client-server-port={free_port()}", *options,
        )  # fmt: skip
        _wait_for(head, port, folder)
        if dashboard:
            _wait_for(head, dashboard_port, folder)
        cluster.environment = {**environment, "RAY_ADDRESS": cluster.address}
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(head: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    until = time.monotonic() + _START_S
    log = folder / "node-0.log"
    while time.monotonic() < until:
        with socket.socket() as probe:
            # a port that answers is not enough: the head prints this once its own node has joined
            if probe.connect_ex(("127.0.0.1", port)) == 0 and b"Ray runtime started" in log.read_bytes():
                return
        if head.poll() is not None:
            break
        time.sleep(0.2)
    raise AssertionError(f"no cluster: {log.read_text()[-3000:]}")


def _end(node: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a node's process and everything that it started."""
    try:
        family = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if how == signal.SIGKILL:
        for process in family:  # the raylet first would start what others miss
            _signal(process, how)
    node.send_signal(how)
    try:
        node.wait(5)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
    for process in family:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, how: signal.Signals) -> None:
    try:
        process.send_signal(how)
    except psutil.NoSuchProcess:
        return
