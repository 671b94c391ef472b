"""What every stage of a run shares, made before the first: configuration, data set, tasks, and what methods are built from."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from dist_teracon import io
from dist_teracon.config.base import ConfigModel
from dist_teracon.config.model import GivenItemVectors
from dist_teracon.config.run import RunConfig
from dist_teracon.console import Console
from dist_teracon.continual.method import Method, MethodContext
from dist_teracon.continual.open_inputs import closed_features
from dist_teracon.continual.registry import method_class, resolve_method
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import checksum_of, read_item_vectors
from dist_teracon.data.moments import Moments
from dist_teracon.data.open import SYNTHETIC, open_dataset
from dist_teracon.data.schema import Task
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.models.backbone import columns_read, reads_moments, resolve_backbone
from dist_teracon.models.history_features import HistoryStart
from dist_teracon.models.history_start import history_start
from dist_teracon.models.input_embedding import InputSizes
from dist_teracon.models.item_init import LARGE, cooccurrence_vectors, given_vectors
from dist_teracon.runtime import Runtime
from dist_teracon.train.run_checks import check_reads
from dist_teracon.train.run_folder import RunFolder
from dist_teracon.train.stage_folder import StageFolder
from dist_teracon.train.stopping import StopSignals

_PACKAGES = ("dist-teracon", "torch", "deepspeed", "ray", "triton", "numpy", "pyarrow")


@dataclass(frozen=True)
class Run:
    """What every stage of a run shares.

    Attributes:
        config: Resolved: with every field of the method's and the backbone's.
        dataset, tasks: What is learned, in this order.
        runtime: This process's place in the world.
        folder: The run's folder.
        console: What a person sees.
        vectors: File of given vectors of new items, where a task is added with them.
        growth: By stage, what was done to the item tables before it.
        stop: Whether this process was asked to stop.
        before_step: Called with trainer, state and batch before each optimiser step (`replay.py`); None in a run.
    """

    config: RunConfig
    dataset: Dataset
    tasks: tuple[Task, ...]
    runtime: Runtime
    folder: RunFolder
    console: Console
    vectors: str | None = None
    growth: dict[int, dict[str, Any]] = field(default_factory=dict)
    stop: StopSignals = field(default_factory=StopSignals)
    before_step: Callable[..., None] | None = None

    def stage_folder(self, position: int) -> StageFolder:
        """Return the folder of a stage; positions count from 0."""
        return self.folder.stage(position, self.tasks[position].name)

    def finished_stages(self) -> int:
        """Return how many stages are there, from the first on."""
        return self.folder.finished_stages([task.name for task in self.tasks])


def resolve(config: RunConfig, *, where: str) -> tuple[RunConfig, type[Method], ConfigModel]:
    """Resolve method and backbone; returns the configuration with all their fields, the method's class and its settings.

    With every field stored, a default that changes later is seen when the run goes on.

    Raises:
        ConfigError: an unknown method, backbone, field or value.
    """
    kind, settings = resolve_method(config, where=where)
    backbone, own = resolve_backbone(config.model, where=where)
    model = config.model.model_copy(update={"backbone": {"name": backbone.name, **own.model_dump(mode="json")}})
    if isinstance(given := model.item_init, GivenItemVectors):
        model = model.model_copy(update={"item_init": GivenItemVectors(file=_absolute(given.file))})
    method = {"name": kind.name, **settings.model_dump(mode="json")}
    return config.model_copy(update={"dataset": _absolute(config.dataset), "method": method, "model": model}), kind, settings


def _absolute(uri: str) -> str:
    """Return a place that another working directory does not make another one of."""
    return str(io.local_path(uri).expanduser().absolute()) if io.is_local(uri) and not uri.startswith(SYNTHETIC) else uri


def open_on_all_ranks(config: RunConfig, runtime: Runtime, console: Console) -> Dataset:
    """Open the data set, the main process first: it prepares what is made on first use.

    Raises:
        ConfigError: the model reads times or types of events, or side features, that the data set does not have.
    """
    if not runtime.is_main:
        runtime.raise_on_all_ranks("")
        return _reading_what_the_model_reads(open_dataset(config.dataset), config, runtime, console)
    try:
        dataset = open_dataset(config.dataset, log=console.log)
    except (TeraconError, OSError) as error:
        moved = io.is_local(config.dataset) and not config.dataset.startswith(SYNTHETIC) and not io.exists(config.dataset)
        hint = "; if it was moved, name its place with --set dataset=DIR" if moved else ""
        runtime.raise_on_all_ranks(f"{io.message_of(error)}{hint}")
        raise
    runtime.raise_on_all_ranks("")
    return _reading_what_the_model_reads(dataset, config, runtime, console)


def _reading_what_the_model_reads(dataset: Dataset, config: RunConfig, runtime: Runtime, console: Console) -> Dataset:
    """Return the data set, which reads of events and side features what the model asks for, and nothing else."""
    names = check_reads(config, dataset.info)
    dataset.read_columns(tuple(columns_read(config.model)))
    if reads_moments(config.model):
        own = own_shards(dataset.info.shards, runtime.rank, runtime.world_size)
        dataset.moments = Moments.of_dataset(dataset.info, max(runtime.gather(dataset.last_event(own))))
        console.log(dataset.moments.told())
    tasks = config.tasks or [task.name for task in dataset.info.tasks]
    dataset.read_inputs(names, closed=closed_features(dataset.info, method_class(config.method["name"]), tasks))
    return dataset


def method_context(run: Run) -> MethodContext:
    """Return what the run's method is built from."""
    return MethodContext(
        model=run.config.model,
        seed=run.config.seed,
        num_items=run.dataset.info.items,
        tasks=run.tasks,
        training=tuple(run.config.train.stage(position, task.name) for position, task in enumerate(run.tasks)),
        item_vectors=_item_vectors(run),
        num_types=run.dataset.info.history.types,
        inputs=input_sizes(run.dataset),
        history=_history_start(run) if run.config.model.history_features else None,
        finished=frozenset(task.name for task in run.tasks[: run.finished_stages()]),
    )


