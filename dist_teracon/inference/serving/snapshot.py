"""Remembered users on disk: `states-….safetensors` with the states, and `snapshot.json`, written last, which names it and the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dist_teracon import io
from dist_teracon.atomic import atomic_path, atomic_write
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.serving.users import User, Users
from dist_teracon.inference.state import UserState

_VERSION = 2
_INDEX = "snapshot.json"


def save(folder: Path, fingerprint: str, users: list[tuple[str, User]]) -> None:
    """Write users; a reader sees the snapshot before or this one.

    Args:
        folder: Where; made if it is not there.
        fingerprint: The model's. States of another one are left out, and computed anew from the history when they are asked for.
        users: Names and users, the least recently used first.
    """
    rows: dict[str, list[UserState]] = {}
    inputs: dict[str, list[Tensor]] = {}
    entries = []
    for name, user in users:
        states = {}
        for kind, (covered, state) in user.states.items():
            if covered == user.count and state.fingerprint == fingerprint:
                of_kind, kept = rows.setdefault(kind, []), inputs.setdefault(kind, [])
                # what is kept has rows of its own: of a history at the length limit nothing may be
                states[kind] = {"row": len(of_kind), "kept": None if state.kept is None else len(kept), "unknown": state.unknown}
                if state.moments is not None:
                    states[kind]["moment"] = int(state.moments[0])
                of_kind.append(state)
                kept += [] if state.kept is None else [state.kept]
        entries.append({"user": name, "count": user.count, "history": user.history, "states": states})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{kind}/vector": torch.from_numpy(np.stack([state.vector for state in of_kind])) for kind, of_kind in rows.items()}
    tensors |= {f"{kind}/kept": torch.stack(kept) for kind, kept in inputs.items() if kept}
    temporary = folder / ".states.safetensors"
    save_file(tensors, temporary)
    sha256 = io.sha256(str(temporary))
    file = folder / f"states-{sha256[:16]}.safetensors"
    with atomic_path(file) as whole:
        temporary.replace(whole)
    index = {"format_version": _VERSION, "fingerprint": fingerprint, "states": {"file": file.name, "sha256": sha256}, "users": entries}
    with atomic_write(folder / _INDEX) as written:
        written.write(json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode())
    for old in folder.glob("states-*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)


def load(folder: Path, model: PretrainedModel, users: Users, *, of_any_model: bool = False) -> int:
    """Read a snapshot into `users`; returns how many users it has, 0 where there is none.

    Args:
        folder: Where it lies.
        model: The model that is served.
        users: Where users go.
        of_any_model: Take the users of another model's snapshot with their histories alone, as after a switch.

    Raises:
        ConfigError: it is of another model.
        DataError: it is damaged, or written by a newer version of this program.
    """
    if not (folder / _INDEX).exists():
        return 0
    where, index = folder / _INDEX, io.read_json(str(folder / _INDEX))
    remedy = "give another folder with --snapshot, or remove this one, and users begin anew"
    try:
        if index["format_version"] != _VERSION:
            raise DataError(f"{where}: was written by another version of dist-teracon (format {index['format_version']}); {remedy}")
        same = index["fingerprint"] == model.fingerprint
        if not same and not of_any_model:
            raise ConfigError(
                f"{where}: is the snapshot of another run or stage ({index['fingerprint'][:12]}…; {model.run}, stage {model.stage}, is "
                f"{model.fingerprint[:12]}…); serve that one, or {remedy}"
            )
        file = folder / index["states"]["file"]
        if io.sha256(str(file)) != index["states"]["sha256"]:
            raise DataError(f"{file}: is damaged (its checksum is another one); {remedy}")
        tensors = load_file(file, device=str(model.device))
        for entry in index["users"]:
            known = entry if same else {**entry, "states": {}}
            users.put(entry["user"], _user(known, model, lambda kind, place: _state_parts(tensors, kind, place)))
    except (KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise DataError(f"{where}: is damaged ({type(error).__name__}: {error}); {remedy}") from None
    return len(index["users"])


def _state_parts(tensors: dict[str, Tensor], kind: str, place: dict[str, Any]) -> tuple[Tensor | None, Any]:
    vector = tensors[f"{kind}/vector"][place["row"]].float().cpu().numpy().copy()
    # a copy: a view would keep all users' rows in memory as long as one of them is kept
    return None if place["kept"] is None else tensors[f"{kind}/kept"][place["kept"]].clone(), vector


def _user(entry: dict[str, Any], model: PretrainedModel, parts: Callable[[str, dict[str, Any]], tuple[Any, Any]]) -> User:
    history, states = tuple(entry["history"]), {}
    for kind, place in entry["states"].items():
        kept, vector = parts(kind, place)
        rows = model.histories([history]).rows
        moments = np.array([place["moment"]]) if "moment" in place else None
        state = UserState(kind, model.fingerprint, rows.values, kept, vector, place["unknown"], rows.columns, moments=moments)
        states[kind] = (entry["count"], state)
    return User(history, entry["count"], states)
