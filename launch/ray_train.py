"""The run on a Ray cluster: `dist-teracon train CONFIG --run RUN --launcher ray` (docs/distributed.md).

Ray Train starts the workers, makes their process group and assigns their devices; each runs the same training as any other process.
State is in the run's folder alone: after a failure Ray starts the workers anew, maybe fewer, and the run goes on from its newest
checkpoint. Ray's own checkpoints are not used.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dist_teracon.config.run import LaunchConfig
from dist_teracon.console import Console, set_up_logging
from dist_teracon.errors import ConfigError, RunError, TeraconError
from dist_teracon.launch.job import TrainJob, resolved, train_in_process
from dist_teracon.launch.ray_cluster import Worker, connected, described, lacking, worker_of
from dist_teracon.launch.ray_messages import Failure, Messages, SentConsole, SentLog, first_cause, send_failure
from dist_teracon.memory import one_heap

_POLL_S = 0.3
# So much of what Ray itself printed is shown after a failure, in characters.
_RAYS_WORDS = 1500
# How long the driver waits for what follows a user's mistake before it stops the workers.
_GRACE_S = 3.0
# How long workers that take over wait for the run, which a worker of the attempt before may still be leaving.
_FOLDER_S = 120.0
# Settings that workers take over from the driver: which kernels run must not depend on where Ray was started.
_PASSED_ON = (
    "DIST_TERACON_KERNELS", "DIST_TERACON_CPU_PRODUCTS", "DIST_TERACON_SCRATCH", "DIST_TERACON_LEASE_S", "DIST_TERACON_STORE_PATIENCE_S",
    "TRITON_INTERPRET",
)  # fmt: skip


def train_on_ray(job: TrainJob, console: Console) -> None:
    """Train on the cluster of `RAY_ADDRESS` or of a Ray job, or on Ray started on this machine.

    Args:
        job: The run; `config.launch` has what the cluster is asked for.
        console: Where the main worker's log is shown.

    Raises:
        ConfigError: no cluster, or one that cannot run the workers.
        TeraconError: a user's mistake, in the words of the worker that met it.
        WorkersError: workers failed more often than `launch.max_failures` allows.
    """
    if "RANK" in os.environ:
        raise ConfigError("--launcher ray: torchrun has started this process already (RANK is set); use one of the two")
    from ray.exceptions import RayError

    job = resolved(job)
    words = io.StringIO()  # Ray prints what its nodes report of dead workers; the run's own error is to stand first
    with redirect_stdout(words), connected(job.config.launch, console.log):
        try:
            _Driver(job, console).run()
        except RayError as error:
            raise WorkersError(f"Ray does not answer any more ({_last_line(error)}); the same command goes on") from error
        except WorkersError as error:
            raise WorkersError(f"{error}\n{_of_ray(words.getvalue())}".rstrip()) from error.__cause__


class WorkersError(Exception):
    """Workers failed, and not by a user's mistake; the text begins with the failure that the others follow from."""


def _of_ray(words: str) -> str:
    """Return the end of what Ray printed, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", words).strip()[-_RAYS_WORDS:]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


class _Driver:
    """Starts the workers and shows what they send until they end."""

    def __init__(self, job: TrainJob, console: Console) -> None:
        import ray

        self._job, self._console, self._launch = job, console, job.config.launch
        self._worker = worker_of(self._launch)
        node = ray.get_runtime_context().get_node_id()
        here: Any = ray.remote(num_cpus=0)(Messages)
        self._messages = here.options(label_selector={"ray.io/node-id": node}).remote()
        try:
            ray.get(self._messages.given_up.remote())
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"--launcher ray: Ray's processes cannot run this program ({_last_line(error)}): install the same version on every node, "
                "or submit the run as a job (python -m dist_teracon.launch.submit), which brings it along"
            ) from None
        self._lines = 0
        self._attempts: list[int] = []
        self._failures: list[Failure] = []
        self._of_attempt: list[Failure] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Train to the end."""
        self._console.log(described(self._launch, self._worker))
        if short := lacking(self._launch, self._worker):
            self._console.log(f"{short}: waiting up to {self._launch.wait_minutes:g} minutes (launch.wait_minutes)")
        with tempfile.TemporaryDirectory(prefix="dist-teracon-ray-") as scratch:
            # beside the main thread, which then keeps its own way with Ctrl-C: Ray is left, and the workers end with it
            training = threading.Thread(target=self._fit, args=(scratch,), daemon=True)
            training.start()
            self._follow(training)
        self._show()
        if self._error is not None or self._final() is not None:
            self._raise()

    def _fit(self, scratch: str) -> None:
        try:
            _trainer(self._job, self._worker, self._messages, scratch).fit()
        except BaseException as error:
            self._error = error

    def _follow(self, training: threading.Thread) -> None:
        began, given_up_at = time.monotonic(), None
        while training.is_alive():
            training.join(_POLL_S)
            self._show()
            now = time.monotonic()
            if self._final() is not None:
                given_up_at = given_up_at or now
                if now - given_up_at > _GRACE_S:
                    return
            if not self._attempts and now - began > 60 * self._launch.wait_minutes:
                short = lacking(self._launch, self._worker) or "the workers did not start"
                raise ConfigError(f"--launcher ray: {short}, after {self._launch.wait_minutes:g} minutes of waiting (launch.wait_minutes)")

    def _show(self) -> None:
        """Show the lines that came since the last call, and attempts that began after a failure."""
        import ray

        lines, attempts, failures = ray.get(self._messages.since.remote(self._lines, len(self._failures)))
        self._failures += failures
        self._of_attempt += failures
        for world_size in attempts[len(self._attempts) :]:
            if self._attempts:
                self._console.log(self._restarted(world_size, len(attempts)))
            self._of_attempt = []
            self._attempts.append(world_size)
        for line in lines:
            self._console.log(line)
        self._lines += len(lines)

    def _restarted(self, world_size: int, attempt: int) -> str:
        cause = first_cause(self._of_attempt)
        why = "the cluster has changed" if cause is None else f"rank {cause.rank}: {cause.text.splitlines()[0]}"
        return f"workers are started anew ({why}): attempt {attempt}, {world_size} worker(s), from the newest checkpoint"

    def _final(self) -> Failure | None:
        return next((failure for failure in self._failures if failure.of_user), None)

    def _raise(self) -> None:
        """Raise what ended the run, the worker's own error first."""
        if (mistake := self._final()) is not None:
            raise TeraconError(f"rank {mistake.rank}: {mistake.text}")
        cause = first_cause(self._of_attempt)
        if cause is None:
            raise WorkersError(f"Ray: {self._error}") from self._error
        attempts = f" (attempt {len(self._attempts)}, launch.max_failures {self._launch.max_failures})" if len(self._attempts) > 1 else ""
        raise WorkersError(f"rank {cause.rank}: {cause.text}{attempts}\n{cause.trace}".rstrip())


