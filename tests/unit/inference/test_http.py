"""HTTP around the server, as uvicorn calls it: bodies in parts, bodies that are too large or do not come, clients that go away."""

from __future__ import annotations

import asyncio
import json

import pytest

from dist_teracon.inference.serving.app import App
from dist_teracon.inference.serving.http import Http
from dist_teracon.inference.serving.requests import Limits
from dist_teracon.inference.serving.served import Served, Source
from dist_teracon.inference.serving.users import Users


@pytest.fixture(scope="module")
def served(shop):
    return Served.load(Source("shop", str(shop.run)), Users(10))


def ask(app, parts, *, method="POST", path="/encode", headers=(), body_seconds=60.0, gone=False):
    """Return the status, headers and body of an answer, and how many parts of the body were read; None for no answer."""
    sent, left = [], [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if left and not gone:
        left[-1]["more_body"] = False

    async def receive():
        if left:
            return left.pop(0)
        if gone:
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(name, value) for name, value in headers]}
    asyncio.run(Http(app, body_seconds=body_seconds)(scope, receive, send))
    if not sent:
        return None, len(parts) - len(left)
    start, end = sent
    named = {name.decode(): value.decode() for name, value in start["headers"]}
    assert int(named["content-length"]) == len(end["body"])
    return (start["status"], named, end["body"]), len(parts) - len(left)


def test_a_body_in_parts(served):
    (status, headers, body), _ = ask(App([served]), [b'{"histories": ', b'[["p01"]]', b"}"])
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["vectors"] == served.model.encode([["p01"]]).tolist()


def test_what_is_refused_is_not_read(served):
    app = App([served], limits=Limits(body=20), token="a-token-of-the-tests")
    bearer = (b"authorization", b"Bearer a-token-of-the-tests")
    parts = [b"x" * 15] * 5
    assert ask(app, parts)[0][0] == 401
    for headers, read, status in (((), 0, 401), ((bearer, (b"content-length", b"75")), 0, 413), ((bearer,), 2, 413)):
        answer, count = ask(app, parts, headers=headers)
        assert (answer[0], count) == (status, read)
    # the first of two tokens counts
    assert ask(app, parts, headers=((b"authorization", b"Bearer another"), bearer))[0][0] == 401
    assert ask(app, [], method="GET", path="/nothing", headers=(bearer,))[0][0] == 404


def test_a_body_that_does_not_come(served):
    app = App([served])
    (status, _, body), _ = ask(app, [], body_seconds=0.05)
    assert (status, json.loads(body)) == (408, {"error": "the request's body did not arrive in time"})
    assert ask(app, [b'{"histories": [["p01"]]}'], gone=True)[0] is None
