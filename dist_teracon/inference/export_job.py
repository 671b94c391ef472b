"""An export that is under way: what is exported, and its parts, which are independent of each other.

Legend: B users, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_teracon.data.prepare.padding import PADDING
from dist_teracon.data.schema import FIRST_ITEM, folder_of
from dist_teracon.errors import ConfigError
from dist_teracon.inference.align import Alignment
from dist_teracon.inference.export_reader import open_export
from dist_teracon.inference.histories import Histories
from dist_teracon.inference.model import SHARED, PretrainedModel, SharedVector
from dist_teracon.inference.out_folder import OutFolder
from dist_teracon.inference.sources import UserSource
from dist_teracon.inference.vectors_file import (
    DTYPES,
    FORMATS,
    Dtype,
    Format,
    converted,
    vector_columns,
    write_npy,
    write_safetensors,
    write_table,
)

MANIFEST = "export.json"
FORMAT_VERSION = 1

Vectors = dict[str, tuple[NDArray[Any], NDArray[np.float32] | None]]


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        tasks: `shared`, or names of tasks; each gives a vector a user.
        shared: What `shared` is; the model's default where None.
        format, dtype: Of the vectors.
        items: Also the items' vectors.
        labels: Tasks whose label vectors and biases are written too.
        align_to: An earlier export into whose space the vectors are turned.
        batch: Users encoded at a time.
    """

    tasks: Sequence[str] = (SHARED,)
    shared: SharedVector | None = None
    format: Format = "parquet"
    dtype: Dtype = "float32"
    items: bool = False
    labels: Sequence[str] = ()
    align_to: str | None = None
    batch: int = 512

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is not allowed.
        """
        if self.format not in FORMATS:
            raise ConfigError(f"--format: expected {', '.join(FORMATS)}, got '{self.format}'")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype: expected {', '.join(DTYPES)}, got '{self.dtype}'")
        if len(set(self.tasks)) < len(self.tasks) or not self.tasks:
            raise ConfigError("--task: expected at least one, and each once")
        if self.shared is not None and SHARED not in self.tasks:
            raise ConfigError(f"--shared {self.shared}: is for the shared vector, and {', '.join(self.tasks)} are exported; leave it out")
        if self.align_to is not None and len(self.tasks) > 1:
            raise ConfigError("--align-to: one kind of vector is turned; give one --task")
        if self.align_to is not None and (others := [task for task in self.labels if task not in self.tasks]):
            raise ConfigError(
                f"--labels {others[0]}: with --align-to vectors of labels are turned with those of their own task, and the export is of "
                f"{self.tasks[0]}; give --task {others[0]}, or export the labels without --align-to"
            )


def _record(part: int) -> str:
    return f".progress/part-{part:05d}.json"


def settings_of(model: PretrainedModel, source: UserSource, options: ExportOptions, kinds: dict[str, str]) -> dict[str, Any]:
    """Return what decides over an export's content; where the run and the data lie does not."""
    return {
        "run": model.fingerprint,
        "stage": model.stage,
        "source": {key: value for key, value in source.name.items() if key != "uri"},
        "vectors": kinds,
        "format": options.format,
        "dtype": options.dtype,
        "items": options.items,
        "labels": list(options.labels),
        "align_to": options.align_to,
        # another one may lie there by now
        **({} if options.align_to is None else {"aligned_to": open_export(options.align_to).manifest["fingerprint"]}),
        **({"at": model.moment} if model.reads_moments else {}),
    }