def _trainer(job: TrainJob, worker: Worker, messages: Any, scratch: str) -> Any:
    """Return Ray's trainer of the run."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    train: Any = importlib.import_module("ray.train")
    torch: Any = importlib.import_module("ray.train.torch")

    class Deaths(train.UserCallback):  # type: ignore[misc]
        """Tells of workers that ended without a word; called in Ray's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in worker_exceptions.items():
                if (failure := _death(rank, error)) is not None:
                    send_failure(messages, failure)

    launch = job.config.launch
    # Ray calls the training loop in a thread, which would cost it a tenth of each step
    passed_on = {**one_heap(), **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}
    return torch.TorchTrainer(
        _train_as_worker,
        train_loop_config={"job": job, "messages": messages},
        torch_config=torch.TorchConfig(backend="nccl" if worker.use_gpu else "gloo"),
        scaling_config=_scaling(launch, worker, train.ScalingConfig),
        run_config=train.RunConfig(
            name="run",
            storage_path=scratch,
            failure_config=train.FailureConfig(max_failures=launch.max_failures),
            callbacks=[Deaths()],
            worker_runtime_env={"env_vars": passed_on},
        ),
    )


def _scaling(launch: LaunchConfig, worker: Worker, kind: Any) -> Any:
    elastic = {"elastic_resize_monitor_interval_s": launch.resize_seconds} if launch.min_workers is not None else {}
    return kind(
        num_workers=launch.workers if launch.min_workers is None else (launch.min_workers, launch.workers),
        use_gpu=worker.use_gpu, resources_per_worker=worker.resources, placement_strategy=launch.placement, **elastic,
    )  # fmt: skip


def _death(rank: int, error: Exception) -> Failure | None:
    """Return the failure of a worker whose process ended without a message of its own, or None where it left one."""
    from ray.exceptions import RayActorError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RayActorError):
        cause = getattr(cause, "health_check_failure", None) or cause.__cause__
    if cause is None:
        return None
    return Failure(rank, "its process is gone (killed, or out of memory, or its node is off)")


def _train_as_worker(given: dict[str, Any]) -> None:
    """Train as one worker; Ray has made the process group."""
    import ray
    from ray.train import get_context
    from ray.train.torch import get_device

    job, messages = given["job"], given["messages"]
    context = get_context()
    rank = context.get_world_rank()
    if ray.get(messages.given_up.remote()):
        return  # another attempt would meet the same mistake
    set_up_logging(verbose=job.verbose)
    console, log = SentConsole(messages, active=rank == 0), SentLog(messages, rank)
    program = logging.getLogger("dist_teracon")
    program.addHandler(log)
    try:
        if rank == 0 and ray.get(messages.begin.remote(context.get_world_size())) > 1:
            _wait_for_run(job)
        train_in_process(job, device=get_device(), console=console)
    except BaseException as error:
        send_failure(messages, Failure.of(rank, error))
        raise
    finally:
        program.removeHandler(log)


def _wait_for_run(job: TrainJob) -> None:
    """Wait until the workers of the attempt before have left the run; what refuses it for good is training's to report."""
    until = time.monotonic() + _FOLDER_S
    while time.monotonic() < until:
        try:
            _take_and_give_back(job.run)
        except RunError:
            time.sleep(0.5)
        except (TeraconError, OSError):  # the store fails
            return
        else:
            return


def _take_and_give_back(run: Path | str) -> None:
    """Hold a run for a moment.

    Raises:
        RunError: another process holds it.
    """
    if isinstance(run, Path):
        from dist_teracon.train.run_folder import RunFolder

        with RunFolder(run).lock():
            return
    from dist_teracon.store.lease import Lease
    from dist_teracon.store.mirror import Patience
    from dist_teracon.store.objects import Objects

    lease = Lease(Objects(run), lasts_s=Patience.from_environment().lease_s)
    try:
        lease.acquire()
    finally:
        lease.release()
