"""The Ray cluster of a run: connected to, or started on this machine; and whether it has what the workers need."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dist_teracon.config.run import LaunchConfig
from dist_teracon.console import Log
from dist_teracon.errors import ConfigError


@dataclass(frozen=True)
class Worker:
    """What a worker reserves.

    Attributes:
        resources: By Ray's names, as `{"CPU": 1.0, "GPU": 1.0}`.
        use_gpu: Whether it computes on a GPU.
    """

    resources: dict[str, float]
    use_gpu: bool


@contextmanager
def connected(launch: LaunchConfig, log: Log) -> Iterator[None]:
    """Be connected to the cluster of `RAY_ADDRESS` or of a Ray job; without one, to a cluster of this machine alone, stopped at the end.

    Raises:
        ConfigError: the cluster does not answer, or its token is missing or another.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        with cluster_at(address, asked_by="--launcher ray: RAY_ADDRESS"):
            log(f"Ray {ray.__version__}: the cluster of RAY_ADDRESS")
            yield
        return
    cpus = max(os.cpu_count() or 1, _whole(launch.workers * launch.cpus_per_worker))
    # Ray's workers are nice to others, 15 by default; a run that has a cluster of its own trains as it would without Ray
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_system_config": {"worker_niceness": 0}}
    try:
        _init(address="local", num_cpus=cpus, **own)
    except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--launcher ray: Ray does not start on this machine ({' '.join(str(error).split())})") from None
    try:
        log(f"Ray {ray.__version__}: started on this machine, for this run alone")
        yield
    finally:
        ray.shutdown()


@contextmanager
def cluster_at(address: str, *, asked_by: str) -> Iterator[None]:
    """Be connected to a running cluster.

    Args:
        address: As Ray takes it: `auto`, or host:port.
        asked_by: Which option or variable gave the address, for error messages.

    Raises:
        ConfigError: the cluster does not answer, or its token is missing or another.
    """
    import ray

    try:
        _init(address=address)
    except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{asked_by}={address}: {_refusal(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _init(**options: Any) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _whole(number: float) -> int:
    return int(-(-number // 1))


def _refusal(error: BaseException) -> str:
    """Return why a cluster refuses, and how to mend it."""
    text = " ".join(str(error).split())
    if "token" in text.lower() or "auth" in type(error).__name__.lower():
        return f"the cluster wants its token ({text}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file> as where it was started"
    return f"no cluster answers there ({text}); start it (`ray start --head`), or give another address"


def worker_of(launch: LaunchConfig) -> Worker:
    """Return what a worker reserves on the cluster that this process is connected to."""
    import ray

    gpus = launch.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) > 0 else 0.0
    resources = {"CPU": launch.cpus_per_worker, **({"GPU": gpus} if gpus else {}), **launch.resources_per_worker}
    return Worker(resources, gpus > 0)


def lacking(launch: LaunchConfig, worker: Worker) -> str:
    """Return what the cluster has too little of for the fewest workers that the run can start with, for a person; or nothing."""
    import ray

    there, workers = ray.cluster_resources(), launch.min_workers or launch.workers
    needed = {name: workers * amount for name, amount in worker.resources.items()}
    short = [f"{amount:g} {name} (has {there.get(name, 0):g})" for name, amount in needed.items() if there.get(name, 0) < amount]
    return f"{workers} worker(s) need {', '.join(short)}" if short else ""


def described(launch: LaunchConfig, worker: Worker) -> str:
    """Return in words what is asked of the cluster."""
    count = f"{launch.workers}" if launch.min_workers is None else f"{launch.min_workers} to {launch.workers}"
    each = ", ".join(f"{amount:g} {name}" for name, amount in worker.resources.items())
    return f"{count} worker(s), each with {each}, on {'GPUs (nccl)' if worker.use_gpu else 'CPUs (gloo)'}"
