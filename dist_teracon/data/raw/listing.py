"""What a folder of raw files holds: listed once, in natural order; each file is read, or named as not read and why.

Hidden files are passed over: names that begin with `.`, marks of a writer such as `_SUCCESS`, and `.crc`. A source may also be one
file: then its folder has no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import unquote

from dist_teracon.data.raw.files import open_raw, without_compression
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.io import filesystem_of, is_local, local_path

TEXT_ENDINGS = (".csv", ".tsv", ".txt")
PARQUET_ENDINGS = (".parquet", ".pq")

# A part without an ending, as Spark and Hive name them: `part-00000`, `000000_0`, `part-00000-2b1c.c000`.
_PART = re.compile(r"(?=.*\d)[^.]+(\.c\d+)?")
_PARTITION = re.compile(r"[^=/]+=[^/]*")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_DEEPEST = 32
_TABLES_WITH_A_LOG = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
_SHOWN = 10

TableKind = Literal["text", "parquet"]


def natural_key(name: str) -> tuple[list[Any], str]:
    """Return a key that sorts names by the numbers in them, so that `events-2` comes before `events-10`."""
    # the odd parts are the digits
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))], name


def stem(name: str) -> str:
    """Return a file's name without the endings of a compression and of a table, in small letters."""
    bare = without_compression(name.rsplit("/", 1)[-1]).lower()
    return next((bare[: -len(ending)] for ending in (*TEXT_ENDINGS, *PARQUET_ENDINGS) if bare.endswith(ending)), bare)


def _without_endings(name: str) -> str:
    """Return a path without the endings of a compression and of a table."""
    bare = without_compression(name)
    return next((bare[: -len(ending)] for ending in (*TEXT_ENDINGS, *PARQUET_ENDINGS) if bare.lower().endswith(ending)), bare)


def named_kind(name: str) -> TableKind | None:
    """Return what a table's name shows it to be, in letters of any size and with or without a compression's ending."""
    bare = without_compression(name).lower()
    return "text" if bare.endswith(TEXT_ENDINGS) else "parquet" if bare.endswith(PARQUET_ENDINGS) else None


def table_kind(uri: str) -> TableKind | None:
    """Return what a table is by its name, or where that has no ending, by its first bytes; None where it is neither."""
    return named_kind(uri) or _sniffed(uri)


def _sniffed(uri: str) -> TableKind | None:
    with open_raw(uri) as (stream, _):
        begin = stream.read(1024)
    if begin.startswith(b"PAR1"):
        return "parquet"
    return None if b"\0" in begin and not begin.startswith((b"\xff\xfe", b"\xfe\xff")) else "text"


def partition_values(name: str) -> dict[str, str | None]:
    """Return the values of a path's Hive folders: `date=2020-01-02/part-0` has `date`."""
    values: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        if _PARTITION.fullmatch(folder):
            key, _, value = folder.partition("=")
            values[unquote(key)] = None if value == _NULL_PARTITION else unquote(value)
    return values


def _is_hidden(name: str) -> bool:
    """Return whether a file is no data to anyone: a system's, or a mark that a writer left."""
    mark = name.startswith("_") and named_kind(name) is None
    return name.startswith(".") or mark or name.lower().endswith(".crc") or name.lower() in ("thumbs.db", "desktop.ini")


def _entries(uri: str) -> tuple[list[str], list[str]]:
    """Return a folder's files and folders that are not hidden, in natural order.

    Raises:
        DataError: there is no such folder, or it is a table of a system that keeps replaced files in it.
    """
    filesystem, path = filesystem_of(uri)
    if not filesystem.isdir(path):
        raise DataError(f"{uri}: no such folder")
    files: list[str] = []
    folders: list[str] = []
    for entry in filesystem.ls(path, detail=True):
        whole = str(entry["name"])
        name = whole.rstrip("/").rsplit("/", 1)[-1]
        if (system := _TABLES_WITH_A_LOG.get(name)) is not None:
            raise DataError(
                f"{uri}: is a table of {system} ({name}), whose log alone tells which of its files count; write it out as plain Parquet"
            )
        if name == "metadata" and entry["type"] == "directory" and _is_of_iceberg(filesystem, whole):
            raise DataError(
                f"{uri}: is a table of Iceberg, whose metadata/ alone tells which of its files count; write it out as plain Parquet"
            )
        if whole.strip("/") == str(path).strip("/") or _is_hidden(name):
            continue  # a store may have an entry for the folder itself
        is_folder = entry["type"] == "directory" or (entry.get("islink") and filesystem.isdir(whole))
        (folders if is_folder else files).append(name)
    return sorted(set(files), key=natural_key), sorted(set(folders), key=natural_key)


def _is_of_iceberg(filesystem: Any, folder: str) -> bool:
    names = [str(name).rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(folder, detail=False)]
    return any(name.endswith((".metadata.json", ".metadata.json.gz", ".gz.metadata.json")) for name in names)


