"""HTTP around an `App`, as an ASGI application: what a server as uvicorn calls for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dist_teracon.inference.serving.app import Answer, App

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# What an `App` reads of a request's headers.
_HEADERS = (b"authorization", b"content-length")


class Http:
    """The ASGI application.

    Args:
        app: What answers.
        body_seconds: How long a request's body may take to arrive.
    """

    def __init__(self, app: App, *, body_seconds: float = 60.0) -> None:
        self._app, self._body_seconds = app, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the body of one that is refused is not read, nor is one that is too large to its end."""
        if scope["type"] != "http":
            return
        method, path, headers = scope["method"], scope["path"], _headers(scope)
        answer = self._app.refusal(method, path, headers)
        if answer is None:
            body = await self._body(path, receive)
            if body is None:
                return
            answer = body if isinstance(body, Answer) else await self._app.handle(method, path, headers, body)
        named = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        named.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": named})
        await send({"type": "http.response.body", "body": answer.body})

    async def _body(self, path: str, receive: Receive) -> bytes | Answer | None:
        """Return the body, or the answer to one that is too large or too slow; None where the client is gone."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._app.limits.body:
                        return self._app.too_large(path)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return self._app.too_slow(path)


def _headers(scope: Scope) -> dict[str, str]:
    # the first of several of a name counts
    return {name.decode(): value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in _HEADERS}
