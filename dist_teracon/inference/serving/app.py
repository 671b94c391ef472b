"""The server without its HTTP: a method, a path, headers and a body in, a status and a body out."""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dist_teracon.errors import TeraconError, nearest
from dist_teracon.inference.serving import snapshot
from dist_teracon.inference.serving.batching import Batcher, Job
from dist_teracon.inference.serving.counters import CONTENT_TYPE, Counters
from dist_teracon.inference.serving.requests import PARSERS, Limits, ReloadRequest, Request, RequestError, parse
from dist_teracon.inference.serving.served import Served, Source
from dist_teracon.inference.serving.users import Users

_METHODS = {"/health": "GET", "/metrics": "GET", **dict.fromkeys(PARSERS, "POST")}


@dataclass(frozen=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


def _json(value: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value, allow_nan=False).encode(), {"content-type": "application/json", **named})


def _refused(error: TeraconError, **headers: str) -> Answer:
    status = error.status if isinstance(error, RequestError) else 400
    if status == 503:
        headers["retry_after"] = "1"
    return _json({"error": str(error)}, status, **headers)


class App:
    """Models under their names, and what answers requests.

    Args:
        served: The models.
        limits: What a request may have at most.
        token: What `Authorization: Bearer …` has to bring, in every request but those to `/health`; None for no token.
        snapshots: Folder of snapshots, one below it for each model.
        device: Where models that are loaded again compute.
    """

    def __init__(
        self, served: Sequence[Served], *,
        limits: Limits | None = None, token: str | None = None, snapshots: Path | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.models = {one.source.name: one for one in served}
        self.limits = Limits() if limits is None else limits
        self._token, self._snapshots, self._device = token, snapshots, device
        self._counters = Counters()
        self._batcher = Batcher(rows=self.limits.histories, waiting=self.limits.waiting, seen=self._counters.batch_rows.observe)
        self._loading, self._saving, self._closing = asyncio.Lock(), asyncio.Lock(), False

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        """Return the answer to a request that is refused before its body is read, else None; names of headers are in lower case."""
        answer = self._refusal(method, path, headers)
        if answer is not None:
            self._count(path, answer)
        return answer

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        if path != "/health" and not self._authorised(headers.get("authorization", "")):
            text = "authorization: expected the header 'Authorization: Bearer TOKEN' with this server's token"
            return _refused(RequestError(text, 401), www_authenticate="Bearer")
        if path not in _METHODS:
            hint = nearest(path, _METHODS)
            return _refused(RequestError(f"there is nothing at this path{hint} (there are: {', '.join(_METHODS)})", 404))
        if method != _METHODS[path]:
            return _refused(RequestError(f"{path}: expected {_METHODS[path]}, got {method[:20]}", 405), allow=_METHODS[path])
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and int(length[:20]) > self.limits.body:
            return self._too_large()
        if self._closing and path != "/health":
            return _refused(RequestError("the server is stopping", 503))
        return None

    def _authorised(self, header: str) -> bool:
        if self._token is None:
            return True
        scheme, _, given = header.partition(" ")
        # compared as bytes and in constant time, so that the time of an answer tells nothing of the token
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token.encode())
        return same and scheme.lower() == "bearer"

    def _too_large(self) -> Answer:
        return _refused(RequestError(f"the request is larger than {self.limits.body} bytes; send several", 413))

    def too_large(self, path: str) -> Answer:
        """Return the answer to a body that turned out to be larger than the limit."""
        answer = self._too_large()
        self._count(path, answer)
        return answer

    def too_slow(self, path: str) -> Answer:
        """Return the answer to a body that does not arrive."""
        answer = _refused(RequestError("the request's body did not arrive in time", 408))
        self._count(path, answer)
        return answer

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request; whatever goes wrong is an answer too."""
        if (refused := self.refusal(method, path, headers)) is not None:
            return refused
        if len(body) > self.limits.body:
            return self.too_large(path)
        began = time.perf_counter()
        try:
            answer = await self._answer(path, body)
        except TeraconError as error:
            answer = _refused(error)
        except Exception:
            # the client learns nothing of the inside, the log everything
            traceback.print_exc(file=sys.stderr)
            answer = _json({"error": "an error inside of the server; its log has more"}, 500)
        self._counters.seconds.labels(path).observe(time.perf_counter() - began)
        self._count(path, answer)
        return answer

    def _count(self, path: str, answer: Answer) -> None:
        self._counters.requests.labels(path if path in _METHODS else "other", str(answer.status)).inc()

    async def _answer(self, path: str, body: bytes) -> Answer:
        if path == "/health":
            return _json({"status": "stopping" if self._closing else "ok", "models": self.about()}, 503 if self._closing else 200)
        if path == "/metrics":
            return Answer(200, self._metrics(), {"content-type": CONTENT_TYPE})
        request = parse(path, body, self.limits)
        served = self._served(request)
        if isinstance(request, ReloadRequest):
            return await self._reload(served, request)
        value = await self._batcher.submit(Job(served, request))
        self._counters.unknown.labels(served.source.name).inc(value["unknown"])
        return _json(value)

    def about(self) -> dict[str, dict[str, Any]]:
        """Return each model's fingerprint, stage and tasks."""
        return {name: served.about() for name, served in self.models.items()}

    def _served(self, request: Request) -> Served:
        if request.model is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if request.model is None:
            raise RequestError(f"model: is missing; expected one of {', '.join(self.models)}")
        if request.model not in self.models:
            hint = nearest(request.model, self.models)
            raise RequestError(f"model: there is none of this name{hint} (there are: {', '.join(self.models)})", 404)
        return self.models[request.model]

    async def _reload(self, served: Served, request: ReloadRequest) -> Answer:
        """Put a model in the place of another one. Until it is loaded the old one answers, and requests that came before end with it."""
        if self._loading.locked():
            raise RequestError("a model is being loaded already; try again later", 409)
        async with self._loading:
            try:
                new = await asyncio.to_thread(served.reloaded, request.stage, device=self._device)
            except TeraconError as error:
                raise RequestError(f"{error}; the model that was there goes on", 409) from None
            self.models[new.source.name] = new
            self._counters.reloads.labels(new.source.name).inc()
            return _json({"model": new.source.name, "before": served.model.fingerprint, **new.about()})

    def _metrics(self) -> bytes:
        counters = self._counters
        counters.waiting.set(self._batcher.waiting)
        counters.models.clear()
        for name, served in self.models.items():
            counters.users.labels(name).set(len(served.users))
            counters.evicted.labels(name).set(served.users.evicted)
            counters.models.labels(name, served.model.fingerprint, str(served.model.stage)).set(1)
        return counters.text()

    async def save(self) -> None:
        """Write the snapshots, if there is a place for them; requests go on meanwhile."""
        if self._snapshots is None:
            return
        async with self._saving:
            for name, served in list(self.models.items()):
                users = await self._batcher.between_batches(partial(list, served.users))
                await asyncio.to_thread(snapshot.save, self._snapshots / name, served.model.fingerprint, users)

    async def close(self) -> None:
        """Refuse further requests, finish those that are there, and write the snapshots."""
        self._closing = True
        await self._batcher.idle()
        await self.save()


def load_app(
    sources: Sequence[Source], *,
    users: int, limits: Limits, token: str | None = None, snapshots: Path | None = None, device: str = "cpu", restarted: bool = False,
) -> App:  # fmt: skip
    """Load models, and the users of their snapshots.

    Args:
        sources, limits, token, snapshots, device: As of `App`.
        users: Users remembered a model.
        restarted: The server has checked its snapshots already: one of another stage is that of a model that was loaded meanwhile.

    Raises:
        RunError: a run cannot be loaded.
        ConfigError: a snapshot is of another model.
        DataError: a snapshot is damaged.
    """
    served = []
    for source in sources:
        one = Served.load(source, Users(users), device=device)
        if snapshots is not None:
            snapshot.load(snapshots / source.name, one.model, one.users, of_any_model=restarted)
        served.append(one)
    return App(served, limits=limits, token=token, snapshots=snapshots, device=device)
