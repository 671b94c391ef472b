"""The load generator against a small server: what answers, what refuses, and what closes a connection."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dist_teracon.bench.load import cpu_of_tree, http_request, put_under_load


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.bodies.append(body)
            if body == b"close":
                self.close_connection = True
                return
            self.send_response(200 if body == b"good" else 400)
            self.send_header("Content-Length", "70000")
            self.end_headers()
            self.wfile.write(b"x" * 70_000)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.bodies = []
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_answers_and_failures_are_counted(server):
    port = server.server_port
    requests = [http_request(port, "/encode", body) for body in (b"good", b"bad", b"good", b"close")]
    load = put_under_load(port, requests, rate=40, seconds=0.5, connections=2, server=os.getpid())
    assert len(server.bodies) == 20
    assert (len(load.milliseconds), load.failed) == (10, 10)
    assert all(0 < value < 5000 for value in load.milliseconds)
    assert 0 < load.client_s <= load.server_s + 0.02 <= cpu_of_tree(os.getpid()) + 0.02
    assert len(load.cells(0.5)) == 7
