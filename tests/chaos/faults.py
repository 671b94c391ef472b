"""What is done to a run. A fault is a function of a trial; it leaves the run ended or under way, and after it the same command has to
end with the same bits.

Kinds that need other parts (a cluster's workers, its head) are added by `@fault` in a module of their own, which `chaos.py` imports.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import At, Command, Place, in_child

from dist_teracon.store.manifest import newest_manifests
from dist_teracon.store.objects import Objects


class MissedError(Exception):
    """The fault found nothing to act on in this run, as a checkpoint to damage; the trial is drawn anew."""


class WrongError(Exception):
    """The program did not behave as it should under the fault."""


@dataclass
class Trial:
    """A run that something is done to.

    Attributes:
        draw: The trial's random numbers.
        config: The run's configuration.
        place: Where it works.
        ranks: Processes.
        counts: Operations of an undisturbed run of this kind, by activity.
        seconds: That an undisturbed run of this kind takes.
        events: That an undisturbed run of this kind logs.
        store: Makes the store fail (True) or answer again (False); None for runs on a disk.
        notes: What was done, for the report.
    """

    draw: random.Random
    config: dict[str, Any]
    place: Place
    ranks: int
    counts: dict[str, int]
    seconds: float
    events: int
    store: Callable[[bool], None] | None = None
    notes: list[str] = field(default_factory=list)

    def start(self, at: At | None = None) -> Command:
        """Start the command; `at` happens to it."""
        if at is not None:
            self.notes.append(f"{signal.Signals(at.signal).name if at.file_limit is None else 'disk full'} before {at}")
        return Command(self.config, self.place, ranks=self.ranks, at=at)

    def moment(self, *activities: str, rank: int = 0, **what: Any) -> At:
        """Draw an operation, of the named activities or of any."""
        chosen = self.draw.choice([name for name in sorted(self.counts) if self.counts[name] and (not activities or name in activities)])
        return At(chosen, self.draw.randint(1, self.counts[chosen]), rank=rank, **what)

    def expect(self, codes: list[int], *allowed: int) -> None:
        """Check exit codes; a run that ended before the fault came to it is all right."""
        if not set(codes) <= {0, *allowed}:
            raise WrongError(f"exit codes {codes}, expected {sorted({0, *allowed})}")

    def said(self) -> str:
        """Return what the commands so far have written on standard error."""
        return self.place.log.read_text(errors="replace") if self.place.log.exists() else ""

    def change_machine(self) -> None:
        """Lose what this machine had of a run on a store."""
        self.notes.append("another machine")
        shutil.rmtree(self.place.scratch, ignore_errors=True)


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what it is called, the function, whether the run lies on a store, and how many processes it has."""

    name: str
    act: Callable[[Trial], Command | None]
    on_store: bool
    ranks: int


FAULTS: dict[str, Fault] = {}


def fault(name: str, *, on_store: bool = False, ranks: int = 1) -> Callable[[Callable[[Trial], Command | None]], Any]:
    """Add a kind of fault; its function returns a command that is still under way, or None."""

    def add(act: Callable[[Trial], Command | None]) -> Callable[[Trial], Command | None]:
        FAULTS[name] = Fault(name, act, on_store, ranks)
        return act

    return add


# -- processes that end


@fault("kill")
@fault("kill-of-a-run-on-a-store", on_store=True)
def kill(trial: Trial) -> None:
    """SIGKILL before an operation, one to three times."""
    for _ in range(trial.draw.choice((1, 1, 2, 3))):
        trial.expect(trial.start(trial.moment()).wait(), -signal.SIGKILL)
        if trial.store is not None and trial.draw.random() < 0.5:
            trial.change_machine()


@fault("kill-by-the-clock")
@fault("kill-by-the-clock-on-a-store", on_store=True)
def kill_by_the_clock(trial: Trial) -> None:
    """SIGKILL from outside after a random time."""
    command, began = trial.start(), time.monotonic()
    after = trial.draw.uniform(0, trial.seconds)
    trial.notes.append(f"SIGKILL after {after:.2f} s")
    command.wait(lambda: time.monotonic() - began > after)
    command.send(signal.SIGKILL)
    trial.expect(command.wait(), -signal.SIGKILL)


@fault("kill-in-upload", on_store=True)
def kill_in_upload(trial: Trial) -> None:
    """SIGKILL while something is sent to the store, fetched from it, or taken over."""
    trial.expect(trial.start(trial.moment("upload", "taking over", "restore")).wait(), -signal.SIGKILL)
    if trial.draw.random() < 0.7:
        trial.change_machine()


@fault("kill-of-one-rank-of-two", ranks=2)
def kill_one_rank(trial: Trial) -> None:
    """SIGKILL of one process of two; the other one ends, or is ended."""
    command = trial.start(trial.moment(rank=trial.draw.randrange(2)))
    codes = command.wait()
    trial.expect(codes, -signal.SIGKILL, 1, 2, 70)


@fault("SIGTERM")
@fault("SIGTERM-on-a-store", on_store=True)
def terminate(trial: Trial) -> None:
    """SIGTERM, as before a machine is taken away: exit 143, and on a store everything is there for another machine."""
    codes = trial.start(trial.moment(signal=signal.SIGTERM)).wait()
    trial.expect(codes, 143)
    if trial.store is not None and codes == [143]:
        trial.change_machine()


@fault("SIGTERM-of-two-ranks", ranks=2)
def terminate_two(trial: Trial) -> None:
    """SIGTERM of both processes at a random time."""
    command, began = trial.start(), time.monotonic()
    after = trial.draw.uniform(0, trial.seconds)
    trial.notes.append(f"SIGTERM after {after:.2f} s")
    command.wait(lambda: time.monotonic() - began > after)
    command.send(signal.SIGTERM)
    trial.expect(command.wait(), 143, 1, 2, -signal.SIGTERM, -signal.SIGKILL)


