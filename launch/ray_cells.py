"""The cells of a comparison on a Ray cluster: `dist-teracon compare PLAN --out DIR --launcher ray` (docs/comparing.md).

A cell is a Ray task that starts the same process as on one machine and waits for it. All state is in the comparison's folder, which every
node has to see; so a cell whose node is gone goes on from its newest checkpoint with the next command, or on another node at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from dist_teracon.compare.cells import CellJob, Runner, take_next
from dist_teracon.config.run import LaunchConfig, RunConfig
from dist_teracon.config_io import read_yaml, validate
from dist_teracon.console import Log
from dist_teracon.launch.ray_cluster import Worker, connected, lacking, worker_of

# How often a cell is started anew where its node is gone.
_RETRIES = 2
# How long a process has to write its checkpoint before it is killed.
_GRACE_S = 30.0
# Resources that a task asks for by an option, and not among `resources`.
_OPTION_OF = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def on_ray(parallel: int | None, log: Log) -> Runner:
    """Return the runner of Ray tasks on the cluster of `RAY_ADDRESS`, or on Ray started on this machine.

    Args:
        parallel: Cells at a time; what the cluster has room for where None. A cell reserves what one worker of its configuration's group
            `launch` does.
        log: Takes messages.
    """

    def run(jobs: Sequence[CellJob]) -> Generator[tuple[CellJob, str | None], None, None]:
        with connected(LaunchConfig(), log):
            yield from _tasks(jobs, parallel, log)

    return run


def _tasks(jobs: Sequence[CellJob], parallel: int | None, log: Log) -> Generator[tuple[CellJob, str | None], None, None]:
    import ray

    waiting, told = list(jobs), set[str]()
    running: dict[Any, CellJob] = {}
    try:
        while waiting or running:
            while waiting and (parallel is None or len(running) < parallel):
                job = take_next(waiting, [other.run for other in running.values()])
                launch = validate(RunConfig, read_yaml(str(job.config)), where=str(job.config)).launch
                worker = worker_of(launch)
                short = lacking(launch.model_copy(update={"workers": 1, "min_workers": None}), worker)
                if short and short not in told:
                    told.add(short)
                    log(f"{job.name}: {short}: it waits for a node that has them")
                running[_submit(job, worker)] = job
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(reference)
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayError as error:
                problem = f"Ray: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"
            yield job, problem
    finally:
        for reference in running:
            ray.cancel(reference)
        if running:  # their processes write a checkpoint
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE_S)


def _submit(job: CellJob, worker: Worker) -> Any:
    import ray

    task: Any = ray.remote(_run)
    return task.options(max_retries=_RETRIES, name=job.name, **task_options(worker.resources)).remote(job)


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return how a Ray task asks for what a worker reserves: some resources have options of their own, the others share one."""
    own = {_OPTION_OF[name]: amount for name, amount in resources.items() if name in _OPTION_OF}
    return {**own, "resources": {name: amount for name, amount in resources.items() if name not in _OPTION_OF}}


def _run(job: CellJob) -> str | None:
    """Run a cell as a task; ends its process with it."""
    if unseen := [str(path) for path in (job.cwd, job.config, job.log.parent) if not path.exists()]:
        import socket

        return f"node {socket.gethostname()} does not see {unseen[0]}: name a folder (--out) and a working directory that all nodes have"
    with job.start() as process:
        try:
            return job.problem(process.wait())
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
