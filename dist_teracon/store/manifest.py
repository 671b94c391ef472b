"""A run's state on a store: one manifest names every file's and log's parts, with SHA-256 and size; the newest one counts.

RUN/manifests/00000042.json      written last: with it what it names is there, for every reader at once
RUN/parts/<SHA-256>              the content of a file; never changed
RUN/logs/<log>/00000012-….jsonl  a segment of a log: its lines between two manifests; never changed
RUN/lease/00000003.json          who writes (`lease.py`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dist_teracon.errors import DataError, RunError
from dist_teracon.store.objects import Objects

FORMAT_VERSION = 1
_FOLDER = "manifests"


@dataclass(frozen=True)
class Part:
    """An immutable object: its key below the run's URI, and what it holds."""

    key: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A state of a run.

    Attributes:
        number: Counts up from 1.
        run_id: Drawn when the run was begun.
        files: Part by the file's path in the run's folder.
        logs: Segments, in their order, by the log's path.
    """

    number: int
    run_id: str
    files: dict[str, Part] = field(default_factory=dict)
    logs: dict[str, tuple[Part, ...]] = field(default_factory=dict)

    def parts(self) -> Iterator[Part]:
        """Yield every part that it names."""
        yield from self.files.values()
        for segments in self.logs.values():
            yield from segments

    def keys(self) -> set[str]:
        """Return the keys of all parts."""
        return {part.key for part in self.parts()}

    @property
    def key(self) -> str:
        """Its own key."""
        return key_of(self.number)

    def to_bytes(self) -> bytes:
        """Return it as JSON with a checksum of its own."""
        value = {
            "format_version": FORMAT_VERSION,
            "number": self.number,
            "run_id": self.run_id,
            "files": {path: _listed(self.files[path]) for path in sorted(self.files)},
            "logs": {path: [_listed(part) for part in self.logs[path]] for path in sorted(self.logs)},
        }
        return json.dumps({**value, "checksum": _checksum(value)}, indent=1, ensure_ascii=False).encode() + b"\n"

    @property
    def checksum(self) -> str:
        """SHA-256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def key_of(number: int) -> str:
    """Return the key of a manifest."""
    return f"{_FOLDER}/{number:08d}.json"


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        DataError: it was damaged.
        RunError: another version of this program has written it.
    """
    try:
        value = json.loads(content)
        checksum = value.pop("checksum")
        if value["format_version"] != FORMAT_VERSION:
            raise RunError(f"{where}: was written by another version of this program; name a new place with --run")
        files = {path: Part(*entry) for path, entry in value["files"].items()}
        logs = {path: tuple(Part(*entry) for entry in segments) for path, segments in value["logs"].items()}
        manifest = Manifest(value["number"], value["run_id"], files, logs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: was damaged ({type(error).__name__})") from None
    if checksum != _checksum(value):
        raise DataError(f"{where}: was damaged, it is not as it was written")
    return manifest


def manifest_numbers(objects: Objects) -> list[int]:
    """Return the numbers of the manifests that are there, ascending."""
    names = [name.removesuffix(".json") for name in objects.names(_FOLDER)]
    return sorted(int(name) for name in names if name.isdecimal())


def newest_manifests(objects: Objects) -> tuple[list[Manifest], list[str]]:
    """Return the manifests that can be read, the newest first, and what is wrong with the others."""
    found, problems = [], []
    for number in reversed(manifest_numbers(objects)):
        where = f"{objects.uri}/{key_of(number)}"
        try:
            found.append(parse_manifest(objects.read(key_of(number)), where=where))
        except FileNotFoundError:  # removed meanwhile, after two newer ones
            continue
        except DataError as error:
            problems.append(str(error))
    return found, problems


def is_run(uri: str) -> bool:
    """Return whether a run lies at a URI of a store."""
    return bool(manifest_numbers(Objects(uri)))


def _listed(part: Part) -> list[Any]:
    return [part.key, part.sha256, part.size]


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
