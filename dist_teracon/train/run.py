"""A run: the tasks in their order, one stage each, and what is written of them. Two of its lines are the whole story:
a stage is trained, then all tasks so far are scored."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dist_teracon import io
from dist_teracon.config import RunConfig
from dist_teracon.config_io import dump_config
from dist_teracon.console import Console
from dist_teracon.continual.method import Method, MethodContext, resolve_method
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.open import open_dataset
from dist_teracon.data.schema import Split, Task
from dist_teracon.errors import ConfigError, DataError, RunError, TeraconError
from dist_teracon.evaluate.baseline_table import baseline_table
from dist_teracon.evaluate.metrics import check_metrics, metrics_of
from dist_teracon.evaluate.scorer import Score, score_task
from dist_teracon.kernels.masked_dilated_conv_stack import backend_of
from dist_teracon.models.item_init import LARGE, cooccurrence_vectors
from dist_teracon.runtime import Runtime
from dist_teracon.train.add_task import AddedTask, additions, claim_addition, grown_tensors, growth_lines, with_added_task
from dist_teracon.train.results import by_metric, write_results
from dist_teracon.train.run_folder import EventLog, StageFolder, writing
from dist_teracon.train.stage import Stage

_VERSIONS = ("dist-teracon", "torch", "deepspeed", "ray", "triton", "numpy", "pyarrow")


@dataclass(frozen=True)
class _Run:
    """What every stage of a run shares.

    Attributes:
        vectors: File of given vectors of new items, where a task is added with them.
        growth: By stage, what was done to the item tables before it.
    """

    config: RunConfig
    dataset: Dataset
    tasks: tuple[Task, ...]
    runtime: Runtime
    folder: Path
    console: Console
    vectors: str | None = None
    growth: dict[int, dict[str, Any]] = field(default_factory=dict)

    def stage_folder(self, position: int) -> StageFolder:
        return StageFolder(self.folder, position, self.tasks[position].name)


def train(
    config: RunConfig, runtime: Runtime, folder: Path, *,
    where: str, console: Console, with_single_task: bool = False, added: AddedTask | None = None,
) -> None:  # fmt: skip
    """Learn the tasks in their order; the same call again goes on where a killed run stopped, or finds it finished.

    Args:
        config: The run's configuration.
        runtime: This process's place in the world; the default process group exists.
        folder: The run's folder.
        where: Where the configuration came from, for error messages.
        console: What a person sees.
        with_single_task: Train every task alone too (SinMo, in `folder/single-task`), for forward transfer.
        added: A task to learn on top of a finished run, maybe from a later version of its data set.

    Raises:
        TeraconError: a bad configuration, data set or run folder; a loss that is not a number.
    """
    try:
        backend_of(runtime.device.type, os.environ.get("DIST_TERACON_KERNELS", ""))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    kind, settings = resolve_method(config, where=where)
    # stored and compared with every field of the method's, so that a default that changes later is seen
    config = config.model_copy(update={"method": {"name": kind.name, **settings.model_dump(mode="json")}})
    if added is not None:
        config = with_added_task(config, added, folder)
    check_metrics(config.evaluate.metrics, where=where)
    dataset = _open(config, runtime, console)
    tasks = dataset.info.tasks
    if config.tasks is not None:
        tasks = tuple(_task(dataset, name, f"{where}: tasks") for name in config.tasks)
    check_metrics(config.evaluate.metrics, where=where, tasks=tasks)
    for name in config.train.by_task:
        _task(dataset, name, f"{where}: train.by_task")
    for name in config.model.heads.by_task:
        _task(dataset, name, f"{where}: model.heads.by_task")
    run = _Run(config, dataset, tasks, runtime, folder, console, None if added is None else added.vectors)
    with _alone(run):
        _claim(run, added)
        context = MethodContext(
            model=config.model, item_vectors=_item_vectors(run), seed=config.seed, items=dataset.info.items, tasks=tasks,
            training=tuple(config.train.stage(position, task.name) for position, task in enumerate(tasks)),
        )  # fmt: skip
        _learn(run, kind(context, settings))
        if with_single_task:
            _learn_alone(run, where, added)
        if runtime.is_main:
            _write_baselines(run)
            _write_timing(run)
            write_results(folder, config, tasks)


def _learn(run: _Run, method: Method) -> None:
    done = _finished_stages(run)
    position = run.stage_folder(done - 1).state()["events_bytes"] if done else 0
    if done < len(run.tasks) and run.stage_folder(done).in_progress:
        position = run.stage_folder(done).checkpoint_state()["events_bytes"]
    events = EventLog(run.folder / "events.jsonl", writes=run.runtime.is_main, position=position)
    try:
        if not position:
            _tell_run(run, events, method)
        for number in range(done):
            if run.runtime.is_main:
                run.stage_folder(number).drop_checkpoints()
            method.begin_task(run.tasks[number])
            method.end_task()
        if done:
            _load(run, method, done)
            told = "finished" if done == len(run.tasks) else f"going on with {run.tasks[done].name}"
            run.console.log(f"{run.folder}: {done} of {len(run.tasks)} stages are there, {told}")
        for number in range(done, len(run.tasks)):
            _learn_task(run, method, number, events)
    finally:
        events.close()


def _load(run: _Run, method: Method, done: int) -> None:
    """Take up the weights of the last finished stage, its item tables grown where the next one has new items to learn."""
    tensors = run.stage_folder(done - 1).tensors()
    added = next((entry for entry in additions(run.folder) if done < len(run.tasks) and entry["task"] == run.tasks[done].name), None)
    if added is not None:
        tensors, run.growth[done] = grown_tensors(
            tensors, run.dataset, task=run.tasks[done].name, new_items=added["new_items"], runtime=run.runtime,
            vectors=run.vectors,
        )  # fmt: skip
        for line in growth_lines(run.growth[done]):
            run.console.log(line)
    method.load_state_dict(tensors)


def _learn_task(run: _Run, method: Method, number: int, events: EventLog) -> None:
    task, folder = run.tasks[number], run.stage_folder(number)
    events.stage = {"stage": number + 1, "task": task.name}
    if not folder.in_progress:
        events.write("stage")
    label = f"stage {number + 1}/{len(run.tasks)} {task.name}"
    summary = Stage(
        run.config, method, run.dataset, task, runtime=run.runtime, folder=folder, events=events, console=run.console, label=label
    ).run()
    began = time.monotonic()
    method_to(method, run.runtime.device)
    scores = [_score(run, method, past, Split.TEST) for past in run.tasks[: number + 1]]
    validation = [_score(run, method, past, Split.VALIDATION) for past in run.tasks[: number + 1]]
    _write_user_scores(run, folder, {"test": scores, "validation": validation})
    evaluation_seconds = time.monotonic() - began
    _tell_scores(run, method, scores, events, evaluation_seconds, label)
    if run.runtime.is_main:
        timing = {
            "stage": number + 1,
            "task": task.name,
            "seconds": summary.training_seconds + summary.prepare_seconds + evaluation_seconds,
            "training_seconds": summary.training_seconds,
            "pseudo_label_seconds": summary.prepare_seconds,
            "evaluation_seconds": evaluation_seconds,
            "epochs": summary.epochs,
        }
        state = {
            "format_version": 1,
            "stage": number + 1,
            "task": task.name,
            "learned": list(method.learned),
            "scores": [score.value for score in scores],
            "validation_scores": [score.value for score in validation],
            "scores_by_metric": by_metric(run.config, scores),
            "validation_scores_by_metric": by_metric(run.config, validation),
            "test_examples": [score.examples for score in scores],
            "unseen_targets": [score.unseen for score in scores],
            "epochs": summary.epochs,
            "items": run.dataset.info.items,
            **({"growth": run.growth[number]} if number in run.growth else {}),
            "events_bytes": events.commit(),
        }
        io.write_json(folder.path / "timing.json", timing)
        folder.finish(method.state_dict(), state)
        _write_timing(run)
        write_results(run.folder, run.config, run.tasks)
    run.runtime.barrier()


def method_to(method: Method, device: torch.device) -> None:
    """Bring what is scored onto the device; the engine gives its module back where it trained."""
    method.module().to(device)


def _score(run: _Run, method: Method, task: Task, split: Split) -> Score:
    evaluate = run.config.evaluate
    return score_task(
        method, run.dataset, task.name, split, metrics=metrics_of(task, evaluate.metrics), runtime=run.runtime, batch=evaluate.batch,
        max_users=evaluate.max_users, seed=run.config.seed, progress=run.console,
    )  # fmt: skip


def _write_user_scores(run: _Run, folder: StageFolder, scores: dict[str, list[Score]]) -> None:
    """Write every user's scores after a stage, from which comparisons draw their intervals."""
    parts = [(split, task.name, score.by_user) for split, row in scores.items() for task, score in zip(run.tasks, row, strict=False)]
    gathered = run.runtime.gather(parts)
    if run.runtime.is_main:
        folder.save_user_scores([part for of_rank in gathered for part in of_rank])


