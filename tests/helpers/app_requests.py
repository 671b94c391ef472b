"""Requests to the server without its HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from dist_teracon.inference.serving.app import App


def post(app: App, path: str, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Return status and value of an answer."""
    answer = asyncio.run(app.handle("POST", path, headers or {}, json.dumps(fields).encode()))
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)
