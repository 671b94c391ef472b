"""Workers that take a run over from an attempt before wait until that one has left it."""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import pytest

from dist_teracon.config import RunConfig
from dist_teracon.errors import RunError
from dist_teracon.launch import ray_train
from dist_teracon.launch.job import TrainJob
from dist_teracon.store.lease import Lease
from dist_teracon.store.objects import Objects

LASTS_S = 0.6


def job_of(uri: str) -> TrainJob:
    return TrainJob(RunConfig(dataset="nowhere", method={"name": "teracon"}), uri, "test")


def test_a_run_on_a_store_is_waited_for_while_its_holder_still_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_LEASE_S", str(LASTS_S))
    uri = f"memory://bucket/{uuid4().hex}/run"
    before, after = (Lease(Objects(uri), lasts_s=LASTS_S) for _ in range(2))
    before.acquire()
    left: list[float] = []

    def leave() -> None:
        time.sleep(3 * LASTS_S)  # it beats meanwhile, so that a process which came now would be refused
        left.append(time.monotonic())
        before.release()

    leaving = threading.Thread(target=leave)
    leaving.start()
    ray_train._wait_for_run(job_of(uri))
    assert left and time.monotonic() >= left[0]
    leaving.join()
    after.acquire()
    after.release()


def test_a_holder_that_stays_is_training_s_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_LEASE_S", str(LASTS_S))
    monkeypatch.setattr(ray_train, "_FOLDER_S", 0.5)
    uri = f"memory://bucket/{uuid4().hex}/run"
    before = Lease(Objects(uri), lasts_s=LASTS_S)
    before.acquire()
    ray_train._wait_for_run(job_of(uri))
    with pytest.raises(RunError, match="is writing this run"):
        Lease(Objects(uri), lasts_s=LASTS_S).acquire()
    before.check()
    before.release()