def _tell_run(run: _Run, events: EventLog, method: Method) -> None:
    names = [task.name for task in run.tasks]
    metrics = [[metric.name for metric in metrics_of(task, run.config.evaluate.metrics)] for task in run.tasks]
    events.write(
        "run", method=method.name, seed=run.config.seed, tasks=names, metrics=metrics, world_size=run.runtime.world_size,
        versions=_versions(),
    )  # fmt: skip
    info = run.dataset.info
    run.console.log(
        f"{info.name}: {info.users} users, {info.items - 2} items, {info.events} events in {info.shards} shards; "
        f"{method.name}, seed {run.config.seed}, {run.runtime.world_size} process(es) on {run.runtime.device.type}"
    )
    if run.config.evaluate.max_users is not None:
        run.console.log(f"scores are taken on at most {run.config.evaluate.max_users} users a task and split (evaluate.max_users)")


def _tell_scores(run: _Run, method: Method, scores: Sequence[Score], events: EventLog, seconds: float, label: str) -> None:
    learned = [task.name for task in run.tasks[: len(scores)]]
    events.write(
        "scores", scores={task: score.value for task, score in zip(learned, scores, strict=True)},
        scores_by_metric={task: score.values for task, score in zip(learned, scores, strict=True)}, seconds=seconds,
    )  # fmt: skip
    with torch.no_grad():
        masks = method.masks()
    if masks is not None:
        flat = masks.flatten(1)
        similarity = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
        counts = [torch.histc(mask.float().cpu(), bins=20, min=0, max=1).int().tolist() for mask in flat]
        histograms = dict(zip(method.learned, counts, strict=True))
        events.write("masks", tasks=list(method.learned), similarity=similarity.tolist(), histograms=histograms)
    told = ", ".join(
        f"{task.name} {'–' if score.value is None else f'{score.value:.4f}'}" for task, score in zip(run.tasks, scores, strict=False)
    )
    run.console.log(f"{label} · test: {told}")


