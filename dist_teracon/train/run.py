"""A run: the tasks in their order, one stage each. Two lines of `_learn_task` are the whole story: a stage is trained, then all tasks
so far are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_teracon import io
from dist_teracon.config.run import RunConfig
from dist_teracon.console import Console, Outlook
from dist_teracon.continual.method import Method
from dist_teracon.continual.registry import SINGLE_TASK
from dist_teracon.data.summary import taken_but_ranked, users_text
from dist_teracon.errors import DataError, TeraconError
from dist_teracon.evaluate.baseline_table import baseline_table
from dist_teracon.evaluate.metrics import check_metrics, metrics_of
from dist_teracon.evaluate.periods import period_of
from dist_teracon.evaluate.scorer import excludes_seen
from dist_teracon.evaluate.seen_labels import packed_labels
from dist_teracon.runtime import Runtime
from dist_teracon.train.add_task import AddedTask, claim_addition, takes_addition, with_added_task, with_earlier_additions
from dist_teracon.train.begin_with import begin_with, check_begin_with
from dist_teracon.train.item_growth import grown_tensors, growth_lines, label_lines, with_new_labels
from dist_teracon.train.restore import take_up
from dist_teracon.train.results import by_metric, write_results
from dist_teracon.train.run_checks import check_kernels, check_until_stage, checked_tasks, untrained_places
from dist_teracon.train.run_folder import EventLog, RunFolder
from dist_teracon.train.run_setup import Run, machine, method_context, open_on_all_ranks, package_versions, resolve, run_lock
from dist_teracon.train.run_store import open_run
from dist_teracon.train.stage import Stage, StageSummary
from dist_teracon.train.stage_folder import FORMAT_VERSION, SEEN_LABELS
from dist_teracon.train.stage_scores import StageScores, score_stage
from dist_teracon.train.stopping import StopSignals, stop_signals
from dist_teracon.train.trackers.registry import Trackers, check_trackers


def train(
    config: RunConfig, runtime: Runtime, folder: Path | str | RunFolder, *,
    where: str, console: Console, with_single_task: bool = False, added: AddedTask | None = None, until_stage: int | None = None,
    begins_with: str | None = None, before_step: Callable[..., None] | None = None,
) -> None:  # fmt: skip
    """Learn the tasks in their order; the same call again goes on where a killed run stopped, or finds it finished.

    Args:
        config: The run's configuration.
        runtime: This process's place in the world; the default process group exists.
        folder: The run's folder, or its URI on a store.
        where: Where the configuration came from, for error messages.
        console: What a person sees.
        with_single_task: Train every task alone too (in `folder/single-task`), for forward transfer.
        added: A task to learn on top of a finished run, maybe from a later version of its data set.
        until_stage: Stop when this stage, counted from 1, is finished; the run goes on with the same call without it.
        begins_with: A run whose first stages are taken over where they are the same (`begin_with`); nothing for a run that is under way.
        before_step: Called with the phase's trainer, its state and the batch before each optimiser step.

    Raises:
        TeraconError: a bad configuration, data set or run folder; a loss that is not a number.
    """
    check_kernels(runtime)
    resolve(config, where=where)  # a mistake is told before anything is opened
    check_trackers(config.train.report_to, where=where)
    with stop_signals(says=console.active) as stop, open_run(folder, runtime, console) as own:
        _train(
            config, runtime, own,
            where=where, console=console, stop=stop, with_single_task=with_single_task, added=added, until_stage=until_stage,
            begins_with=begins_with, before_step=before_step,
        )  # fmt: skip


def _train(
    config: RunConfig, runtime: Runtime, own: RunFolder, *,
    where: str, console: Console, stop: StopSignals, with_single_task: bool, added: AddedTask | None, until_stage: int | None = None,
    begins_with: str | None = None, before_step: Callable[..., None] | None = None,
) -> None:  # fmt: skip
    config, kind, settings = resolve(config, where=where)
    config = with_earlier_additions(config, own) if added is None else with_added_task(config, added, own)
    check_metrics(config.evaluate.metrics, where=where)
    dataset = open_on_all_ranks(config, runtime, console)
    begins = not own.finished_stages(config.tasks or [task.name for task in dataset.info.tasks])
    tasks = checked_tasks(config, kind, dataset, where=where, adds=added is not None, begins=begins)
    check_until_stage(until_stage, tasks)
    run = Run(config, dataset, tasks, runtime, own, console, None if added is None else added.vectors, stop=stop, before_step=before_step)
    if begins_with is not None:
        check_begin_with(run, kind, begins_with)
    with run_lock(run):
        create_or_verify(run, added)
        if begins_with is not None:
            begin_with(run, kind, begins_with)
        _learn(run, kind(method_context(run), settings), until_stage or len(tasks))
        if until_stage is not None and until_stage < len(tasks):
            if runtime.is_main:  # a run that was killed between a stage's end and its results has older ones
                own.write_timing(machine(runtime))
                write_results(own.path, config, tasks)
                own.commit(wait=True)
            console.log(f"stage {until_stage} is finished; the same command without --until-stage goes on")
            return
        if with_single_task:
            _learn_single_tasks(run, where, added)
        if runtime.is_main:
            own.check_place()
            _write_baselines(run)
            own.write_timing(machine(runtime))
            write_results(own.path, config, tasks)
            own.commit(wait=True)


def create_or_verify(run: Run, added: AddedTask | None) -> None:
    """Make the folder this run's, or check that it is; on all ranks.

    Raises:
        RunError: it is another run's.
    """
    problem = ""
    if run.runtime.is_main:
        try:
            if added is not None:
                problem = claim_addition(run.folder, run.config, run.dataset, added)
            if not problem:
                problem, notes = run.folder.create_or_verify(run.config, run.dataset.info, [task.name for task in run.tasks])
                for note in notes:
                    run.console.log(note)
            if not problem and run.folder.uri:
                problem = _damaged_here(run)
            if not problem:
                run.folder.keep_vocabularies(run.dataset, run.tasks)
                run.folder.commit(wait=True)
        except (TeraconError, OSError) as error:
            problem = io.message_of(error)
    run.runtime.raise_on_all_ranks(problem)


def _damaged_here(run: Run) -> str:
    """Return which file of a finished stage is not as it was written in this machine's copy of a run on a store; nothing where all are.

    Else it would be sent over the store's own, which may be the only sound one.
    """
    for number in range(run.finished_stages()):
        stage = run.stage_folder(number)
        for path, problem in stage.check():
            if problem and Path(path).exists():  # what is not needed to go on is not fetched
                return (
                    f"{path}: this machine's copy of the file was damaged since it was written, and is not sent to {run.folder}; remove "
                    f"{stage.path}, which the same command then fetches from there"
                )
    return ""


def _learn(run: Run, method: Method, until: int) -> None:
    done = run.finished_stages()
    check_same_state(run, done)
    position = run.stage_folder(done - 1).state()["events_bytes"] if done else 0
    if done < len(run.tasks) and run.stage_folder(done).in_progress:
        position = run.stage_folder(done).checkpoint_state()["events_bytes"]
    trackers = None
    if run.runtime.is_main:
        config = run.config.model_dump(mode="json")
        trackers = Trackers(
            run.config.train.report_to, run.folder.path, run=str(run.folder).rstrip("/").rsplit("/", 1)[-1], config=config,
            log=run.console.log,
        )  # fmt: skip
    events = run.folder.open_log(writes=run.runtime.is_main, position=position, log=run.console.log, trackers=trackers)
    failed = True
    try:
        if not position:
            _log_run(run, events, method)
        if done:
            take_up_finished(run, method, done)
        run.console.outlook = _outlook(run, done)
        for number in range(done, min(until, len(run.tasks))):
            _learn_task(run, method, number, events)
        failed = False
    finally:
        run.console.outlook = None
        events.close(failed=failed)


def check_same_state(run: Run, done: int) -> None:
    """Check that all processes go on from one state; their sums would mix two otherwise.

    Raises:
        RunError: machines do not see one folder, or a copy on one of them is damaged.
    """
    if run.runtime.world_size == 1:
        return
    seen = run.runtime.gather([run.stage_folder(number).identity for number in range(max(0, done - 1), min(done + 1, len(run.tasks)))])
    rank = next((rank for rank, state in enumerate(seen) if state != seen[0]), None)
    problem = ""
    if rank is not None:
        mend = (
            f"remove {run.stage_folder(done).path / 'progress'} on every machine"
            if run.folder.uri
            else "name a folder on a disk that all machines see, or copy it to each"
        )
        problem = f"{run.folder}: rank {rank} finds another state of the run than rank 0, and they would not go on together; {mend}"
    run.runtime.raise_on_all_ranks(problem)


def _outlook(run: Run, done: int) -> Outlook:
    """Return how long the run will take, by the epochs of its stages and what the finished ones took."""
    timings = [run.stage_folder(number).timing() for number in range(done)]
    return Outlook(
        [run.config.train.stage(number, task.name).epochs for number, task in enumerate(run.tasks)],
        [(timing.get("epochs", 0), timing.get("seconds", 0.0)) for timing in timings],
    )


def take_up_finished(run: Run, method: Method, done: int) -> None:
    """Take up the weights of the last finished stage, its item tables grown where the next one has new items to learn."""
    take_up(method, run.tasks[:done], None)
    tensors = run.stage_folder(done - 1).tensors()
    next_task = run.tasks[done].name if done < len(run.tasks) else None
    listed = run.runtime.gather(run.folder.additions())[0]  # the main process's: another machine may not have it yet
    added = next((entry for entry in listed if entry["task"] == next_task), None)
    if added is not None and next_task is not None:
        tensors, run.growth[done] = grown_tensors(
            tensors, method.item_tables(), run.dataset, task=next_task, new_items=added["new_items"], runtime=run.runtime,
            vectors=run.vectors,
        )  # fmt: skip
        for line in [*growth_lines(run.growth[done]), *label_lines(method, tensors, run.tasks[:done])]:
            run.console.log(line)
    method.load_state_dict(with_new_labels(tensors, method))
    if run.runtime.is_main:
        for number in range(done):
            run.stage_folder(number).drop_checkpoints()
    state = "finished" if next_task is None else f"going on with {next_task}"
    run.console.log(f"{run.folder}: {done} of {len(run.tasks)} stages are there, {state}")


def _learn_task(run: Run, method: Method, number: int, events: EventLog) -> None:
    task, folder = run.tasks[number], run.stage_folder(number)
    events.stage = {"stage": number + 1, "task": task.name}
    if not folder.in_progress:
        events.write("stage")
    label = f"stage {number + 1}/{len(run.tasks)} {task.name}"
    summary = Stage(run, method, task, folder=folder, events=events, label=label).run()
    scores = score_stage(run, method, number, folder, events, label=label)
    if run.console.outlook is not None:
        run.console.outlook.end_stage(summary.epochs)
    if run.runtime.is_main:
        run.folder.check_place()
        folder.write_timing(_timing(run, number, summary, scores))
        folder.finish(method.state_dict(), _stage_state(run, method, number, summary, scores, events.commit()))
        run.folder.write_timing(machine(run.runtime))
        write_results(run.folder.path, run.config, run.tasks)
        run.folder.commit(wait=True)
    run.runtime.barrier()


def _timing(run: Run, number: int, summary: StageSummary, scores: StageScores) -> dict[str, Any]:
    return {
        "stage": number + 1,
        "task": run.tasks[number].name,
        "seconds": summary.training_seconds + summary.prepare_seconds + scores.seconds,
        "training_seconds": summary.training_seconds,
        "pseudo_label_seconds": summary.prepare_seconds,
        "evaluation_seconds": scores.seconds,
        "epochs": summary.epochs,
    }


def _stage_state(
    run: Run, method: Method, number: int, summary: StageSummary, scores: StageScores, events_bytes: int
) -> dict[str, Any]:  # fmt: skip
    return {
        "format_version": FORMAT_VERSION,
        "stage": number + 1,
        "task": run.tasks[number].name,
        "learned": list(method.learned),
        "scores": [score.value for score in scores.test],
        "validation_scores": [score.value for score in scores.validation],
        "scores_by_metric": by_metric(run.config, scores.test),
        "validation_scores_by_metric": by_metric(run.config, scores.validation),
        "test_examples": [score.examples for score in scores.test],
        "unseen_targets": [score.unseen for score in scores.test],
        "epochs": summary.epochs,
        "items": run.dataset.info.items,
        **({"types": types} if (types := run.dataset.info.history.types) else {}),
        **({} if run.dataset.moments is None else {"moment": run.dataset.moments.last}),
        **({"input_values": values} if (values := _input_values(run)) else {}),
        "dataset": run.dataset.info.fingerprint,
        SEEN_LABELS: packed_labels(scores.test[number].seen_Y),
        **({"growth": run.growth[number]} if number in run.growth else {}),
        "events_bytes": events_bytes,
    }


def _input_values(run: Run) -> dict[str, int]:
    """Return how many values each side feature has that the model reads."""
    read = run.dataset.inputs_read
    return {feature.name: feature.values for feature in (*read.user, *read.item)}


def _log_run(run: Run, events: EventLog, method: Method) -> None:
    names, info, world = [task.name for task in run.tasks], run.dataset.info, run.runtime.world_size
    metrics = [[metric.name for metric in metrics_of(task, run.config.evaluate.metrics)] for task in run.tasks]
    events.write(
        "run", method=method.name, seed=run.config.seed, tasks=names, metrics=metrics, world_size=world, versions=package_versions()
    )  # fmt: skip
    run.console.log(
        f"{info.name}: {users_text(info.users, info.notes)}, {info.items - 2:,} items, {info.events:,} events in {info.shards} shards; "
        f"{method.name}, seed {run.config.seed}, {world} process(es) on {run.runtime.device.type}"
    )
    if without := [task.name for task in run.tasks if excludes_seen(info, task.name, run.config.evaluate.exclude_seen)]:
        others = [task.name for task in run.tasks if task.ranks_labels and task.name not in without]
        also = f"; all labels are ranked in {', '.join(others)}" if others else ""
        run.console.log(f"what a user has taken is left out of the rankings of {', '.join(without)} (evaluate.exclude_seen){also}")
        if line := taken_but_ranked(info):
            run.console.log(line)
    if info.test_periods:
        which = "the test period of its own stage" if run.config.evaluate.period == "own" else "the test period of the present stage"
        run.console.log(f"the test has {len(info.test_periods)} periods; each task is scored on {which} (evaluate.period)")
    if places := untrained_places(run.dataset, run.tasks[0], run.config.model, run.runtime):
        run.console.log(f"warning: {places}")
    if run.config.evaluate.max_users is not None:
        run.console.log(f"scores are taken on at most {run.config.evaluate.max_users} users a task and split (evaluate.max_users)")


def _learn_single_tasks(run: Run, where: str, added: AddedTask | None) -> None:
    """Train every task alone on the same data and seeds beside the run; a run of that method is its own denominator."""
    if run.config.method["name"] == SINGLE_TASK:
        return
    run.console.log(f"every task alone, for forward transfer ({SINGLE_TASK})")
    folder = run.folder.below("single-task")
    alone = _alone(run.config, begun=run.runtime.gather(folder.config() if folder.exists else None)[0])
    # where tasks were trained alone with the run before, one is added to them; without them all are trained now
    added = added if added is not None and run.runtime.gather(takes_addition(folder, added))[0] else None
    _train(alone, run.runtime, folder, where=where, console=run.console, stop=run.stop, with_single_task=False, added=added)


def _alone(config: RunConfig, *, begun: RunConfig | None) -> RunConfig:
    """Return a run's configuration for tasks that are trained alone.

    Each trains a network from scratch, as the first task's stage does, so it has that stage's weight decay where later stages, which spare
    what past tasks read, have none. A run that was begun without it goes on without.

    Args:
        config: The run's.
        begun: That of the tasks' own run, if there is one.
    """
    train = config.train
    if begun is None:
        decays = [stage.weight_decay or train.first.weight_decay for stage in (train.second, train.later)]
    else:
        decays = [begun.train.second.weight_decay, begun.train.later.weight_decay]
    second, later = (
        stage.model_copy(update={"weight_decay": decay}) for stage, decay in zip((train.second, train.later), decays, strict=True)
    )
    return config.model_copy(update={"method": {"name": SINGLE_TASK}, "train": train.model_copy(update={"second": second, "later": later})})


def _write_baselines(run: Run) -> None:
    path = run.folder.path / "baselines.json"
    try:
        known = len(run.folder.read_json(path.name)["popularity"]) if path.exists() else 0
    except (DataError, KeyError, TypeError):  # damaged
        known = 0
    if known < len(run.tasks):
        config = run.config
        table = baseline_table(
            run.dataset, run.tasks, metrics=config.evaluate.metrics, seed=config.seed, log=run.console.log,
            exclude_seen=config.evaluate.exclude_seen,
            # of the final scores, which baselines stand beside
            periods=[period_of(config.evaluate, run.dataset.info, task=place, stage=len(run.tasks) - 1) for place in range(len(run.tasks))],
        )  # fmt: skip
        run.folder.write_json(path.name, table)
