"""Preparation on a Ray cluster: the same steps as on one machine, each a Ray Data pass over its pieces.

    files       -> spilled rows by partition, in the staging folder
    partitions  -> what each holds, added up by the driver into vocabularies
    groups      -> shards, written where the data set grows; under `split: rows` one more pass before it, for the examples' keys

A piece's result is a row of Ray Data's, of some kilobytes; rows of users travel through the staging folder, next to the data set, which
must be seen by all nodes: a shared disk, or the store itself. What is written equals that of one machine byte for byte, as
shards, vocabularies and order follow from the users alone. Every pass checks that each piece came back once, and the last one that
users and examples are as many as were read.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dist_teracon.errors import DataError
from dist_teracon.io import filesystem_of

P = TypeVar("P")
R = TypeVar("R")
_FAILED = "--cluster: a worker failed"


@dataclass(frozen=True)
class RayWorkers:
    """A Ray cluster's workers; see `Workers`.

    Attributes:
        staging: URI of a folder that all nodes see.
    """

    staging: str

    def map(self, work: Callable[[P], R], pieces: Sequence[P], *, done: Callable[[int], None] = lambda _: None) -> list[R]:
        """Return `work` of each piece in the pieces' order, done by the cluster's workers.

        Raises:
            DataError: a worker's error that is a user's, or a piece that did not come back once.
        """
        import ray
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        shared = ray.put((work, list(pieces)))  # once a cluster, not once a piece

        def one(row: dict[str, Any]) -> dict[str, Any]:
            work, pieces = ray.get(shared)
            # between this program's own processes, in a form that Arrow does not look into
            try:
                return {"number": row["number"], "error": "", "result": pickle.dumps(work(pieces[row["number"]]))}
            except DataError as error:
                return {"number": row["number"], "error": str(error), "result": b""}
            except Exception as error:  # whatever it is, the driver reports it in one line
                text = f"{_FAILED} ({type(error).__name__}: {error}); do all nodes see the raw files and the data set's folder?"
                return {"number": row["number"], "error": text, "result": b""}

        numbers = ray.data.from_items([{"number": number} for number in range(len(pieces))], override_num_blocks=max(1, len(pieces)))
        found: dict[int, R] = {}
        errors: dict[int, str] = {}
        times = 0
        try:
            for row in numbers.map(one).iter_rows():
                times += 1
                if row["error"]:
                    errors[row["number"]] = row["error"]
                else:
                    found[row["number"]] = pickle.loads(row["result"])
                done(times)
        except ray.exceptions.RayError as error:
            raise DataError(f"{_FAILED} ({type(error).__name__}); was it stopped, or out of memory? see the cluster's logs") from None
        if errors:
            raise DataError(errors[min(errors)])
        if times != len(pieces) or len(found) != len(pieces):
            raise DataError(f"--cluster: {times} results came back for {len(pieces)} pieces of work; prepare the data set again")
        return [found[number] for number in range(len(pieces))]


@contextmanager
def ray_workers(staging: str) -> Iterator[RayWorkers]:
    """Yield the workers of a cluster; the staging folder is removed afterwards.

    Raises:
        DataError: the cluster does not answer.
    """
    with connected():
        try:
            yield RayWorkers(staging)
        finally:
            filesystem, path = filesystem_of(staging)
            if filesystem.exists(path):
                filesystem.rm(path, recursive=True)


@contextmanager
def connected() -> Iterator[None]:
    """Be connected to the cluster of `RAY_ADDRESS` or of a Ray job; without one, to Ray processes of one's own on this machine.

    Raises:
        DataError: the cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except ConnectionError as error:
        raise DataError(f"--cluster: Ray at RAY_ADDRESS does not answer ({error}); start it, or unset RAY_ADDRESS") from None
    try:
        yield
    finally:
        ray.shutdown()
