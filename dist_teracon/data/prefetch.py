"""Preparing what comes next while what is there is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_S = 0.05


def prefetch(items: Iterator[T], *, depth: int = 2) -> Generator[T]:
    """Pass items on in their order, up to `depth` of them made ahead by a thread.

    An error of `items` is raised where its item would have come. The thread ends with the items, and where this generator is closed
    or dropped before; `items` is closed too if it can be.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed over whole: the consumer raises it
            put("error", error)
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()

    worker = threading.Thread(target=work, name="ahead", daemon=True)
    worker.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        worker.join()
