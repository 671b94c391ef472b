"""The run as a job of a Ray cluster: `python -m dist_teracon.launch.submit --address http://HEAD:8265 CONFIG --run RUN`.

The program travels as a wheel and the configuration as a file; the job trains as `train --launcher ray` does. The log is followed, and
the job's exit status is this command's. The job goes on where its client is interrupted, unless `--stop-on-interrupt` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.cli.runs import add_train_options
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import dump_config, load_config
from dist_teracon.console import Console, Log
from dist_teracon.data.open import SYNTHETIC
from dist_teracon.errors import ConfigError, TeraconError
from dist_teracon.launch.wheel import program_wheel

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_CONFIG = "config.yaml"
# Seconds between two attempts to follow a log whose connection broke, and how long the job server may be gone.
_PAUSE_S, _PATIENCE_S = 2.0, 120.0
# How long a stopped job may take to end.
_STOP_S = 60.0


@dataclass(frozen=True)
class Submission:
    """A job to submit.

    Attributes:
        config: The run's configuration, which travels as a file.
        command: What the job runs, in the folder that holds the file.
        variables: Environment variables that it gets, by name.
    """

    config: RunConfig
    command: list[str]
    variables: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit a job and follow it; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _submit(options, Console().log)
    except TeraconError as error:
        print(f"dist-teracon: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dist_teracon.launch.submit", usage="%(prog)s --address URL CONFIG --run RUN [options]",
        description="Train as a job of a Ray cluster.",
    )  # fmt: skip
    parser.add_argument("--address", metavar="URL", default=os.environ.get(_ADDRESS), help=f"of the job server (default: ${_ADDRESS})")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="hand a variable of this environment to the job")
    parser.add_argument("--submission-id", metavar="ID", help="the job's name on the cluster (default: made by Ray)")
    parser.add_argument("--no-wait", action="store_true", help="submit only; do not follow the log")
    parser.add_argument("--stop-on-interrupt", action="store_true", help="Ctrl-C here stops the job; without it the job goes on")
    add_train_options(parser)
    parser.set_defaults(launcher="ray")
    return parser


def _submit(options: argparse.Namespace, log: Log) -> int:
    address = _checked_address(options.address)
    submission = _submission(options, log)
    client = _client(address)
    wheel = program_wheel()
    with tempfile.TemporaryDirectory(prefix="dist-teracon-job-") as folder:
        (Path(folder) / _CONFIG).write_text(dump_config(submission.config), encoding="utf-8")
        environment: dict[str, Any] = {"working_dir": folder, "py_modules": [str(wheel)]}
        if submission.variables:
            environment["env_vars"] = submission.variables
        with _explained(address):
            job = client.submit_job(
                entrypoint=shlex.join(submission.command), runtime_env=environment, submission_id=options.submission_id
            )  # fmt: skip
    named = f"; variables: {', '.join(submission.variables)}" if submission.variables else ""
    log(f"job {job}: {shlex.join(submission.command)}{named}")
    if options.no_wait:
        log(f"follow it with `ray job logs --follow {job}`, stop it with `ray job stop {job}`")
        return 0
    return _follow(client, job, address, log, stops=options.stop_on_interrupt)


def _checked_address(address: str | None) -> str:
    """Return the job server's URL.

    Raises:
        ConfigError: none is given, or it is no URL.
    """
    if not address:
        raise ConfigError(f"--address: no job server given; it is the dashboard's URL, as http://HEAD:8265, or set {_ADDRESS}")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: expected the URL of the job server, as http://{address.split(':')[0]}:8265")
    return address.rstrip("/")


def _submission(options: argparse.Namespace, log: Log) -> Submission:
    """Return the job that the options ask for, checked as far as it can be without the cluster.

    Raises:
        ConfigError: a bad configuration, or a variable that is not set.
    """
    if options.run is None or options.dry_run:
        raise ConfigError("a job trains: expected --run RUN, and no --dry-run, which needs no cluster (dist-teracon train --dry-run)")
    config = load_config(options.config, options.set)
    dataset, run = config.dataset, str(options.run)
    if not dataset.startswith(SYNTHETIC):
        dataset = _on_all_nodes(dataset, "dataset", log)
    run = _on_all_nodes(run, "--run", log)
    missing = [name for name in options.env if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {missing[0]}: is not set here, so there is nothing to hand on")
    command = ["python", "-m", "dist_teracon", "train", _CONFIG, "--run", run, "--launcher", options.launcher]
    for flag in ("with_single_task", "no_report", "verbose", "quiet"):
        command += [f"--{flag.replace('_', '-')}"] if getattr(options, flag) else []
    command += ["--scratch", options.scratch] if options.scratch is not None else []
    command += ["--until-stage", str(options.until_stage)] if options.until_stage is not None else []
    if options.begin_with is not None:
        command += ["--begin-with", _on_all_nodes(options.begin_with, "--begin-with", log)]
    if options.add_task is not None:
        command += ["--add-task", options.add_task, "--new-items", options.new_items]
    if options.item_vectors is not None:
        command += ["--item-vectors", _on_all_nodes(options.item_vectors, "--item-vectors", log)]
    return Submission(config.model_copy(update={"dataset": dataset}), command, {name: os.environ[name] for name in options.env})


def _on_all_nodes(uri: str, what: str, log: Log) -> str:
    """Return where the cluster finds a file or folder: a path is the same one on every node, and absolute."""
    if not io.is_local(uri):
        return uri
    path = str(io.local_path(uri).expanduser().absolute())
    log(f"{what}: {path}, on a disk that all nodes of the cluster must see; a store (s3://…) needs no such disk")
    return path


def _client(address: str) -> Any:
    """Return a client of the job server.

    Raises:
        ConfigError: Ray's job API is not installed here, nobody answers, or the token is missing or another.
    """
    # Ray lets its variables override the address that it is given
    os.environ[_ADDRESS] = address
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        from ray.dashboard.modules.job import sdk
    except ImportError as error:
        raise ConfigError(f"Ray's job API is not installed here ({error}): pip install 'dist-teracon[cluster]'") from None
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "ray":  # its modules set levels of their own, and tell of every upload
            logging.getLogger(name).setLevel(logging.ERROR)
    with _explained(address):
        return sdk.JobSubmissionClient(address)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what the job server and the network answer into errors for a person.

    Raises:
        ConfigError: with how to mend it.
    """
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"--address {address}: the cluster wants its token ({text}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file> with "
            "the token that it was started with"
        ) from None
    except (ConnectionError, RequestException) as error:
        text = " ".join(io.redacted(error).split())
        raise ConfigError(f"--address {address}: no job server answers there ({text}); is it the dashboard's URL, port 8265?") from None
    except RuntimeError as error:
        raise ConfigError(f"--address {address}: the job server refuses ({' '.join(str(error).split())})") from None


