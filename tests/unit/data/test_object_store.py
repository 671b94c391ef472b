"""Data on S3: a real server on loopback, reached through s3fs with the settings that a user has in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_runs import run_command

from dist_teracon.data.dataset import Dataset

SECRET = "not-to-be-told-4711"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of moto's S3 server, in a process of its own."""
    code = (
        "import sys\nfrom moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\nserver.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\nsys.stdin.read()\nserver.stop()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as run:
        assert run.stdout is not None
        yield f"http://127.0.0.1:{int(run.stdout.readline())}"
        run.kill()


def environment(endpoint: str) -> dict[str, str]:
    own = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_MAX_ATTEMPTS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return {**os.environ, **own}


def run(endpoint: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as its user would."""
    return run_command(arguments, folder, environment=environment(endpoint))


@pytest.fixture(scope="module")
def store(server: str):
    options = {"endpoint_url": server, "key": "tester", "secret": SECRET, "client_kwargs": {"region_name": "eu-central-1"}}
    filesystem = fsspec.filesystem("s3", **options)
    filesystem.mkdir("bucket")
    return filesystem


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, store) -> Path:
    """Raw files, on disk and in the bucket."""
    folder = tmp_path_factory.mktemp("files") / "raw"
    folder.mkdir()
    draw = np.random.default_rng(3)
    rows = [",".join(["0"] * (9 - n) + [str(item) for item in draw.integers(1, 50, n)]) for n in draw.integers(2, 10, 3000)]
    (folder / "task1_history.csv").write_text("".join(f"{row}\n" for row in rows))
    (folder / "task2_gender.csv").write_text("".join(f"{row},,{n % 2}\n" for n, row in enumerate(rows)))
    store.put(str(folder) + "/", "bucket/raw/", recursive=True)
    return folder


@pytest.fixture
def flaky(server: str) -> Iterator[tuple[str, list[int]]]:
    """A proxy before the server that refuses so many of the requests for objects; the number is left in the list."""
    left = [0]

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if left[0] > 0 and ".csv" in self.path and "list-type" not in self.path:
                left[0] -= 1
                self.close_connection = True  # cut off in the middle: no answer at all
                return
            upstream = HTTPConnection("127.0.0.1", int(server.rsplit(":", 1)[1]))
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                own = {"transfer-encoding", "connection"} | (set() if self.command == "HEAD" else {"content-length"})
                if name.lower() not in own:
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}", left
    proxy.shutdown()


def test_a_bucket_is_as_good_as_a_disk(server, store, raw, tmp_path, monkeypatch):
    local = run(server, tmp_path, "prepare", "sequence-csv", str(raw), str(tmp_path / "out"))
    made = run(server, tmp_path, "prepare", "sequence-csv", "s3://bucket/raw", "s3://bucket/out")
    assert (local.returncode, made.returncode) == (0, 0), made.stderr
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(path.removeprefix("bucket/out/") for path in store.find("bucket/out")) == files
    assert all(store.cat(f"bucket/out/{path}") == (tmp_path / "out" / path).read_bytes() for path in files)
    again = run(server, tmp_path, "prepare", "sequence-csv", "s3://bucket/raw", "s3://bucket/out")
    assert again.returncode == 0
    assert "is there already" in again.stderr
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    remote, here = Dataset("s3://bucket/out"), Dataset(str(tmp_path / "out"))
    assert remote.info == here.info
    assert np.array_equal(remote.shard(3).values, here.shard(3).values)


def test_a_store_that_cuts_off_is_asked_again(flaky, store, raw, tmp_path):
    endpoint, left = flaky
    left[0] = 3
    made = run(endpoint, tmp_path, "prepare", "sequence-csv", "s3://bucket/raw", "s3://bucket/patient")
    assert made.returncode == 0, made.stderr
    assert left[0] == 0
    assert store.exists("bucket/patient/dataset.json")


def test_a_store_that_fails_for_good_is_told_in_one_line_and_nothing_is_seen(flaky, store, raw, tmp_path):
    endpoint, left = flaky
    left[0] = 10**9
    made = run(endpoint, tmp_path, "prepare", "sequence-csv", "s3://bucket/raw", "s3://bucket/never")
    assert made.returncode == 2, made.stderr
    assert "Traceback" not in made.stderr
    assert made.stderr.splitlines()[-1].startswith("dist-teracon: error: s3://bucket/raw/task1_history.csv: ")
    assert SECRET not in made.stdout + made.stderr
    assert not store.exists("bucket/never")
