"""What was measured of a finished run later, kept in the run's folder for its report."""

from __future__ import annotations

from typing import Any

from dist_teracon import io
from dist_teracon.atomic import write_json

COLD_START = "cold_start.json"
DRIFT = "drift.json"


def note(run: str, name: str, key: str, value: dict[str, Any]) -> list[str]:
    """Keep a value in a run's folder, in place of an earlier one of the same key; returns what a person should hear of it.

    A run on a store is left as it is: its files belong to the states that its writer committed.
    """
    if not io.is_local(run):
        return [f"{run}: is on a store, so its report does not have this; --json FILE keeps it"]
    path = io.local_path(run).expanduser() / name
    before = io.read_json(str(path)) if path.is_file() else {}
    write_json(path, {**(before if isinstance(before, dict) else {}), key: value})
    return [f"{path}: `dist-teracon report {run}` shows it"]
