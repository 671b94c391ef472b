"""Reading an export back: its manifest, and user by user the vectors of one kind."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.inference.vectors_file import restored

_MANIFEST = "export.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Export:
    """An export on disk or on a store.

    Attributes:
        uri: Where it is.
        manifest: The content of `export.json`.
    """

    uri: str
    manifest: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the kinds of vectors that it holds."""
        return list(self.manifest["vectors"])

    def column_for(self, name: str | None = None) -> str:
        """Return the name of its vectors of a task, or of the only ones there are.

        Raises:
            ConfigError: there are none of that name, or several to choose from.
        """
        if name is None and len(self.names) == 1:
            return self.names[0]
        if name is None:
            raise ConfigError(f"{self.uri}: holds vectors of {', '.join(self.names)}; choose one with --task")
        if name not in self.names:
            raise ConfigError(f"{self.uri}: holds no vectors of '{name}'{nearest(name, self.names)} (it holds: {', '.join(self.names)})")
        return name

    def width(self, name: str) -> int:
        """Return the numbers of a vector."""
        return int(self.manifest["vectors"][name]["width"])

    def kind(self, name: str) -> str:
        """Return what its vectors of a name are: a task's, or `shared:mean` and its like."""
        return str(self.manifest["vectors"][name]["kind"])

    def users(self) -> Iterator[pa.Array]:
        """Yield each part's users."""
        for part in range(self.manifest["parts"]):
            yield self._table(part, ["user"])["user"].combine_chunks()

    def read(self, name: str) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """Yield each part's users and their vectors, float32 [B, W]."""
        for part in range(self.manifest["parts"]):
            stem, form = f"users/part-{part:05d}", self.manifest["format"]
            quantised = self.manifest["dtype"] == "int8"
            scale: NDArray[Any] | None = None
            if form == "parquet":
                table = self._table(part, ["user", f"vector_{name}", *([f"scale_{name}"] if quantised else [])])
                values = table[f"vector_{name}"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                values = values.reshape(len(table), self.width(name))
                scale = table[f"scale_{name}"].to_numpy() if quantised else None
            else:
                table = self._table(part, ["user"])
                values, scale = self._arrays(stem, form, name, quantised=quantised)
            yield table["user"].combine_chunks(), restored(values, scale)

    def _arrays(self, stem: str, form: str, name: str, *, quantised: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
        if form == "npy":
            read = [np.load(bytes_io.BytesIO(self._content(f"{stem}.{folder_of(name)}.npy")), allow_pickle=False)]
            if quantised:
                read.append(np.load(bytes_io.BytesIO(self._content(f"{stem}.{folder_of(name)}.scale.npy")), allow_pickle=False))
            return read[0], read[1] if quantised else None
        arrays = safetensors.numpy.load(self._content(f"{stem}.safetensors"))
        return arrays[f"vector_{name}"], arrays.get(f"scale_{name}")

    def _table(self, part: int, columns: list[str]) -> pa.Table:
        return pq.read_table(bytes_io.BytesIO(self._content(f"users/part-{part:05d}.parquet")), columns=columns)

    def _content(self, name: str) -> bytes:
        return io.read_bytes(io.join(self.uri, name))


def is_export(uri: str) -> bool:
    """Return whether there is a finished export."""
    return io.exists(io.join(uri, _MANIFEST))


def open_export(uri: str) -> Export:
    """Open a finished export.

    Raises:
        DataError: there is none, or a newer version of this program has written it.
    """
    if not is_export(uri):
        raise DataError(
            f"{uri}: is no finished export ({_MANIFEST} is missing); `dist-teracon export RUN OUT` makes one, or goes on with it"
        )
    manifest = io.read_json(io.join(uri, _MANIFEST))
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise DataError(f"{uri}: export of format {manifest.get('format_version')}, and this version reads {_FORMAT_VERSION}")
    return Export(uri.rstrip("/"), manifest)
