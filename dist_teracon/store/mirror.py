"""A run that is written on this machine and kept on a store: what the store holds is brought here, and states of the folder are uploaded
in the background, each made visible by one manifest (`manifest.py`).

A process killed at any moment leaves parts that no manifest names, which are removed when the run is next taken up. `.store.json` in the
folder notes on which manifest it rests: the same machine goes on with what it has, even if that was not uploaded yet. On another machine,
or where another process has gone on since, the folder becomes what the store holds.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from dist_teracon import io
from dist_teracon.console import Log, no_log
from dist_teracon.errors import DataError, RunError, TeraconError
from dist_teracon.store.commits import Commits, read_mark
from dist_teracon.store.lease import LASTS_S, Lease
from dist_teracon.store.manifest import Manifest, Part, manifest_numbers, newest_manifests
from dist_teracon.store.objects import Objects
from dist_teracon.store.restore import Restored, restore_folder
from dist_teracon.store.snapshot import Snapshot, take_snapshot, visible_files
from dist_teracon.store.view import everything

_STAGING = ".uploads"
# Seconds between the attempts at a store that fails, while the run goes on.
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True)
class Patience:
    """How long a mirror waits, in seconds.

    Attributes:
        lease_s: A lease lasts without a heartbeat.
        store_s: For a store that fails, where something has to be there before the run goes on.
        pseudo_labels_s: Between two uploads of finished shards of pseudo-labels.
        at_stop_s: For what is under way, where the run stops with an error or is stopped.
    """

    lease_s: float = LASTS_S
    store_s: float = 600.0
    pseudo_labels_s: float = 60.0
    at_stop_s: float = 20.0

    @classmethod
    def from_environment(cls) -> Patience:
        """Return the defaults, changed by `DIST_TERACON_LEASE_S` and `DIST_TERACON_STORE_PATIENCE_S`.

        Raises:
            RunError: a variable is no positive number.
        """
        return cls(lease_s=_seconds("DIST_TERACON_LEASE_S", LASTS_S), store_s=_seconds("DIST_TERACON_STORE_PATIENCE_S", 600.0))


class Mirror:
    """A run's folder on this machine and its state on a store.

    Args:
        uri: Of the run on the store.
        folder: Where the run is written.
        patience: How long to wait for what.
        log: Takes lines for a person.
    """

    def __init__(self, uri: str, folder: Path, *, patience: Patience | None = None, log: Log = no_log) -> None:
        self.folder, self._log = folder, log
        self._patience = patience or Patience.from_environment()
        self._objects = Objects(uri)
        self._lease = Lease(self._objects, lasts_s=self._patience.lease_s, log=log)
        self._commits: Commits | None = None
        self._changed = threading.Condition()
        self._waiting: tuple[Snapshot, int] | None = None  # the newest state that is not being uploaded yet, and its number
        self._asked = self._done = self._staged = 0
        self._error: BaseException | None = None
        self._trouble = ""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)

    @property
    def uri(self) -> str:
        """Of the run on the store."""
        return self._objects.uri

    def open(self) -> None:
        """Take the lease, and bring the folder to the newest state.

        Raises:
            RunError: another process holds the run; or a part of the state is damaged and there is no older state without it.
            DataError: the store fails.
        """
        try:
            self._lease.acquire()
            shutil.rmtree(self.folder / _STAGING, ignore_errors=True)
            self._commits = self._restored()
            if self._commits.base.number:
                self._commits.claim()
            self._commits.write_mark()
            self._commits.collect_garbage()
        except PermissionError as error:
            raise RunError(f"{self.uri}: the store refuses access ({io.redacted(error)}); check the credentials") from None
        except FileNotFoundError as error:
            raise RunError(f"{self.uri}: there is no such place ({io.redacted(error)}); is the bucket's name right?") from None
        self._thread.start()

    def commit(self, *, wait: bool) -> None:
        """Have the folder's present state uploaded; of states that wait for the store only the newest is.

        Args:
            wait: Return when it is visible to readers; else it is uploaded while the run goes on.

        Raises:
            RunError: another process has taken the run over; or the store has failed for too long.
        """
        self._raise_problem()
        snapshot = self._snapshot()
        with self._changed:
            if self._waiting is not None:
                self._waiting[0].drop()
            self._asked = number = self._asked + 1
            self._waiting = snapshot, number
            self._changed.notify_all()
        if wait:
            self._await(number, self._patience.store_s)

    def add_files(self, files: Mapping[str, Part]) -> None:
        """Take note of files that another machine has sent; the next state has them."""
        assert self._commits is not None
        self._commits.add(files)

    def cut_log(self, path: str, length: int) -> None:
        """Take note that a log was cut to a length, so that its segments beyond are replaced."""
        assert self._commits is not None
        self._commits.cuts[path] = min(length, self._commits.cuts.get(path, length))

    def close(self, *, failed: bool) -> None:
        """Finish what is under way and give the run back.

        Args:
            failed: The run ends with an error, or is stopped: what waits is given a few seconds, and no error is raised.
        """
        try:
            if self._thread.is_alive():
                at_stop_s = 0.0 if self._trouble else self._patience.at_stop_s
                self._await(self._asked, at_stop_s if failed else self._patience.store_s)
        except (TeraconError, OSError) as error:
            if not failed:
                raise
            if self._error is None:  # else the run ends with it
                self._log(f"warning: {io.message_of(error)}")
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._thread.is_alive():
                self._thread.join(timeout=self._patience.at_stop_s)
            self._lease.release()

    # -- what the store holds, brought here

    def _restored(self) -> Commits:
        manifests, problems = newest_manifests(self._objects)
        for problem in problems:
            self._log(f"warning: {problem}" + ("; the state before it is used" if manifests else ""))
        if problems and not manifests:
            raise RunError(f"{problems[0]}, and there is no other; bring it back, or name a new place with --run")
        last_number = max(manifest_numbers(self._objects), default=0)
        mark = read_mark(self.folder)
        if not manifests:
            return self._begun_anew(mark)
        base, keeps = manifests[0], _rests_on(mark, manifests[0])
        done = self._bring(manifests, keeps=keeps)
        if done.lost and len(manifests) > 1:
            self._log(f"warning: {done.lost[0]}; the state before it is used")
            base = manifests[1]
            again = self._bring(manifests[1:], keeps=False)
            again.damaged |= done.damaged
            done = again
        if done.lost:
            raise RunError(f"{done.lost[0]}; bring the object back, or name a new place with --run")
        before = next((manifest for manifest in manifests if manifest.number < base.number and _differ(manifest, base)), None)
        files = {path: part for path, part in base.files.items() if path not in done.left_out}
        commits = Commits(
            self._objects, self.folder, replace(base, files=files), before=before, last_number=last_number, check=self._lease.check
        )
        commits.forget(done.damaged)
        commits.uploaded, commits.cuts = done.uploaded, done.cuts
        return commits

    def _bring(self, manifests: list[Manifest], *, keeps: bool) -> Restored:
        return restore_folder(self._objects, manifests[0], self.folder, keep=keeps, log=self._log)

    def _begun_anew(self, mark: dict[str, object]) -> Commits:
        """Begin a run on the store; one of this machine whose state there was removed is set aside."""
        if mark.get("number") or (not mark and self.folder.exists() and any(visible_files(self.folder))):
            aside = self.folder.with_name(f"{self.folder.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:4]}")
            self.folder.replace(aside)
            self._log(f"warning: {self.uri} holds no run any more; what this machine had of it now lies in {aside}")
            mark = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        base = Manifest(0, str(mark.get("run_id") or uuid4().hex))
        return Commits(self._objects, self.folder, base, before=None, last_number=0, check=self._lease.check)

    # -- uploads

    def _snapshot(self, wanted: Callable[[str], bool] = everything) -> Snapshot:
        assert self._commits is not None
        with self._changed:
            self._staged += 1
            staging = self.folder / _STAGING / f"{os.getpid()}-{self._staged}"
        return take_snapshot(self.folder, staging, self._commits.uploaded, wanted=wanted)

    def _work(self) -> None:
        """Upload what waits, until the mirror is closed or may not write any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing, self._patience.pseudo_labels_s)
                if self._closing:
                    return
                taken, self._waiting = self._waiting, None
            number = 0
            try:
                if taken is not None:
                    number = self._upload(*taken)
                else:
                    self._upload_pseudo_labels()
            except BaseException as error:  # raised again where the run asks for the next commit
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._done = max(self._done, number)
                self._changed.notify_all()

    def _upload(self, snapshot: Snapshot, number: int) -> int:
        """Commit a state; while the store fails, again and again, or the state after it once there is one. Returns its number."""
        assert self._commits is not None
        attempt = 0
        try:
            while True:
                try:
                    self._commits.commit(snapshot)
                except Exception as error:
                    if not isinstance(error, DataError) and not io.is_store_error(error):
                        raise
                    self._note_trouble(error)
                    snapshot, number = self._pause(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)], snapshot, number)
                    attempt += 1
                    if self._closing:
                        return 0
                else:
                    self._note_trouble(None)
                    return number
        finally:
            snapshot.drop()

    def _upload_pseudo_labels(self) -> None:
        """Commit finished shards of pseudo-labels beside the last state, so that another machine need not make them again."""
        assert self._commits is not None
        snapshot = self._snapshot(lambda path: "/pseudo_labels/" in path)
        try:
            if snapshot.new:
                self._commits.commit(snapshot, partial=True)
        except Exception as error:
            if not isinstance(error, DataError) and not io.is_store_error(error):
                raise
            self._note_trouble(error)
        finally:
            snapshot.drop()

    def _pause(self, seconds: float, snapshot: Snapshot, number: int) -> tuple[Snapshot, int]:
        """Wait before the next attempt; returns the state to upload then, with its number."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)
            if self._waiting is None:
                return snapshot, number
            snapshot.drop()
            newer, self._waiting = self._waiting, None
            return newer

    def _note_trouble(self, error: BaseException | None) -> None:
        text = "" if error is None else io.redacted(error)
        if text and not self._trouble:
            self._log(f"warning: {self.uri} fails ({text}); the run goes on, and uploads are tried again")
        if self._trouble and not text:
            self._log(f"{self.uri} answers again")
        with self._changed:
            self._trouble = text

    def _await(self, number: int, seconds: float) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: self._done >= number or self._error is not None, seconds)
        self._raise_problem()
        if not done:
            trouble = f": {self._trouble}" if self._trouble else ""
            raise RunError(
                f"{self.uri}: the store did not take the run's state within {seconds:g} s{trouble}; what was finished is kept in "
                f"{self.folder}, and the same command on this machine goes on from there"
            )

    def _raise_problem(self) -> None:
        if self._error is not None:
            raise self._error
        if self._lease.lost:
            raise RunError(self._lease.lost)


def _rests_on(mark: dict[str, object], newest: Manifest) -> bool:
    """Return whether a folder is the newest state, or went on from it."""
    if mark.get("run_id") != newest.run_id:
        return False
    return newest.checksum in (mark.get("checksum"), mark.get("pending"))


def _differ(one: Manifest, other: Manifest) -> bool:
    return one.files != other.files or one.logs != other.logs


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not value > 0:
        raise RunError(f"{variable}={text}: expected a positive number of seconds")
    return value
