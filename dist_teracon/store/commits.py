"""One state of a folder after another, committed to a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.atomic import write_json
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.store.manifest import Manifest, Part, key_of, manifest_numbers
from dist_teracon.store.objects import Objects
from dist_teracon.store.snapshot import Snapshot, Stamp, visible_files

# Objects that are sent at a time.
_PARALLEL = 8
MARK = ".store.json"
# Copied beside the manifests for people; the program reads the manifests.
_FOR_PEOPLE = ("results.json",)


class Commits:
    """Writes manifests, and removes what the two newest states do not name.

    Args:
        objects: The run's objects.
        folder: The run's on this machine.
        base: The state that the folder rests on; number 0 of a run that has none.
        before: The state before that one.
        last_number: Of the newest manifest that is there, readable or not.
        check: Raises where this process may not write any more.
    """

    def __init__(
        self, objects: Objects, folder: Path, base: Manifest, *, before: Manifest | None, last_number: int, check: Callable[[], None]
    ) -> None:  # fmt: skip
        self.base = base
        self.uploaded: dict[Stamp, Part] = {}
        self._added: dict[str, Part] = {}
        self.cuts: dict[str, int] = {}
        self._viewed: dict[str, int] = {}
        self._objects, self._folder, self._check = objects, folder, check
        self._before, self._last_number = before, last_number
        self._known = base.keys() | (before.keys() if before else set())

    def forget(self, keys: Iterable[str]) -> None:
        """Take note of parts that are damaged, so that they are sent again."""
        self._known -= set(keys)

    def add(self, files: Mapping[str, Part]) -> None:
        """Take note of files that are not in the folder, and whose parts are in the store."""
        self._added = {**self._added, **files}

    def claim(self) -> None:
        """Commit the state that is there once more, so that a process which had the run before can no longer commit."""
        self._publish(replace(self.base, number=self._last_number + 1), content_changed=False)

    def collect_garbage(self) -> None:
        """Remove parts that a killed process has sent and not committed."""
        for folder in ("parts", *(f"logs/{name}" for name in self._objects.names("logs"))):
            self._objects.delete(key for name in self._objects.names(folder) if (key := f"{folder}/{name}") not in self._kept_keys())

    def commit(self, snapshot: Snapshot, *, partial: bool = False) -> None:
        """Send what is new in a snapshot and make it visible; nothing where nothing is.

        Args:
            snapshot: Of the folder.
            partial: It holds some of the folder's files; the others are as they were.

        Raises:
            RunError: another process has taken the run over.
            DataError: the store fails.
        """
        cuts, added = dict(self.cuts), self._added
        files = {path: part for path, part in self.base.files.items() if partial or "/progress/" not in f"/{path}"}
        with ThreadPoolExecutor(_PARALLEL) as pool:
            sent = dict(zip(snapshot.new, pool.map(self._send, [path for path, _ in snapshot.new.values()]), strict=True))
        assert all(part.key in self._known for part in snapshot.known.values())
        self._known |= {part.key for part in added.values()}
        files |= added | snapshot.known | sent
        logs = dict(self.base.logs)
        for path, length in snapshot.logs.items():
            logs[path] = self._send_log(path, length, cuts.get(path, length))
        stamps = {stamp: sent[path] for path, (_, stamp) in snapshot.new.items()}
        if files != self.base.files or logs != self.base.logs:
            self._publish(Manifest(self._last_number + 1, self.base.run_id, files, logs), content_changed=True)
            self._copy_for_people(snapshot)
        self.cuts = {path: cut for path, cut in self.cuts.items() if cuts.get(path) != cut}
        self.uploaded = {**self.uploaded, **stamps} if partial else _in_use(self.uploaded, files) | stamps

    def write_mark(self, pending: str = "") -> None:
        """Note in the folder on which manifest it rests, and which one may have been written by now."""
        mark = {"run_id": self.base.run_id, "number": self.base.number, "checksum": self.base.checksum, "pending": pending}
        write_json(self._folder / MARK, mark)

    # -- parts

    def _send(self, path: Path) -> Part:
        sha256 = io.sha256(str(path))
        part = Part(f"parts/{sha256}", sha256, path.stat().st_size)
        if part.key not in self._known:
            self._objects.upload(path, part.key)
            self._known.add(part.key)
        return part

    def _send_log(self, path: str, length: int, cut: int) -> tuple[Part, ...]:
        """Send the whole lines that a log has beyond its segments; segments past a cut are left off."""
        kept, end = list[Part](), 0
        for segment in self.base.logs.get(path, ()):
            if end + segment.size > min(cut, length):
                break
            kept.append(segment)
            end += segment.size
        with (self._folder / path).open("rb") as file:
            file.seek(end)
            content = file.read(length - end)
        if content := content[: content.rfind(b"\n") + 1]:
            sha256 = hashlib.sha256(content).hexdigest()
            name = f"{len(kept) + 1:08d}-{sha256[:16]}.jsonl"
            part = Part(f"logs/{path.removesuffix('.jsonl').replace('/', '.')}/{name}", sha256, len(content))
            if part.key not in self._known:
                self._objects.write(part.key, content)
                self._known.add(part.key)
            kept.append(part)
        return tuple(kept)

    # -- manifests

    def _publish(self, manifest: Manifest, *, content_changed: bool) -> None:
        self._check()
        self.write_mark(pending=manifest.checksum)
        if not self._objects.create(manifest.key, manifest.to_bytes()):
            raise RunError(f"{self._objects.uri}: another process has written this run meanwhile; this process stops")
        if content_changed and self.base.number:
            self._before = self.base
        self._last_number, self.base = manifest.number, manifest
        self.write_mark()
        with suppress(TeraconError, OSError):  # what is left is removed when the run is next taken up
            self._remove_old()

    def _remove_old(self) -> None:
        keep = {self.base.number} | ({self._before.number} if self._before else set())
        self._objects.delete(key_of(number) for number in manifest_numbers(self._objects) if number not in keep)
        old = self._known - self._kept_keys()
        self._objects.delete(old)
        self._known -= old

    def _kept_keys(self) -> set[str]:
        return self.base.keys() | (self._before.keys() if self._before else set())

    def _copy_for_people(self, snapshot: Snapshot) -> None:
        for name in _FOR_PEOPLE:
            if name in snapshot.new:
                with suppress(TeraconError, OSError):
                    self._objects.write(name, snapshot.new[name][0].read_bytes())
        with suppress(TeraconError, OSError):
            self._copy_views(snapshot.views)

    def _copy_views(self, views: Mapping[str, tuple[Path, int]]) -> None:
        """Copy files that have grown, each as a whole; files whose place they have taken go."""
        for name, (path, size) in views.items():
            if self._viewed.get(name) == size:
                continue
            folder = name.rpartition("/")[0]
            with path.open("rb") as file:
                self._objects.write(name, file.read(size))
            self._objects.delete([key for key in (f"{folder}/{other}" for other in self._objects.names(folder)) if key not in views])
            self._viewed[name] = size


def send_files(uri: str, folder: Path, *, below: str) -> dict[str, Part]:
    """Send a local folder's files to a run's store; returns their parts by path below `below`, for a manifest."""
    objects, sent = Objects(uri), {}
    for path in visible_files(folder):
        sha256 = io.sha256(str(path))
        part = Part(f"parts/{sha256}", sha256, path.stat().st_size)
        objects.upload(path, part.key)
        sent[f"{below}/{path.relative_to(folder).as_posix()}"] = part
    return sent


def _in_use(uploaded: dict[Stamp, Part], files: dict[str, Part]) -> dict[Stamp, Part]:
    keys = {part.key for part in files.values()}
    return {stamp: part for stamp, part in uploaded.items() if part.key in keys}


def read_mark(folder: Path) -> dict[str, Any]:
    """Return what the folder notes about the store; empty where it notes nothing that can be read."""
    try:
        value = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
