"""One writer a run: refused, taken over, given back, and noticed when it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from dist_teracon.errors import RunError
from dist_teracon.store.holder import Holder
from dist_teracon.store.lease import Lease
from dist_teracon.store.objects import Objects

SHORT_S = 0.6


@pytest.fixture
def objects() -> Objects:
    return Objects(f"memory://bucket/{uuid4().hex}/run")


def held(objects: Objects, number: int, **changes: object) -> bytes:
    """Write a lease of another machine, which does not beat."""
    holder = replace(Holder.this_process(), machine="elsewhere", **changes)
    record = json.dumps({"holder": vars(holder), "beat": 3, "lasts_s": SHORT_S, "released": False}).encode()
    objects.write(f"lease/{number:08d}.json", record)
    return record


def test_a_second_process_is_refused_with_who_holds_it(objects: Objects) -> None:
    first = Lease(objects, lasts_s=SHORT_S)
    first.acquire()
    with pytest.raises(RunError, match=rf"process {first.holder.pid} on this machine, since 20.* is writing this run"):
        Lease(objects, lasts_s=SHORT_S).acquire()
    first.check()
    first.release()
    second = Lease(objects, lasts_s=SHORT_S)
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began < SHORT_S / 2  # given back: nothing to wait for
    second.release()


def test_a_lease_that_does_not_beat_runs_out(objects: Objects) -> None:
    held(objects, 4)
    said: list[str] = []
    lease = Lease(objects, lasts_s=99, log=said.append)
    began = time.monotonic()
    lease.acquire()
    assert SHORT_S <= time.monotonic() - began < 3 * SHORT_S
    assert "machine elsewhere" in said[0] and f"{SHORT_S:g} s" in said[0]
    assert objects.names("lease") == ["00000004.json", "00000005.json"]
    lease.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(objects: Objects) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    holder = replace(Holder.this_process(), pid=int(child.stdout))
    objects.write("lease/00000001.json", json.dumps({"holder": vars(holder), "beat": 0, "lasts_s": 60, "released": False}).encode())
    lease = Lease(objects, lasts_s=60)
    began = time.monotonic()
    lease.acquire()
    assert time.monotonic() - began < 5
    lease.release()


def test_a_process_that_got_a_dead_ones_number_is_not_taken_for_it() -> None:
    mine = Holder.this_process()
    assert not mine.is_dead
    assert replace(mine, started="1").is_dead
    assert not replace(mine, started="1", machine="elsewhere").is_dead


def test_a_holder_that_was_taken_over_notices_by_itself_and_before_it_writes(objects: Objects) -> None:
    quick, slow = Lease(objects, lasts_s=0.3), None
    quick.acquire()
    held(objects, 2, pid=77)
    deadline = time.monotonic() + 5
    while not quick.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "taken over by process 77 on machine elsewhere" in quick.lost
    quick.release()
    slow = Lease(objects, lasts_s=600)
    objects.write("lease/00000002.json", json.dumps({"released": True}).encode())
    slow.acquire()
    held(objects, 4, pid=78)
    with pytest.raises(RunError, match="taken over by process 78"):
        slow.check()
    slow.release()
    assert json.loads(objects.read("lease/00000004.json"))["released"] is False  # the other's lease is left alone


def test_of_many_that_come_at_once_one_wins(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []
    pipe, one_at_a_time = objects._pipe, threading.Lock()  # as a real store takes conditional writes

    def atomic(*arguments: Any, **options: Any) -> None:
        with one_at_a_time:
            pipe(*arguments, **options)

    monkeypatch.setattr(objects, "_pipe", atomic)

    def take() -> None:
        lease = Lease(objects, lasts_s=SHORT_S)
        try:
            lease.acquire()
        except RunError:
            outcomes.append("refused")
        else:
            outcomes.append("won")
            time.sleep(3 * SHORT_S)
            lease.release()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["won"]


def test_a_store_that_fails_for_a_while_does_not_end_the_heartbeat(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(objects, lasts_s=0.3)
    lease.acquire()
    write, failing = objects.write, threading.Event()
    failing.set()

    def flaky(key: str, content: bytes) -> None:
        if failing.is_set():
            raise OSError("the store is away")
        write(key, content)

    monkeypatch.setattr(objects, "write", flaky)
    time.sleep(0.5)
    failing.clear()
    time.sleep(0.5)
    assert json.loads(objects.read("lease/00000001.json"))["beat"] > 2
    assert not lease.lost
    lease.release()