def _learn_alone(run: _Run, where: str, added: AddedTask | None) -> None:
    """Train SinMo on the same data and seeds beside the run; a SinMo run is its own denominator."""
    if run.config.method.get("name") == "sinmo":
        return
    run.console.log("every task alone, for forward transfer (SinMo)")
    alone = run.config.model_copy(update={"method": {"name": "sinmo"}})
    folder = run.folder / "single-task"
    # tasks that were trained alone with the run before are there; without them all are trained now
    there = run.runtime.gather((folder / "config.yaml").exists())[0]
    train(alone, run.runtime, folder, where=where, console=run.console, added=added if there else None)


def _task(dataset: Dataset, name: str, field: str) -> Task:
    """Return a task that a field of the configuration names."""
    try:
        return dataset.info.task(name)
    except DataError as error:
        raise ConfigError(f"{field}: {error}") from None


def _open(config: RunConfig, runtime: Runtime, console: Console) -> Dataset:
    """Open the data set, the main process first: it prepares what is made on first use."""
    if not runtime.is_main:
        runtime.raise_on_all_ranks("")
        return open_dataset(config.dataset)
    try:
        dataset = open_dataset(config.dataset, log=console.log)
    except TeraconError as error:
        runtime.raise_on_all_ranks(str(error))
        raise
    runtime.raise_on_all_ranks("")
    return dataset


