"""moto's S3 server on loopback, in a process of its own, and a proxy before it that can fail for a while."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import s3fs

SECRET = "not-to-be-told-4711"
_CODE = (
    "import sys\nfrom moto.server import ThreadedMotoServer\n"
    "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\nserver.start()\n"
    "print(server.get_host_and_port()[1], flush=True)\nsys.stdin.read()\nserver.stop()\n"
)


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run the server; yields its port."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", _CODE], text=True, **pipes) as run:
        assert run.stdout is not None
        try:
            yield int(run.stdout.readline())
        finally:
            run.kill()


def environment(port: int) -> dict[str, str]:
    """Return the variables by which a process reaches the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip


def client(port: int) -> s3fs.S3FileSystem:
    """Return a file system of the server that caches nothing."""
    return s3fs.S3FileSystem(
        key="tester", secret=SECRET, client_kwargs={"region_name": "eu-central-1", "endpoint_url": f"http://127.0.0.1:{port}"},
        use_listings_cache=False, skip_instance_cache=True,
    )  # fmt: skip


class Proxy:
    """Passes connections on to the server; while `away`, it cuts those that are there and refuses new ones.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._server, self.away = port, False
        self._open: set[socket.socket] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self) -> None:
        """Be away from now on."""
        self.away = True
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def recover(self) -> None:
        """Pass connections on again."""
        self.away = False

    def close(self) -> None:
        """Stop."""
        self.fail()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self.away:
                connection.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server))
            self._open |= {connection, server}
            threading.Thread(target=self._pass_on, args=(connection, server), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, connection), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open -= {source}
        source.close()


@contextlib.contextmanager
def proxy_process(port: int) -> Iterator[tuple[int, Callable[[bool], None]]]:
    """Run a proxy in a process of its own; yields its port, and what makes it fail (True) or pass on again (False)."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, __file__, str(port)], text=True, **pipes) as run:
        assert run.stdin is not None and run.stdout is not None
        orders, answers = run.stdin, run.stdout

        def fails(away: bool) -> None:
            orders.write("fail\n" if away else "recover\n")
            orders.flush()
            answers.readline()

        try:
            yield int(answers.readline()), fails
        finally:
            run.kill()


if __name__ == "__main__":
    own = Proxy(int(sys.argv[1]))
    print(own.port, flush=True)
    for order in sys.stdin:
        own.fail() if order.strip() == "fail" else own.recover()
        print("done", flush=True)
