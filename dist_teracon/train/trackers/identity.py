"""Under which name a service knows a run, kept in the run's folder, so that a run that goes on is the same one there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dist_teracon import io
from dist_teracon.atomic import write_json

_FILE = "trackers.json"


def known_as(folder: Path, service: str, make: Callable[[], str]) -> str:
    """Return the run's name at a service, made at first use."""
    path = folder / _FILE
    names: dict[str, str] = io.read_json(str(path)) if path.exists() else {}
    if service not in names:
        names[service] = make()
        write_json(path, names)
    return names[service]
