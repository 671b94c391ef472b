"""`dist-teracon serve`: models behind HTTP, by Ray Serve on this machine; what answers requests is `inference/serving/`.

One process holds the models, as it remembers users, and speaks HTTP itself; Ray Serve starts it, watches over it and starts it again.
Ray Serve's own proxy would hand each request from one process to another, which takes longer than a small model needs to answer it
(docs/using.md, How fast).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

from dist_teracon import io
from dist_teracon.console import Log
from dist_teracon.errors import ConfigError
from dist_teracon.inference.serving.app import load_app
from dist_teracon.inference.serving.http import Http
from dist_teracon.inference.serving.requests import Limits
from dist_teracon.inference.serving.served import Source
from dist_teracon.memory import one_heap, raise_malloc_thresholds

# A request's body has so long to arrive, a connection without one is kept so long, and the last answers have so long to be sent.
_BODY_S, _KEEP_ALIVE_S, _LAST_ANSWERS_S = 60.0, 75, 10
_BACKLOG = 2048
# A token that is shorter could be tried out.
_SHORTEST_TOKEN = 16
_APP, _DEPLOYMENT = "dist-teracon", "models"


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host, port: Where the server listens.
        token_file: A file with the token that requests have to bring.
        users: Users that are remembered for each model.
        snapshots: Folder where they are kept on disk; None to keep them in memory alone.
        snapshot_seconds: Time between two snapshots.
        limits: What a request may have at most.
        device: Where models compute.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    users: int = 10_000
    snapshots: Path | None = None
    snapshot_seconds: float = 300.0
    limits: Limits = field(default_factory=Limits)
    device: str = "cpu"


def read_token(path: Path) -> str:
    """Return the token of a file.

    Raises:
        ConfigError: the file cannot be read, or the token is shorter than 16 characters or has blanks or other characters than ASCII's.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has other characters than ASCII's"
        raise ConfigError(f"--token-file {path}: cannot be read ({reason})") from None
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {path}: expected a token of {_SHORTEST_TOKEN} characters or more without blanks; "
            f"this makes one: python -c 'import secrets; print(secrets.token_urlsafe(32))' > {path}"
        )
    return token


def serve(sources: Sequence[Source], options: ServeOptions, *, log: Log) -> None:
    """Serve models until SIGTERM or SIGINT.

    Raises:
        ConfigError: Ray Serve is not installed, two models have one name, the port is in use, the token is none, or a snapshot is of
            another model.
        RunError: a run cannot be loaded.
        DataError: a snapshot is damaged.
    """
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"models: {', '.join(twice)} is there twice; give each a name of its own, as old=runs/shop@2 new=runs/shop@3")
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("serve: needs Ray Serve, which is not installed: pip install 'dist-teracon[serve]'")
    token = None if options.token_file is None else read_token(options.token_file)
    _listen(options.host, options.port).close()
    # here first: a run that cannot be loaded is told before anything is started
    app = load_app(sources, users=options.users, limits=options.limits, snapshots=options.snapshots, device=options.device)
    about = app.about()
    del app
    if token is None and not _is_loopback(options.host):
        log(f"warning: {options.host} can be reached from outside and there is no --token-file: whoever reaches it is answered")
    with _ray():
        handle = _start(sources, options)
        # behind Ray's start, which takes these signals for itself
        with _stop_signals() as stop:
            for name, model in about.items():
                log(f"{name}: stage {model['stage']} ({', '.join(model['tasks'])}), fingerprint {model['fingerprint'][:12]}…")
            log(f"serving at http://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}; Ctrl-C stops it")
            while not stop.wait(options.snapshot_seconds):
                _snapshot(handle, log)
            log("stopping: what is being answered is finished")
            handle.close.remote().result()


class Models:
    """The process that holds the models: an `App`, and the HTTP server around it, both on this replica's event loop."""

    def __init__(self, sources: Sequence[Source], options: ServeOptions) -> None:
        import uvicorn

        raise_malloc_thresholds()
        # the token is read here: arguments of a deployment go through stores that are not made for secrets
        token = None if options.token_file is None else read_token(options.token_file)
        self._app = load_app(
            sources, users=options.users, limits=options.limits, token=token, snapshots=options.snapshots, device=options.device,
            restarted=True,
        )  # fmt: skip
        # what is there for good is no work for the garbage collector, whose passes make requests wait
        gc.collect()
        gc.freeze()
        config = uvicorn.Config(
            Http(self._app, body_seconds=_BODY_S), lifespan="off", ws="none", access_log=False, log_config=None, proxy_headers=False,
            server_header=False, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([_listen(options.host, options.port)]))

    def check_health(self) -> None:
        """Called by Ray Serve, which starts a process anew that raises here.

        Raises:
            RuntimeError: the HTTP server has ended.
        """
        if self._serving.done() and not self._server.should_exit:
            raise RuntimeError("the HTTP server has ended")

    async def save(self) -> None:
        """Write the snapshots."""
        await self._app.save()

    async def close(self) -> None:
        """Finish what is being answered and write the snapshots."""
        await self._app.close()
        self._server.should_exit = True
        await self._serving


def _start(sources: Sequence[Source], options: ServeOptions) -> Any:
    """Start Ray Serve and the models; returns the handle by which they are called."""
    from ray import serve as ray_serve
    from ray.serve.config import ProxyLocation
    from ray.serve.schema import LoggingConfig

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    try:
        ray_serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
        deployment: Any = ray_serve.deployment(
            Models, name=_DEPLOYMENT, num_replicas=1, logging_config=quiet,
            ray_actor_options={
                "num_cpus": 1, "num_gpus": 1 if options.device.startswith("cuda") else 0, "runtime_env": {"env_vars": one_heap()},
            },
        )  # fmt: skip
        return ray_serve.run(deployment.bind(tuple(sources), options), name=_APP, route_prefix=None)
    except RuntimeError as error:
        raise ConfigError(f"serve: Ray Serve does not start ({' '.join(str(error).split())})") from None


def _snapshot(handle: Any, log: Log) -> None:
    try:
        handle.save.remote().result()
    except Exception as error:
        log(f"warning: the snapshot was not written ({' '.join(str(error).split())[-300:]}); the server goes on")


@contextmanager
def _ray() -> Iterator[None]:
    """Have Ray on this machine, for this server alone and with a token of its own, stopped at the end."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray's own ports, some of which listen on every address, run what they are asked to
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    try:
        # Ray's workers are nice to others, 15 by default: any busy process beside them would make requests wait
        ray.init(
            address="local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, _node_ip_address="127.0.0.1",
            log_to_driver=True, logging_level=logging.ERROR, _system_config={"worker_niceness": 0},
        )  # fmt: skip
    except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise ConfigError(f"serve: Ray does not start on this machine ({' '.join(str(error).split())})") from None
    try:
        yield
    finally:
        from ray import serve as ray_serve

        # else Ray prints that the controller of Ray Serve, which it stops itself, was killed and will be tried again
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            ray_serve.shutdown()
            ray.shutdown()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second one ends the process as ever."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the port is in use, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: is in use on {host}; stop what listens there, or give another one") from None
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on ({io.redacted(error)})") from None
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