def input_sizes(dataset: Dataset) -> InputSizes:
    """Return the side features that a data set's rows have."""
    read = dataset.inputs_read
    user, item = (tuple(feature.values for feature in part) for part in (read.user, read.item))
    return InputSizes(user, item, torch.from_numpy(dataset.item_features()) if read.item else None)


def _item_vectors(run: Run) -> Callable[[Task], Tensor] | None:
    """Return where initial item vectors come from."""
    model = run.config.model
    if model.item_init == "uniform":
        return None
    given = model.item_init

    def vectors(task: Task) -> Tensor:
        if run.dataset.info.items >= LARGE:
            run.console.log(f"initial vectors of {run.dataset.info.items - 2} items from who took which together; this takes minutes")
        found = cooccurrence_vectors(run.dataset, task, model.channels, seed=run.config.seed)
        return _from_given(run, task, found, given.file) if isinstance(given, GivenItemVectors) else found

    return vectors


def _history_start(run: Run) -> Callable[[Task], HistoryStart | None]:
    """Return where features of whole histories start."""

    @functools.cache
    def fitted() -> HistoryStart:
        found, problem = None, ""
        if run.runtime.is_main:  # processors of two kinds may differ in last digits
            try:
                found = history_start(run.dataset, run.tasks[0], run.config.model, seed=run.config.seed)
            except TeraconError as error:
                problem = str(error)
        run.runtime.raise_on_all_ranks(problem)
        (start,) = [part for part in run.runtime.gather(found) if part is not None]
        return start

    return lambda _task: fitted()


GIVEN = "item_vectors.json"  # of a run's folder: the given item vectors that its tasks began with


def _from_given(run: Run, task: Task, cooccurring: Tensor, uri: str) -> Tensor:
    """Return a task's initial item vectors from given ones, and note in the run's folder which and how many.

    Raises:
        RunError: the run began with other vectors.
    """
    noted, checksum = run.folder.read_json(GIVEN) if (run.folder.path / GIVEN).is_file() else None, checksum_of(uri)
    if noted is not None and noted["sha256"] != checksum:
        raise RunError(f"{run.folder}: began with other item vectors than {uri} holds; use those again, or a new folder")
    found, facts = given_vectors(read_item_vectors(uri, run.dataset), cooccurring, uri=uri)
    run.console.log(
        f"{facts['given']} of {facts['items']} items ({facts['share']:.0%}) start from given vectors of {facts['width']} numbers"
        + (f", {facts['unknown']} vectors are of items that the data set does not have" if facts["unknown"] else "")
    )
    run.console.log(
        f"the map to {cooccurring.shape[1]} numbers is learned on {facts['learned_from']} items that training users took, and explains "
        f"{facts['explained']:.0%} of the variance of their vectors of co-occurrence"
    )
    if run.runtime.is_main:
        tasks = {} if noted is None else noted["tasks"]
        run.folder.write_json(GIVEN, {"sha256": checksum, "tasks": {**tasks, task.name: facts}})
    return found


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Hold the run's folder on the main process; a refusal reaches every rank.

    Raises:
        RunError: another process is writing the run, or the folder is something else.
    """
    problem, lock = "", run.folder.lock()
    if run.runtime.is_main:
        try:
            lock.__enter__()
        except (TeraconError, OSError) as error:
            problem = io.message_of(error)
    held = run.runtime.is_main and not problem
    try:
        run.runtime.raise_on_all_ranks(problem)
        yield
    finally:
        if held:
            lock.__exit__(None, None, None)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    return {"python": platform.python_version(), **dict(_installed())}


@functools.cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Look up the packages' versions, which takes tens of milliseconds, once a process."""
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def machine(runtime: Runtime) -> dict[str, Any]:
    """Return what times were taken on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads() * runtime.world_size,
        "device": runtime.device.type,
        "world_size": runtime.world_size,
        "versions": package_versions(),
    }
