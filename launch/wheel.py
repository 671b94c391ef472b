"""This program as a wheel, for machines that are to run it: made from the package that is imported here, however it was installed.

The wheel names no dependencies. Ray installs a job's wheels with pip into a folder of their own, dependencies included: gigabytes of
torch a node, beside the one that is there. What a cluster needs is on its image; `dist-teracon doctor --ray` looks.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dist_teracon import __version__
from dist_teracon.atomic import atomic_path
from dist_teracon.data.cache import cache_folder

# Packages that lie beside dist_teracon in a checkout and below it where it is installed.
_BESIDE = ("kernels", "launch", "configs")
_TIME = (1980, 1, 1, 0, 0, 0)  # equal contents give equal bytes, and Ray's name of an upload is the hash of its bytes
_INFO = f"dist_teracon-{__version__}.dist-info"


def program_wheel() -> Path:
    """Return the wheel of the program that is imported here; made once for the same contents, in the cache folder."""
    contents = _contents()
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    wheel = cache_folder() / "wheels" / digest.hexdigest()[:16] / f"dist_teracon-{__version__}-py3-none-any.whl"
    if not wheel.exists():
        with atomic_path(wheel) as temporary, zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {**contents, f"{_INFO}/RECORD": _record(contents)}.items():
                archive.writestr(zipfile.ZipInfo(name, _TIME), content, zipfile.ZIP_DEFLATED)
    return wheel


def _contents() -> dict[str, bytes]:
    """Return every file of the wheel but its record, by name."""
    found = {name: path.read_bytes() for name, path in sorted(_files())}
    return {
        **found,
        f"{_INFO}/METADATA": f"Metadata-Version: 2.1\nName: dist-teracon\nVersion: {__version__}\n".encode(),
        f"{_INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: dist-teracon\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }


def _files() -> Iterator[tuple[str, Path]]:
    """Yield the name in the wheel and the path of every file of the package."""
    for package in ("dist_teracon", *(f"dist_teracon.{name}" for name in _BESIDE)):
        (folder, *_) = importlib.import_module(package).__path__
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
            if package == "dist_teracon" and Path(parent) == Path(folder):
                folders[:] = [name for name in folders if name not in _BESIDE]
            for name in names:
                if not name.endswith(".pyc") and not name.startswith("."):
                    path = Path(parent) / name
                    yield "/".join((*package.split("."), *path.relative_to(folder).parts)), path


def _record(contents: dict[str, bytes]) -> bytes:
    """Return the wheel's list of files with their hashes."""
    lines = []
    for name, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{_INFO}/RECORD,,", ""]).encode()