@dataclass(frozen=True)
class Job:
    """An export that is under way; its parts are independent of each other."""

    model: PretrainedModel
    source: UserSource
    folder: OutFolder
    options: ExportOptions
    kinds: dict[str, str]
    alignment: Alignment | None

    def is_written(self, number: int) -> bool:
        """Return whether a part is there."""
        return self.folder.exists(_record(number))

    def part(self, number: int) -> dict[str, Any]:
        """Write a part, or find it written; returns its files, counts and norms."""
        record = _record(number)
        if self.folder.exists(record):
            found: dict[str, Any] = self.folder.read_json(record)
            return found
        histories = self.source.histories(number)
        vectors: Vectors = {}
        norms: dict[str, list[float]] = {}
        for name, kind in self.kinds.items():
            values = self.encode(histories, kind)
            lengths = np.linalg.norm(values.astype(np.float64), axis=1)
            norms[name] = [float(lengths.sum()), float(np.square(lengths).sum()), float(lengths.max(initial=0.0))]
            vectors[name] = converted(values, self.options.dtype)
        files = self._write(f"users/part-{number:05d}", histories, vectors)
        result = {"users": len(histories), "unknown": histories.unknown, "norms": norms, "files": files}
        self.folder.write_json(record, result)
        return result

    def encode(self, histories: Histories, kind: str) -> NDArray[np.float32]:
        """Return the vectors of a part's users in one kind, turned where they are aligned: float32 [B, W]."""
        batch = self.options.batch
        values = np.empty((len(histories), self.model.width(kind)), dtype=np.float32)
        for first in range(0, len(histories), batch):
            found = self.model.vectors(histories.between(first, min(first + batch, len(histories))), kind).float().cpu().numpy()
            values[first : first + batch] = found if self.alignment is None else self.alignment.apply(found)
        return values

    def _write(self, stem: str, histories: Histories, vectors: Vectors) -> dict[str, Any]:
        assert histories.users is not None
        times = np.full(len(histories), np.nan) if histories.last_time is None else histories.last_time
        columns: dict[str, Any] = {
            "user": histories.users,
            "events": pa.array(histories.events.astype(np.int32)),
            "last_event": pa.array(np.where(np.isnan(times), 0, times * 1e6).astype(np.int64), mask=np.isnan(times)).cast(
                pa.timestamp("us", tz="UTC")
            ),
        }
        files: dict[str, Any] = {}
        if self.options.format == "npy":
            for name, (values, scale) in vectors.items():
                path = f"{stem}.{folder_of(name)}"
                files[f"{path}.npy"] = self.folder.write(f"{path}.npy", partial(write_npy, values=values))
                if scale is not None:
                    files[f"{path}.scale.npy"] = self.folder.write(f"{path}.scale.npy", partial(write_npy, values=scale))
        elif self.options.format == "safetensors":
            arrays = {f"vector_{name}": values for name, (values, _) in vectors.items()}
            arrays |= {f"scale_{name}": scale for name, (_, scale) in vectors.items() if scale is not None}
            fill = partial(write_safetensors, arrays=arrays, metadata=self._metadata())
            files[f"{stem}.safetensors"] = self.folder.write(f"{stem}.safetensors", fill)
        else:
            columns |= vector_columns(vectors)
        files[f"{stem}.parquet"] = self.folder.write(f"{stem}.parquet", partial(write_table, columns=columns, metadata=self._metadata()))
        return files

    def _metadata(self) -> dict[str, str]:
        return {
            "dist_teracon.run": self.model.fingerprint,
            "dist_teracon.stage": str(self.model.stage),
            "dist_teracon.data": str(self.source.name["version"]),
            "dist_teracon.dtype": self.options.dtype,
        }

    def extra_files(self) -> dict[str, Any]:
        """Write the vectors of items and labels that were asked for."""
        files = {}
        if self.options.items:
            names = self.model.items.names[FIRST_ITEM : self.model.num_items]
            vectors = self.model.item_vectors()[FIRST_ITEM : FIRST_ITEM + len(names)]
            files["items.parquet"] = self._extra("items.parquet", {"item": pa.array(names, pa.string())}, vectors)
        for task in self.options.labels:
            head, path = self.model.method.head(task), f"labels_{folder_of(task)}.parquet"
            names = self.model.labels(task).names
            columns = {"label": pa.array(names, pa.string()), "bias": pa.array(head.bias.detach().float().cpu().numpy())}
            weight = head.weight.detach().float().cpu().numpy()
            # turned as the users' vectors are, so that their products stay the scores
            files[path] = self._extra(path, columns, weight if self.alignment is None else self.alignment.apply(weight))
        return files

    def _extra(self, path: str, columns: dict[str, Any], vectors: NDArray[np.float32]) -> dict[str, Any]:
        values, scale = converted(vectors, self.options.dtype)
        made = vector_columns({"": (values, scale)})
        columns = {**columns, **{name.rstrip("_"): column for name, column in made.items()}}
        if self.model.reader.padding is not None:  # what fills histories up is nothing that anybody is offered
            kept = pc.not_equal(next(iter(columns.values())), PADDING)
            columns = {name: column.filter(kept) for name, column in columns.items()}

        def fill(target: Path) -> None:
            write_table(target, columns, self._metadata())

        return self.folder.write(path, fill)

    def manifest(self, parts: Sequence[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest of finished parts."""
        users = sum(part["users"] for part in parts)
        vectors = {}
        for name, kind in self.kinds.items():
            total, squares, largest = (np.array([part["norms"][name] for part in parts]).reshape(-1, 3)).T
            mean = float(total.sum() / max(1, users))
            deviation = float(np.sqrt(max(0.0, squares.sum() / max(1, users) - mean**2)))
            norm = {"mean": mean, "deviation": deviation, "largest": float(largest.max(initial=0.0))}
            vectors[name] = {"kind": kind, "width": self.model.width(kind), "norm": norm}
        return {
            "format_version": FORMAT_VERSION,
            "settings": settings_of(self.model, self.source, self.options, self.kinds),
            "run": self.model.run,
            "fingerprint": self.model.fingerprint,
            "stage": self.model.stage,
            "tasks": list(self.model.tasks),
            "source": self.source.name,
            "format": self.options.format,
            "dtype": self.options.dtype,
            "vectors": vectors,
            "users": users,
            "unknown_events": sum(part["unknown"] for part in parts),
            "parts": len(parts),
            **({} if self.alignment is None else {"alignment": self.alignment.facts}),
            "files": {name: entry for part in parts for name, entry in part["files"].items()} | extra,
        }
