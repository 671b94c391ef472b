"""Faults of a run on Ray: its workers, its driver, the raylet, the whole cluster.

The run's bits are those of two processes of any launcher.

The command is `train --launcher ray` with two workers. What a death leaves is met by the same command: on the same cluster where that is
still there, else on a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from faults import MissedError, Trial, WrongError, fault
from ray_clusters import Cluster, ray_cluster

_LIMIT_S = 240.0
_clusters = contextlib.ExitStack()
_running: list[Cluster] = []
atexit.register(_clusters.close)


def cluster() -> Cluster:
    """Return the cluster that trials share, a new one where the last was killed."""
    if not _running:
        _running.append(_clusters.enter_context(ray_cluster(cpus=2)))
    return _running[0]


def _end_cluster() -> None:
    _running.clear()
    _clusters.close()


class RayRun:
    """The command, under way.

    Args:
        trial: Whose run it is.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial, place = trial, trial.place
        config = place.log.with_name("config.yaml")
        # the workers' environment is the cluster's, so they would prepare the data set elsewhere
        (described,) = (place.cache.parent.parent / "undisturbed-disk-2" / "cache").rglob("dataset.json")
        config.write_text(json.dumps({**trial.config, "dataset": str(described.parent)}))  # JSON is YAML
        command = [sys.executable, "-m", "dist_teracon", "train", str(config), "--run", place.run, "--launcher", "ray", "--no-report"]
        environment = {**cluster().environment, **place.variables, "DIST_TERACON_CACHE": str(place.cache)}
        environment["DIST_TERACON_SCRATCH"] = str(place.scratch)
        with place.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--set", "launch.workers=2"], cwd=place.cache.parent, env=environment, stdout=log, stderr=log
            )  # fmt: skip
        self._until = time.monotonic() + _LIMIT_S

    def comes_to(self, events: int) -> bool:
        """Wait until the run has logged so many events; returns whether it was still under way then."""
        log = Path(self.trial.place.run) / "events.jsonl"
        while self.process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= events:
                return True
            self._check_time()
            time.sleep(0.02)
        return False

    def wait(self) -> int:
        """Wait for the command's end."""
        while self.process.poll() is None:
            self._check_time()
            time.sleep(0.1)
        return int(self.process.returncode)

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            self.process.kill()
            raise WrongError(f"the command on Ray takes more than {_LIMIT_S:.0f} s; see {self.trial.place.log}")

    def goes_on(self) -> None:
        """Check that the command ends well."""
        if code := self.wait():
            raise WrongError(f"the command on Ray fails with {code}; see {self.trial.place.log}")


def _of_cluster(part: str) -> list[psutil.Process]:
    """Return the processes of the trials' cluster with a word in their command line."""
    token, found = cluster().environment["RAY_AUTH_TOKEN_PATH"], []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if part in " ".join(process.info["cmdline"] or []) and process.environ().get("RAY_AUTH_TOKEN_PATH") == token:
                found.append(process)
    return found


def _begun(trial: Trial) -> RayRun:
    """Start the command, and let it come to a random event of the run.

    Raises:
        MissedError: it was over before.
    """
    run = RayRun(trial)
    events = trial.draw.randint(1, trial.events)
    trial.notes.append(f"at event {events} of {trial.events}")
    if not run.comes_to(events):
        run.goes_on()
        raise MissedError
    time.sleep(trial.draw.uniform(0, 0.3))
    return run


@fault("ray-worker", ranks=2)
def kill_worker(trial: Trial) -> None:
    """SIGKILL of a worker: Ray starts the workers anew, and the command goes on by itself."""
    run = _begun(trial)
    workers = _of_cluster("RayTrainWorker")
    if not workers:
        raise MissedError
    trial.draw.choice(sorted(workers, key=lambda worker: worker.pid)).kill()
    run.goes_on()


@fault("ray-driver", ranks=2)
def kill_driver(trial: Trial) -> None:
    """SIGKILL of the command itself: its workers end with it, and the same command goes on."""
    run = _begun(trial)
    run.process.kill()
    if run.wait() != -signal.SIGKILL:
        raise MissedError
    RayRun(trial).goes_on()


@fault("raylet", ranks=2)
def kill_raylet(trial: Trial) -> None:
    """SIGKILL of the node's raylet: the command gives up, and goes on on a new cluster."""
    run = _begun(trial)
    (raylet,) = [process for process in _of_cluster("raylet/raylet") if process.name() == "raylet"]
    raylet.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(60)
    run.process.kill()
    run.wait()
    _end_cluster()
    RayRun(trial).goes_on()


@fault("ray-cluster", ranks=2)
def kill_cluster(trial: Trial) -> None:
    """SIGKILL of everything at once, as where the power fails: the same command goes on on a new cluster."""
    run = _begun(trial)
    for process in [*_of_cluster(""), run.process]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    run.wait()
    _end_cluster()
    RayRun(trial).goes_on()
