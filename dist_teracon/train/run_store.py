"""Where a run is written: in its folder, or in a working folder that is mirrored to a store, on every machine that takes part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from dist_teracon import io
from dist_teracon.console import Console
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.runtime import Runtime
from dist_teracon.store.manifest import newest_manifests
from dist_teracon.store.mirror import Mirror
from dist_teracon.store.objects import Objects
from dist_teracon.store.restore import restore_folder
from dist_teracon.store.view import place_name
from dist_teracon.train.run_folder import RunFolder

SCRATCH = "DIST_TERACON_SCRATCH"


@contextmanager
def open_run(run: RunFolder | Path | str, runtime: Runtime, console: Console) -> Iterator[RunFolder]:
    """Open a run to write it; all ranks call it.

    A run on a store is written below `DIST_TERACON_SCRATCH` (else among the system's temporary files), which may be another folder on
    every machine. The main process holds the run's lease and uploads; every machine begins with what the store holds.

    Args:
        run: Folder or URI.
        runtime: This process's place in the world.
        console: Takes lines for a person.

    Raises:
        RunError: another process holds the run, or it is damaged on the store.
    """
    if isinstance(run, RunFolder):
        yield run
        return
    if io.is_local(str(run)):
        yield RunFolder(io.local_path(str(run)).expanduser())
        return
    folder = RunFolder(scratch_folder(str(run)), uri=str(run).rstrip("/"))
    if runtime.is_main:
        folder.mirror = _on_main(runtime, lambda: _opened(folder, console))
    else:
        runtime.raise_on_all_ranks("")
    failed = True
    try:
        _bring_to_other_machines(folder, runtime)
        yield folder
        failed = False
    finally:
        if folder.mirror is not None:
            folder.mirror.close(failed=failed)


def scratch_folder(uri: str) -> Path:
    """Return the folder in which a run on a store is written on this machine.

    Raises:
        RunError: the folder among the system's temporary files is another user's.
    """
    if named := os.environ.get(SCRATCH):
        return Path(named).expanduser() / place_name(uri)
    own = Path(tempfile.gettempdir()) / f"dist-teracon-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise RunError(f"{own}: is not this user's; name another folder in {SCRATCH}")
    return own / place_name(uri)


def _opened(folder: RunFolder, console: Console) -> Mirror:
    mirror = Mirror(str(folder), folder.path, log=console.log)
    try:
        mirror.open()
    except BaseException:
        mirror.close(failed=True)
        raise
    console.log(f"{folder}: is written in {folder.path} on this machine")
    return mirror


def _on_main(runtime: Runtime, action: Callable[[], Any]) -> Any:
    """Return what the main process's action returns; its error reaches every rank."""
    try:
        result = action()
    except (TeraconError, OSError) as error:
        runtime.raise_on_all_ranks(io.message_of(error))
        raise
    runtime.raise_on_all_ranks("")
    return result


def _bring_to_other_machines(folder: RunFolder, runtime: Runtime) -> None:
    """On machines whose folder is not the main process's, make it what the store holds; one process of each does."""
    if runtime.world_size == 1:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    token = folder.path / f".rank-{runtime.rank}-{uuid4().hex}"
    token.touch()
    tokens = runtime.gather(token.name)
    here = [rank for rank, name in enumerate(tokens) if (folder.path / name).exists()]
    folder.machines = len(set(runtime.gather(here[0])))
    folder.leads = here[0] == runtime.rank and not runtime.is_main
    if folder.machines > 1:
        # what the main process's machine had not sent when it stopped: all go on from one state
        if runtime.is_main:
            _on_main(runtime, lambda: folder.commit(wait=True))
        else:
            runtime.raise_on_all_ranks("")
    problem = ""
    if folder.leads:
        try:
            _restore(folder)
        except (TeraconError, OSError) as error:
            problem = io.message_of(error)
    problems = [text for text in runtime.gather(problem) if text]
    token.unlink()
    if problems:
        raise RunError(problems[0])


def _restore(folder: RunFolder) -> None:
    objects = Objects(str(folder))
    manifests, _ = newest_manifests(objects)
    if not manifests:
        return
    done = restore_folder(objects, manifests[0], folder.path, keep=False, log=lambda _: None)
    if done.lost:
        raise RunError(done.lost[0])
