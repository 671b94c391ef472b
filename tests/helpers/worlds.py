"""A server of processes that train: what every run imports is imported once, and every process is forked.

It takes requests from its standard input, a line of JSON each, and answers each with a line. In a request: `environment` (variables),
`log` (a file for what is said), and `jobs`, worlds of processes to run one after another; the answer is each job's
ranks' exit codes.
Instead of `jobs` there may be `command` (arguments of `dist-teracon`) and `folder` (to run it in): a process as a user's is, but that its
imports are done; what it prints goes to `log` and to `log`.out, and the answer is its exit code.

A job: `config` (a run's configuration), `run` (its folder or URI), `world` (processes, default 1), `moment` (when a process kills itself by
SIGKILL: see `_arm`), `rank` (which one, default the last), `added` (a task to add, and what new items start as), `until_stage`, `labels_of`
(make this stage's pseudo-labels instead), `environment` (variables of each rank), `spared` (a module
that no process may have imported in the end).
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dist_teracon.continual.fineall
import dist_teracon.continual.teracon
import dist_teracon.train.phase as phase_module
from dist_teracon.cli import main
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.console import Console
from dist_teracon.engine.deepspeed_engine import _import_deepspeed, _import_muon
from dist_teracon.errors import TeraconError
from dist_teracon.runtime import process_group
from dist_teracon.store.mirror import Mirror
from dist_teracon.train import stage_folder
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.label_job import make_pseudo_labels
from dist_teracon.train.run import train

HELPERS = Path(__file__).parent
# what runs import on their way
IMPORTED = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "dist_teracon.data.prepare.pipeline",
    "dist_teracon.kernels.masked_dilated_conv_stack.backends.cpu",
    "dist_teracon.models.nextitnet",
    "dist_teracon.models.sasrec",
    "dist_teracon.train.trackers.tensorboard",
    "pandas",
    "pyarrow.dataset",
    "sklearn.decomposition",
    "sklearn.dummy",
    "sklearn.linear_model",
    "tensorboardX",
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str) -> None:
    """Die at `step:STAGE:N` (before the N-th step), `pseudo:STAGE:N` (after N shards), `checkpoint:STAGE:EPOCH` (once it is whole),
    `half-checkpoint:STAGE:EPOCH`, `half-stage:STAGE` (weights there, state not) or `finished:STAGE` (before the results).
    `SIGTERM:STAGE:N` and `SIGINT:STAGE:N` are signals before the N-th step. `unsent:STAGE:N` is `step:STAGE:N` on a machine from which
    no state within a stage is sent to the store."""
    kind, stage, *rest = moment.split(":")
    number = int(rest[0]) if rest else 0
    folder = f"{int(stage):02d}-"
    seen = {"count": 0}

    def reached(here: bool) -> None:
        seen["count"] += here
        if here and seen["count"] == number:
            os.kill(os.getpid(), getattr(signal, kind, signal.SIGKILL))

    def before_step(_engine: Any, method: Any, *_: Any, **__: Any) -> None:
        reached(len(method.learned) == int(stage))

    def before_json(path: Path, _: Any) -> None:
        names = (path.parent.name, path.parents[2].name)
        if kind == "half-checkpoint" and names[0].startswith(f".phase-0-epoch-{number:05d}") and names[1].startswith(folder):
            _die()
        if kind == "half-stage" and path.name == "state.json" and names[0].startswith(folder):
            _die()

    def after_checkpoint(self: Any, progress: Any) -> None:
        if self.path.name.startswith(folder) and progress.epoch == number:
            _die()

    def after_finish(self: Any, *_: Any) -> None:
        if self.path.name.startswith(folder):
            _die()

    def pseudo_labels(*arguments: Any, **options: Any) -> Any:
        for path in write(*arguments, **options):
            reached(folder in str(path))
            yield path

    if kind == "unsent":
        commit = Mirror.commit
        Mirror.commit = lambda mirror, *, wait: commit(mirror, wait=wait) if wait else None  # type: ignore[method-assign]
    if kind in ("step", "SIGTERM", "SIGINT", "unsent"):
        phase_module.train_step = _first(before_step, phase_module.train_step)
    elif kind.startswith("half-"):
        stage_folder.write_json = _first(before_json, stage_folder.write_json)
    elif kind == "checkpoint":
        stage_folder.StageFolder.save_checkpoint = _then(stage_folder.StageFolder.save_checkpoint, after_checkpoint)
    elif kind == "finished":
        stage_folder.StageFolder.finish = _then(stage_folder.StageFolder.finish, after_finish)
    else:
        write = dist_teracon.continual.teracon.write_pseudo_labels
        dist_teracon.continual.teracon.write_pseudo_labels = pseudo_labels


def _first(check: Callable[..., None], job: Callable[..., Any]) -> Any:
    @functools.wraps(job)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        check(*arguments, **options)
        return job(*arguments, **options)

    return wrapped


def _then(job: Callable[..., Any], check: Callable[..., None]) -> Any:
    @functools.wraps(job)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = job(*arguments, **options)
        check(*arguments, **options)
        return result

    return wrapped


def _process(job: dict[str, Any], rank: int, world: int, port: int) -> int:
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(job["environment"][rank] if "environment" in job else {})
    if job.get("moment") and rank == job.get("rank", world - 1):
        _arm(job["moment"])
    try:
        with process_group() as runtime:
            config = validate(RunConfig, job["config"], where="job")
            console, run = Console(active=False), job["run"]
            if "labels_of" in job:
                make_pseudo_labels(config, runtime, run, stage=job["labels_of"], where="job", console=console)
                return 0
            added = AddedTask(*job["added"]) if "added" in job else None
            train(config, runtime, run, where="job", console=console, added=added, until_stage=job.get("until_stage"))
            assert job.get("spared") not in sys.modules
    except TeraconError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return 2
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _world(job: dict[str, Any]) -> list[int]:
    world = job.get("world", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            os._exit(_process(job, rank, world, port))
        children.append(child)
    codes: dict[int, int] = {}
    failed_at = None
    while len(codes) < world:
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child] and failed_at is None:
                    failed_at = time.monotonic()
            elif failed_at is not None and time.monotonic() - failed_at > 5:  # torchrun ends the others too
                os.kill(child, signal.SIGTERM)
        time.sleep(0.01)
    return [codes[child] for child in children]


def _answer(request: dict[str, Any], answers: int) -> int:
    """Do what is asked in this process, a fork of the server; returns its exit status."""
    os.environ.clear()
    os.environ.update(request["environment"])
    said = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    if "command" in request:
        os.dup2(os.open(f"{request['log']}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.chdir(request["folder"])
        return main(request["command"])
    os.dup2(said, 1)
    codes = [_world(job) for job in request["jobs"]]
    sys.stderr.flush()
    os.write(answers, json.dumps(codes).encode() + b"\n")
    os._exit(0)


def _serve() -> int:
    """Take requests until there are no more; returns a fork's exit status, too."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return _answer(request, answers)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code or "command" in request:
            os.write(answers, json.dumps(code).encode() + b"\n")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background are started to ignore it
    torch.set_num_threads(1)
    sys.path.append(str(HELPERS))
    importlib.import_module("folder_store").register()
    _import_deepspeed()
    _import_muon()
    for library in IMPORTED:
        importlib.import_module(library)
    gc.freeze()  # each stage's end collects; what was imported is not looked through again
    sys.exit(_serve())