def _item_vectors(run: _Run) -> Callable[[Task], Tensor] | None:
    """Return where initial item vectors come from; tasks already learned get zeros, their weights are about to be loaded."""
    model, done = run.config.model, {task.name for task in run.tasks[: _finished_stages(run)]}
    if model.item_init == "uniform":
        return None

    def vectors(task: Task) -> Tensor:
        if task.name in done:
            return torch.zeros(run.dataset.info.items, model.channels)
        if run.dataset.info.items >= LARGE:
            run.console.log(f"initial vectors of {run.dataset.info.items - 2} items from who took which together; this takes minutes")
        return cooccurrence_vectors(run.dataset, task, model.channels, seed=run.config.seed)

    return vectors


def _write_baselines(run: _Run) -> None:
    path = run.folder / "baselines.json"
    if not path.exists() or len(io.read_json(str(path))["popularity"]) < len(run.tasks):
        config = run.config
        table = baseline_table(run.dataset, run.tasks, metrics=config.evaluate.metrics, seed=config.seed, log=run.console.log)
        io.write_json(path, table)


def _finished_stages(run: _Run) -> int:
    done = 0
    while done < len(run.tasks) and run.stage_folder(done).finished:
        done += 1
    return done


def _claim(run: _Run, added: AddedTask | None) -> None:
    """Make the folder a run of this configuration and data set, or check that it is one already."""
    if added is not None:
        problem = claim_addition(run.folder, run.config, run.dataset, added) if run.runtime.is_main else ""
        run.runtime.raise_on_all_ranks(problem)
    written, copy = run.folder / "config.yaml", run.folder / "dataset.json"
    problem = ""
    if written.exists():
        problem = _difference(run, written, copy)
    elif run.runtime.is_main:
        io.write_json(copy, run.dataset.info.to_json())
        with io.atomic_write(written) as file:
            file.write(dump_config(run.config).encode())
    run.runtime.raise_on_all_ranks(problem)


def _difference(run: _Run, written: Path, copy: Path) -> str:
    before = _flat(yaml.safe_load(written.read_text(encoding="utf-8")))
    now = _flat(yaml.safe_load(dump_config(run.config)))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return (
                f"{run.folder}: was started with another configuration: {name} was {before.get(name)!r} and is now "
                f"{now.get(name)!r}; use the old value or name a new folder with --run"
            )
    if io.read_json(str(copy)) != json.loads(json.dumps(run.dataset.info.to_json())):
        return (
            f"{run.folder}: the data set {run.config.dataset} has changed since this run began (dataset.json differs); "
            "bring the old one back or name a new folder with --run"
        )
    return ""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {name: leaf for key, entry in value.items() for name, leaf in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


class _alone:  # noqa: N801 - reads as a statement where it is used
    """Hold the run's folder on the main process; a refusal reaches every rank."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._held: Any = None

    def __enter__(self) -> None:
        problem = ""
        if self._run.runtime.is_main:
            self._held = writing(self._run.folder)
            try:
                self._held.__enter__()
            except RunError as error:
                self._held, problem = None, str(error)
        self._run.runtime.raise_on_all_ranks(problem)

    def __exit__(self, *error: object) -> None:
        if self._held is not None:
            self._held.__exit__(*error)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


def _write_timing(run: _Run) -> None:
    stages = [io.read_json(str(path)) for path in sorted((run.folder / "stages").glob("*/timing.json"))]
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads() * run.runtime.world_size,
        "device": run.runtime.device.type,
        "world_size": run.runtime.world_size,
        "versions": _versions(),
    }
    io.write_json(run.folder / "timing.json", {"stages": stages, "machine": machine})
