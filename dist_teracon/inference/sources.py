"""Where the users of an export come from: a data set shard by shard, or events, in parts of a fixed size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.console import Log
from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedRows
from dist_teracon.data.event_columns import NO_TIME
from dist_teracon.data.open import SYNTHETIC, open_dataset
from dist_teracon.data.schema import users_file
from dist_teracon.data.summary import users_text
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.mapped_dataset import MappedDataset
from dist_teracon.inference.model import PretrainedModel

# Users of a part of events; a data set's parts are its shards.
USERS_A_PART = 50_000


@dataclass(frozen=True)
class UserSource:
    """Users in parts.

    Attributes:
        name: What a manifest records of it: kind, place and version.
        parts: How many.
        users: Names of a part's users, by its number.
        histories: Histories of a part's users, by its number; with names.
        notes: What a person should hear of it.
    """

    name: dict[str, Any]
    parts: int
    users: Callable[[int], pa.Array]
    histories: Callable[[int], Histories]
    notes: list[str]


def of_dataset(model: PretrainedModel, uri: str, *, log: Log) -> UserSource:
    """Return the users of a data set.

    Raises:
        DataError: no data set there.
    """
    inner = open_dataset(uri, log=log)
    mapped = MappedDataset(inner, model)

    def users(part: int) -> pa.Array:
        return inner.table(users_file(part), ["user_id"])["user_id"].combine_chunks()

    def histories(part: int) -> Histories:
        earlier, strange = mapped.earlier_of_model(part), mapped.names_unknown_to_model(part)
        shard = mapped.read_shard(part)
        keeps_times = "times" in inner.info.history.names  # whether the model reads them or not
        table = inner.table(users_file(part), ["user_id", "times"] if keeps_times else ["user_id"])
        ids = table["user_id"].combine_chunks()
        found = model.reader.of_indices(shard.values, shard.offsets, users=ids, columns=shard.columns, features=shard.features)
        if strange is not None:
            found = replace(found, strange_names=strange)
        if earlier is not None:
            found = replace(found, seen=PackedRows(*ragged.side_by_side(earlier, (found.seen.values, found.seen.offsets))))
        return replace(found, last_time=_last_times(table["times"].combine_chunks())) if keeps_times else found

    name = {"kind": "dataset", "uri": uri, "version": inner.info.fingerprint, "users": inner.info.users}
    notes = mapped.notes()
    if inner.info.split.by == "time":
        rows = users_text(inner.info.users, inner.info.notes)
        notes = [f"{uri}: split by time, so a user is several rows of their own, as u1 and u1@test ({rows})", *notes]
    return UserSource(name, inner.info.shards, users, histories, notes)


def _last_times(times: pa.ListArray) -> NDArray[np.float64]:
    """Return the last one of each user's times of events, NaN for none."""
    ends = np.cumsum(pc.list_value_length(times).to_numpy(zero_copy_only=False))
    last = times.flatten().to_numpy()[ends - 1]
    return np.where(last == NO_TIME, np.nan, last.astype(np.float64))


def of_events(model: PretrainedModel, uri: str, *, dates: bool = True) -> UserSource:
    """Return the users of a file or folder of events, which is read as a whole: some 30 bytes an event.

    Raises:
        DataError: events are missing or malformed.
        ConfigError: the recipe reads a column that they do not have.
    """
    read = model.histories(uri, dates=dates)
    assert read.users is not None
    names = read.users
    content = {"users": len(read), "events": int(read.events.sum()), "checksum": _checksum(read)}
    parts = -(-len(read) // USERS_A_PART)
    name = {"kind": "events", "uri": uri, "version": content["checksum"], **content}
    return UserSource(
        name,
        parts,
        lambda part: names[part * USERS_A_PART : (part + 1) * USERS_A_PART],
        lambda part: read.slice(part * USERS_A_PART, min((part + 1) * USERS_A_PART, len(read))),
        read.notes(),
    )


def of_uri(model: PretrainedModel, uri: str, *, dates: bool = True, log: Log) -> UserSource:
    """Return the users of a data set or of events, whichever is there."""
    if uri.startswith(SYNTHETIC) or io.exists(io.join(uri, "dataset.json")):
        if not dates:
            log(f"--no-dates: {uri} is a data set, whose histories are cut already; it is for events, and does nothing here")
        return of_dataset(model, uri, log=log)
    return of_events(model, uri, dates=dates)


def _checksum(read: Histories) -> str:
    """Return a checksum of what is read, which names the version of the events."""
    digest = hashlib.sha256()
    columns = [getattr(read.rows.columns, name) for name in read.rows.columns.names]
    features = [] if read.rows.features is None else [read.rows.features]
    times = [] if read.last_time is None else [read.last_time]
    arrays: tuple[NDArray[Any], ...] = (read.rows.values, read.rows.offsets, read.events, *times, *columns, *features)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    for name in read.users if read.users is not None else ():
        digest.update(str(name).encode() + b"\0")
    return digest.hexdigest()
