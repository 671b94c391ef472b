"""The files of a stage's pseudo-labels: a shard of a past task's targets, with its checksum and its teacher.

On disk, a past task and shard: `pseudo_labels/<past task>/shard-00042.arrow` with `row` (int32, of the user in the shard) and
`target` (fixed-size list of float32 or float16: the teacher's logits, or its representation where the labels are too many to store).
Beside it `shard-00042.json`: the SHA-256 of the shard and of the teacher that made it.

Legend: n rows, d numbers a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.atomic import atomic_write, write_json
from dist_teracon.continual.replayed_users import PastPool
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import DataError, RunError


def shard_file(folder: Path, task: str, shard: int) -> Path:
    """Return where a past task's targets of a shard lie below a stage's `pseudo_labels`."""
    return folder / folder_of(task) / f"shard-{shard:05d}.arrow"


def write_shard(path: Path, rows: NDArray[np.int64], targets: NDArray[Any], teacher: str) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), targets.shape[1])
    table = pa.table({"row": pa.array(rows.astype(np.int32)), "target": values})
    _checksum_file(path).unlink(missing_ok=True)  # a shard without one is made anew
    with atomic_write(path) as file:
        hashed = io.HashedFile(file)
        with pa.ipc.new_file(pa.PythonFile(hashed, mode="w"), table.schema) as writer:
            writer.write_table(table)
    checksum = hashed.sha256
    write_json(_checksum_file(path), {"sha256": checksum, "teacher": teacher, "own_sha256": _own_checksum(checksum, teacher)})


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _own_checksum(checksum: str, teacher: str) -> str:
    """Return the checksum of what stands beside a shard, so that damage to it is seen as well."""
    return hashlib.sha256(f"{checksum} {teacher}".encode()).hexdigest()


def damage_of(path: Path) -> str:
    """Return what is wrong with a shard that a killed stage has left, or nothing: a damaged one is made anew."""
    noted = _checksum_file(path)
    if not noted.exists():
        return "its checksum is missing"
    try:
        known = io.read_json(str(noted))
    except DataError:
        return "its checksum was damaged"
    if not isinstance(known, dict) or known.get("own_sha256") != _own_checksum(str(known.get("sha256")), str(known.get("teacher"))):
        return "its checksum was damaged"
    return "" if known["sha256"] == io.sha256(str(path)) else "it is not as it was written"


def other_teacher(path: Path, teacher: str) -> str:
    """Return that another teacher has made a sound shard, or nothing."""
    return "" if io.read_json(str(_checksum_file(path))).get("teacher", "") == teacher else "another teacher has made it"


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_shard(path: Path) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Map a shard of the store: rows int32 [n] and targets float32 or float16 [n, d], read from disk as they are touched.

    Raises:
        RunError: the file was changed or cut off since it was written.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        width = table.schema.field("target").type.list_size
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        if not path.exists():
            raise
        raise RunError(f"{path}: these pseudo-labels were damaged ({error}); remove the file, and the same command makes it anew") from None
    if not table.num_rows:
        number = np.float16 if table.schema.field("target").type.value_type == pa.float16() else np.float32
        return np.zeros(0, dtype=np.int32), np.zeros((0, width), dtype=number)
    # a shard is written as one chunk: taken as it lies, since combining chunks would copy it into memory
    return table["row"].chunk(0).to_numpy(), table["target"].chunk(0).flatten().to_numpy().reshape(-1, width)


@dataclass(frozen=True)
class Store:
    """Stored targets of one past task.

    Attributes:
        width: Numbers a row, d.
        shards: float32 or float16 [n, d] by own shard, rows as in the pool; none where a rank owns no shard.
    """

    width: int
    shards: dict[int, NDArray[Any]]

    def take(self, rows: Sequence[tuple[int, NDArray[np.int64]]]) -> NDArray[Any]:
        """Return the targets of rows of the pool, given shard by shard: [n, d]."""
        parts = [self.shards[shard][chosen] for shard, chosen in rows if len(chosen)]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)


def open_store(folder: Path, pool: PastPool, shards: range, width: int) -> Store:
    """Return the targets of each own shard, cut to the pool.

    Args:
        folder: `pseudo_labels` of the stage.
        pool: The past task's.
        shards: The shards that this rank owns.
        width: Numbers a row.
    """
    opened = {}
    for shard in shards:
        _, targets = read_shard(shard_file(folder, pool.task, shard))
        size = len(pool.rows[shard])
        opened[shard] = targets[:size] if size else np.zeros((0, width), dtype=targets.dtype)
    return Store(width, opened)
