"""What workers take over: a job free of the driver's working directory, and a run that the attempt before has left."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from dist_teracon.config.run import RunConfig
from dist_teracon.errors import RunError
from dist_teracon.launch import ray_train
from dist_teracon.launch.job import TrainJob, resolved
from dist_teracon.store.lease import Lease
from dist_teracon.store.objects import Objects
from dist_teracon.train.add_task import AddedTask

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


def test_a_job_for_other_machines_has_no_relative_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = replace(job_of("runs/first"), run=Path("runs/first"), added=AddedTask("gender", "text", "vectors.parquet"))
    sent = resolved(job)
    assert sent.run == tmp_path / "runs/first"
    assert sent.config.dataset == str(tmp_path / "nowhere")
    assert sent.added == AddedTask("gender", "text", str(tmp_path / "vectors.parquet"))
    far = AddedTask("gender", "text", "s3://bucket/vectors.parquet")
    assert resolved(replace(job, added=far)).added == far