@dataclass
class Listing:
    """A source's files by their path from its folder.

    Attributes:
        source: As it was given, a folder or a file.
        files, folders: Names of what lies directly in it, hidden ones left out.
        is_file: Whether the source is one file.
        not_read: By path, why a file or folder is not read.
    """

    source: str
    files: list[str]
    folders: list[str]
    is_file: bool = False
    not_read: dict[str, str] = field(default_factory=dict)

    def uri(self, name: str) -> str:
        """Return the URI of a path in the source."""
        return self.source if self.is_file else f"{self.source.rstrip('/') or ''}/{name}"

    def parts(self, folder: str) -> list[str]:
        """Return the tables below a folder (the source itself for an empty name) at any depth, in natural order; others are not read."""
        found = []
        for name in self._below(folder):
            base = name.rsplit("/", 1)[-1]
            if named_kind(name) is not None or (_PART.fullmatch(without_compression(base)) and _sniffed(self.uri(name))):
                if base.startswith("_"):
                    self.not_read[name] = "its name begins with '_', as that of a hidden file"
                else:
                    found.append(name)
            else:
                self.not_read[name] = "is neither CSV nor Parquet by its name and content"
        return found

    def _below(self, folder: str, depth: int = 0) -> list[str]:
        files, folders = (self.files, self.folders) if not folder else _entries(self.uri(folder))
        within = f"{folder}/" if folder else ""
        found = [f"{within}{name}" for name in files]
        if depth < _DEEPEST:
            for name in folders:
                found += self._below(f"{within}{name}", depth + 1)
        return sorted(found, key=natural_key)

    def match(self, patterns: Sequence[str], *, where: str) -> list[str]:
        """Return the tables that patterns such as `clicks-*.csv` or `logs/2020` name; a folder stands for all tables in it.

        Raises:
            ConfigError: a pattern names nothing.
        """
        found: list[str] = []
        for pattern in patterns:
            wanted = pattern.strip("/").removeprefix("./")
            names, folders = self.files, self.folders
            if "/" in wanted:
                names = [name for folder in self.folders for name in self._below(folder)]
                folders = sorted({"/".join(name.split("/")[:deep]) for name in names for deep in range(2, name.count("/") + 1)})
            matched = [name for name in names if fnmatchcase(name, wanted)]
            inside = [part for folder in folders if fnmatchcase(folder, wanted) for part in self.parts(folder)]
            if not matched and not inside:
                known = [*self.files, *self.folders]
                raise ConfigError(f"{where}: {self.source} has no '{pattern}'{nearest(wanted, known)} (has: {self.shown()})")
            found += [name for name in (*matched, *inside) if name not in found]
        return sorted(found, key=natural_key)

    def leave_others(self, read: Sequence[str], why: str) -> None:
        """Name every file and folder directly in the source, of which nothing is read, as not read."""
        tops = {name.split("/", 1)[0] for name in (*read, *self.not_read)}
        for name in (*self.files, *(f"{folder}/" for folder in self.folders)):
            if name.rstrip("/") not in tops:
                self.not_read[name] = why

    def shown(self) -> str:
        """Return the first names, for an error's text."""
        names = [*self.files, *(f"{name}/" for name in self.folders)]
        return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "") or "nothing"


def list_source(source: str) -> Listing:
    """List a source, a folder or one file.

    Raises:
        DataError: there is nothing of that name.
    """
    filesystem, path = filesystem_of(source)
    if not source.endswith("/") and filesystem.isfile(path):
        return Listing(source, [source.rsplit("/", 1)[-1]], [], is_file=True)
    files, folders = _entries(source)
    return Listing(source, files, folders)


def relative_name(uri: str, source: str) -> str:
    """Return a file's path from the source's folder; its name where the source is that file."""
    root = source.rstrip("/") + "/"
    return uri[len(root) :] if uri.startswith(root) else uri.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Layout:
    """Which of a source's files are read, and as what.

    Attributes:
        listing: The source.
        roles: Paths by role, as `events`, in the order of reading.

    Raises:
        DataError: a role has a file in two forms, as `a.csv` and `a.csv.gz`, or twice by a link.
    """

    listing: Listing
    roles: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        for names in self.roles.values():
            forms: dict[str, str] = {}
            files: dict[str, str] = {}
            for name in names:
                other = forms.setdefault(_without_endings(name), name)
                if other != name:
                    raise DataError(f"{self.listing.source}: '{other}' and '{name}' are one table in two forms; keep one of them")
                if (other := files.setdefault(self._real(name), name)) != name:
                    raise DataError(f"{self.listing.source}: '{other}' and '{name}' are one file, by a link; keep one of them")

    def _real(self, name: str) -> str:
        uri = self.listing.uri(name)
        return os.path.realpath(local_path(uri)) if is_local(uri) else uri

    def uris(self, role: str) -> list[str]:
        """Return the URIs of a role's files."""
        return [self.listing.uri(name) for name in self.roles.get(role, ())]

    @property
    def all(self) -> list[str]:
        """URIs of all files that are read."""
        return [uri for role in self.roles for uri in self.uris(role)]

    @property
    def note(self) -> dict[str, Any]:
        """What a data set's notes hold of it."""
        read = [name for names in self.roles.values() for name in names]
        return {"read": read, "not_read": dict(sorted(self.listing.not_read.items(), key=lambda entry: natural_key(entry[0])))}