def _follow(client: Any, job: str, address: str, log: Log, *, stops: bool) -> int:
    """Print the job's log until it ends; returns its exit status."""
    try:
        asyncio.run(_print_log(client, job))
        details = _ended(client, job)
    except KeyboardInterrupt:
        if not stops:
            log(f"job {job} goes on; follow it with `ray job logs --follow {job}`, stop it with `ray job stop {job}`")
            return 130
        with _explained(address):
            client.stop_job(job)
            state = _wait(client, job, _STOP_S)
        log(f"job {job}: {state}; the same command goes on from the newest checkpoint")
        return 130
    status = str(details.status.value if hasattr(details.status, "value") else details.status)
    code = details.driver_exit_code
    log(f"job {job}: {status}" + ("" if status == "SUCCEEDED" else f" ({_last_line(details.message)})"))
    if status == "SUCCEEDED":
        return 0
    return code if isinstance(code, int) and code > 0 else 128 - code if isinstance(code, int) and code < 0 else 1


def _last_line(message: str | None) -> str:
    return ((message or "").strip().splitlines() or ["no message"])[-1]


async def _print_log(client: Any, job: str) -> None:
    """Print what the job prints; where the connection breaks, go on after what was printed."""
    printed, broken_at = 0, None
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, printed - seen) :]
                seen += len(text)
                printed = max(printed, seen)
                broken_at = None
                sys.stdout.write(new)
                sys.stdout.flush()
        except Exception as error:  # of the network, of whatever kind
            reason: object = error
        else:
            reason = "the connection was closed"
        try:
            if client.get_job_info(job).status.is_terminal():
                return
        except Exception as error:
            reason = error
        now = time.monotonic()
        broken_at = broken_at or now
        if now - broken_at > _PATIENCE_S:
            raise ConfigError(f"job {job}: its server is gone ({reason}); the job may go on: `ray job status {job}`")
        await asyncio.sleep(_PAUSE_S)


def _ended(client: Any, job: str) -> Any:
    details = client.get_job_info(job)
    until = time.monotonic() + _STOP_S
    # the exit code is noted after the status
    while details.driver_exit_code is None and details.status.value == "FAILED" and time.monotonic() < until and details.driver_info:
        time.sleep(0.5)
        details = client.get_job_info(job)
    return details


def _wait(client: Any, job: str, seconds: float) -> str:
    """Wait until the job has ended; returns its state."""
    until = time.monotonic() + seconds
    while not (status := client.get_job_info(job).status).is_terminal() and time.monotonic() < until:
        time.sleep(0.5)
    return str(status.value)


if __name__ == "__main__":
    sys.exit(main())
