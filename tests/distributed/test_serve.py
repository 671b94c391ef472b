"""`dist-teracon serve` with its real server: one for the module, on a free port of loopback, and the curl lines of the page."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dist_teracon
from dist_teracon.cli import main

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
PAGE = (Path(__file__).parents[2] / "docs" / "using.md").read_text(encoding="utf-8")
TOKEN = "a-token-of-the-tests"
_START_S = 150.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from shop import make_shop_run, prepare_shop, write_events

    folder = tmp_path_factory.mktemp("shop")
    return make_shop_run(prepare_shop(write_events(folder / "events"), folder / "dataset"), folder / "run")


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    """Two stages of one run behind a token, with snapshots."""
    from ray_clusters import free_port

    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    (folder / "token").write_text(f"{TOKEN}\n")
    names = [f"shop={run}", f"old={run}@2"]
    options = ["--port", str(port), "--token-file", str(folder / "token"), "--snapshot", str(folder / "users")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dist_teracon.cli", "serve", *names, *options, "--max-body", "20000"],
            cwd=folder, stdout=file, stderr=file, env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
    try:
        until = time.monotonic() + _START_S
        while b"serving at http://127.0.0.1:" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield SimpleNamespace(port=port, process=process, log=log, users=folder / "users")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def ask(server, method, path, body=None, *, token=TOKEN, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    content = body if body is None or isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body)
    chunked = bool(headers and "Transfer-Encoding" in headers)
    connection.request(
        method,
        path,
        content,
        encode_chunked=chunked,
        headers={**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})},
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("content-type") == "application/json" else text


def test_answers_are_the_models(server, run):
    model, older = dist_teracon.from_pretrained(run), dist_teracon.from_pretrained(run, stage=2)
    histories = [["p01", "p05", "p07"], ["p03"]]
    for name, expected in (("shop", model), ("old", older)):
        status, value = ask(server, "POST", "/encode", {"model": name, "histories": histories, "task": "buys"})
        assert status == 200
        assert value["fingerprint"] == expected.fingerprint
        assert np.array_equal(np.array(value["vectors"], dtype=np.float32), expected.encode(histories, "buys"))
        _, value = ask(server, "POST", "/predict", {"model": name, "histories": histories, "task": "buys", "top": 4})
        assert value["labels"] == expected.predict(histories, "buys", top=4).labels
    for place, item in enumerate(["p01", "p05", "p07"]):
        _, value = ask(server, "POST", "/events", {"model": "shop", "user": "u1", "items": [item]})
        assert value["events"] == place + 1
    assert np.allclose(value["vector"], model.encode(histories[:1])[0], atol=1e-5)


def test_what_the_server_refuses(server):
    body = {"model": "shop", "histories": [["p01"]]}
    assert ask(server, "POST", "/encode", body, token="another-token-here") == (
        401,
        {"error": ask(server, "GET", "/metrics", token="")[1]["error"]},
    )
    assert ask(server, "POST", "/encode", body | {"tsk": "buys"})[0] == 400
    assert ask(server, "GET", "/encode")[0] == 405
    assert ask(server, "GET", "/nothing")[0] == 404
    large = {**body, "histories": [["p01"] * 5000]}
    assert ask(server, "POST", "/encode", large) == (413, {"error": "the request is larger than 20000 bytes; send several"})
    # without a length beforehand
    parts = (b" " * 1000 for _ in range(50))
    assert ask(server, "POST", "/encode", parts, headers={"Transfer-Encoding": "chunked"})[0] == 413
    assert ask(server, "POST", "/encode", body)[0] == 200
    assert 'dist_teracon_requests_total{path="/encode",status="413"} 2.0' in ask(server, "GET", "/metrics")[1]


def test_the_curl_lines_of_the_page(server):
    lines = re.findall(r"^curl .+$", PAGE, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        command = line.replace("localhost:8000", f"127.0.0.1:{server.port}").replace("$(cat token)", TOKEN)
        done = subprocess.run(["bash", "-c", command + " --fail-with-body -sS"], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "fingerprint" in done.stdout, command


def test_the_port_in_use_is_told(server, run, capsys):
    assert main(["serve", str(run), "--port", str(server.port)]) == 2
    assert f"--port {server.port}: is in use on 127.0.0.1" in capsys.readouterr().err


def test_a_switch_under_requests_drops_none(server, run):
    """A stage takes the place of another while requests come one after another on one connection."""
    newer, older = (dist_teracon.from_pretrained(run, stage=stage).fingerprint for stage in (3, 2))
    connection, found = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30), []
    body, headers = json.dumps({"model": "old", "histories": [["p01"]]}), {"Authorization": f"Bearer {TOKEN}"}
    command = ["curl", "-sS", f"http://127.0.0.1:{server.port}/reload", "-d", '{"model": "old", "stage": 3}']
    reload = subprocess.Popen([*command, "-H", f"Authorization: Bearer {TOKEN}"], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while (not found or found[-1] != newer) and time.monotonic() < until:
        connection.request("POST", "/encode", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200
        found.append(json.loads(answer.read())["fingerprint"])
    switched = json.loads(reload.communicate(timeout=30)[0])
    assert (switched["before"], switched["fingerprint"]) == (older, newer)
    assert set(found) <= {older, newer}
    assert found == sorted(found, key=lambda one: one == newer)


def test_a_stop_finishes_and_keeps_the_users(server, run):
    """The last test of the module: the server ends with 0, its users are on disk, and no log holds the token."""
    ask(server, "POST", "/events", {"model": "shop", "user": "last", "items": ["p01"]})
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    written = json.loads((server.users / "shop" / "snapshot.json").read_text())
    assert written["users"][-1] | {"states": None} == {"user": "last", "count": 1, "history": ["p01"], "states": None}
    assert TOKEN not in server.log.read_text()
    # and nothing of Ray's own end
    assert server.log.read_text().splitlines()[-1].endswith("stopping: what is being answered is finished")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0