# -- disks


def _damage(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content) - 1)]
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@fault("damaged-checkpoint")
def damage_checkpoint(trial: Trial) -> None:
    """A byte flipped in, or the end cut off, a file of the newest checkpoint: noticed, and the one before it used."""
    trial.expect(trial.start(trial.moment("training", "checkpoint", "evaluation")).wait(), -signal.SIGKILL)
    checkpoints = sorted(
        Path(trial.place.run).glob("stages/*/progress/phase-*-epoch-*/state.json"), key=lambda path: path.stat().st_mtime_ns
    )
    if not checkpoints:
        raise MissedError
    file = trial.draw.choice(sorted(checkpoints[-1].parent.iterdir()))
    content = file.read_bytes()
    file.unlink()  # the checkpoint before may have a link to it
    file.write_bytes(_damage(content, trial.draw))
    trial.notes.append(f"damage of {file.relative_to(trial.place.run)}")
    trial.place.log.write_text("")
    codes = trial.start().wait()
    trial.expect(codes)
    if "warning: " not in trial.said():
        raise WrongError("a damaged checkpoint was used without a warning")


@fault("disk-full")
def disk_full(trial: Trial) -> None:
    """From some operation on no file may grow beyond a limit, as where the disk is full: one error, and nothing half-written."""
    limit = trial.draw.choice((1, 500, 5_000, 20_000, 60_000))
    command = trial.start(trial.moment(file_limit=limit))
    trial.expect(command.wait(), 2)


# -- others


@fault("second-process")
def second_process(trial: Trial) -> Command:
    """Another process on the same run is refused, with who holds it; the first one goes on."""
    first = trial.start(trial.moment("training", "checkpoint", "evaluation", "pseudo-labels", signal=signal.SIGSTOP))
    first.wait(lambda: first.stopped)
    if not first.stopped:
        return first
    codes = trial.start().wait()
    first.send(signal.SIGCONT)
    _check_refusal(trial, first, codes)
    return first


@fault("second-process-on-a-store", on_store=True)
def second_process_on_a_store(trial: Trial) -> Command:
    """The same while the first one works: a heartbeat tells that it lives."""
    first, began = trial.start(), time.monotonic()
    after = trial.draw.uniform(0.1, 0.8) * trial.seconds
    trial.notes.append(f"a second process after {after:.2f} s")
    first.wait(lambda: time.monotonic() - began > after)
    codes = trial.start().wait()
    if codes != [0] or not first.poll():  # else the first one has ended meanwhile
        _check_refusal(trial, first, codes)
    return first


def _check_refusal(trial: Trial, first: Command, codes: list[int]) -> None:
    (pid,) = first.children
    if codes != [2] or f"process {pid} on this machine" not in trial.said():
        raise WrongError(f"a second process was not refused with who holds the run: exit codes {codes}")


@fault("store-away", on_store=True)
def store_away(trial: Trial) -> Command:
    """The store fails for a while: the run goes on, and waits where it has to."""
    assert trial.store is not None
    command, began = trial.start(), time.monotonic()
    after, lasts = trial.draw.uniform(0, trial.seconds), trial.draw.uniform(0.5, 4)
    trial.notes.append(f"no store after {after:.2f} s for {lasts:.2f} s")
    command.wait(lambda: time.monotonic() - began > after)
    trial.store(True)
    if trial.draw.random() < 0.3:
        time.sleep(lasts / 2)
        trial.notes.append("SIGKILL meanwhile")
        command.send(signal.SIGKILL)
        command.wait()
    time.sleep(lasts)
    trial.store(False)
    return command


@fault("store-away-in-an-upload", on_store=True)
def store_away_in_an_upload(trial: Trial) -> Command:
    """The store fails in the middle of an upload, for a while that an upload's own retries may not outlast."""
    assert trial.store is not None
    command = trial.start(trial.moment("upload", signal=signal.SIGSTOP))
    command.wait(lambda: command.stopped)
    if not command.stopped:
        return command
    trial.store(True)
    command.send(signal.SIGCONT)
    lasts = trial.draw.uniform(0.2, 5)
    trial.notes.append(f"no store for {lasts:.2f} s from then on")
    time.sleep(lasts)
    trial.store(False)
    return command


@fault("damaged-part", on_store=True)
def damage_part(trial: Trial) -> None:
    """A part of a checkpoint on the store is damaged; another machine goes on from the checkpoint before."""
    trial.expect(trial.start(trial.moment("training", "checkpoint", "evaluation")).wait(), -signal.SIGKILL)
    trial.change_machine()
    seed = trial.draw.random()

    def damage() -> str:
        os.environ.update(trial.place.variables)
        objects = Objects(trial.place.run)
        manifests, _ = newest_manifests(objects)
        if not manifests:
            return ""
        newest, kept = manifests[0], manifests[0].files
        folders = {path.rpartition("/")[0] for path in kept if "/progress/phase-" in path and "-epoch-" in path}
        if not folders:
            return ""
        own = sorted(path for path in kept if path.startswith(f"{max(folders)}/"))
        path = random.Random(seed).choice(own)
        objects.write(newest.files[path].key, _damage(objects.read(newest.files[path].key), random.Random(seed)))
        return path

    if not (path := in_child(damage)):
        raise MissedError
    trial.notes.append(f"damage of {path} on the store")
    trial.place.log.write_text("")
    trial.expect(trial.start().wait())
    if "warning: " not in trial.said():
        raise WrongError("a damaged part was used without a warning")
