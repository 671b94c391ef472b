"""The commands that use a trained run: export, predict, evaluate, probe and their like."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dist_teracon.cli.arguments import AddCommand, as_count, as_whole
from dist_teracon.console import Console
from dist_teracon.errors import ConfigError

if TYPE_CHECKING:
    from dist_teracon.inference.model import PretrainedModel, SharedVector
    from dist_teracon.inference.sources import UserSource

# What each command is for, as `dist-teracon --help` lists them.
COMMANDS = {
    "export": "write the vectors of all users; the same command again resumes",
    "predict": "write the best labels of a task for the users of EVENTS",
    "evaluate": "score a run on any version of the data, by any metrics",
    "probe": "learn labels that the model never saw from its vectors",
    "cold-start": "test frozen vectors in a new task, on users with few labels",
    "drift": "compare the vectors of two exports, runs or stages",
    "export-model": "write encoder and head as a torch.export or ONNX program",
    "item-vectors": "make vectors of items from their texts, by an encoder on disk",
}


def add_commands(add: AddCommand) -> None:
    """Add the commands to the command line."""
    _add_export(add("export", _export))
    predict = add("predict", _predict)
    _add_run(predict)
    predict.add_argument("events", metavar="EVENTS", help="file or folder of events, or a prepared data set")
    predict.add_argument("out", metavar="OUT", help="the Parquet file: user, labels, scores")
    predict.add_argument("--task", required=True, help="whose labels are ranked")
    predict.add_argument("--top", type=as_count, default=10, metavar="N", help="labels a user (10)")
    _add_exclude_seen(predict)
    predict.add_argument("--normalise", action="store_true", help="probabilities instead of logits")
    _add_no_dates(predict)
    _add_at(predict)
    evaluate = add("evaluate", _evaluate)
    _add_run(evaluate)
    evaluate.add_argument("--data", metavar="DATASET", help="another version of the data set, or another data set with the same ids")
    evaluate.add_argument("--task", action="append", metavar="TASK", help="which task; once more for several (all)")
    evaluate.add_argument("--metrics", metavar="NAMES", help="as hr@10,ndcg@10 (the run's)")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which part (test)")
    evaluate.add_argument(
        "--period", choices=("own", "present", "all"), help="of a test of several periods, as evaluate.period, or all together (the run's)"
    )
    evaluate.add_argument("--max-users", type=as_count, metavar="N", help="at most so many users a task")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    _add_exclude_seen(evaluate)
    _add_probe(add("probe", _probe))
    _add_cold_start(add("cold-start", _cold_start))
    _add_drift(add("drift", _drift))
    program = add("export-model", _export_model)
    _add_run(program)
    program.add_argument("out", metavar="OUT", help="the program (.pt2), or ONNX (.onnx)")
    program.add_argument("--task", required=True, help="whose mask and head it has")
    _add_item_vectors(add("item-vectors", _item_vectors))


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder or URI of a run")
    parser.add_argument("--stage", type=as_count, metavar="N", help="the weights after stage N (the last)")
    parser.add_argument("--device", default="cpu", help="where it computes (cpu)")


def _add_exclude_seen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude-seen", action=argparse.BooleanOptionalAction, default=None,
        help="leave out the items of a user's own history (as the run and its recipe have it)",
    )  # fmt: skip


def _add_no_dates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-dates", action="store_true", help="events: the recipe's from and until do not apply")


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shared", choices=("mean", "open", "concat"), help="what the shared vector is (mean over the tasks')")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("out", metavar="OUT", help="folder or URI of the export")
    parser.add_argument("--data", metavar="SRC", help="a data set, or a file or folder of events (the run's own data set)")
    parser.add_argument("--task", action="append", metavar="TASK", help="shared, a task, or all; once more for several (shared)")
    _add_vectors(parser)
    parser.add_argument("--format", default="parquet", choices=("parquet", "npy", "safetensors"), help="of the vectors (parquet)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "int8"), help="int8 has a scale a row (float32)")
    parser.add_argument("--items", action="store_true", help="the items' vectors too")
    parser.add_argument("--labels", action="append", default=[], metavar="TASK", help="the vectors and biases of a task's labels too")
    parser.add_argument("--align-to", metavar="OLD", help="turn the vectors into the space of an earlier export, on common users")
    parser.add_argument("--batch", type=as_count, default=512, metavar="N", help="users encoded at a time (512)")
    parser.add_argument("--cluster", action="store_true", help="write the parts on a Ray cluster (RAY_ADDRESS or a Ray job)")
    _add_no_dates(parser)
    _add_at(parser)


def _add_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at", metavar="TIME", help="when the prediction is, where the model reads it: seconds since 1970, or a date"
    )  # fmt: skip


def _add_probe(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labels", metavar="FILE", help="Parquet or CSV with the columns user and label")
    which.add_argument("--labels-task", metavar="TASK", help="a profile task of the data set, with its own split")
    parser.add_argument("--data", metavar="SRC", help="the users' histories: a data set, or events (the run's own data set)")
    parser.add_argument("--task", action="append", metavar="TASK", help="whose vectors: shared, shared:open, a task, or all (shared)")
    parser.add_argument("--metric", help="auroc, accuracy or macro-f1 (auroc for two classes, else accuracy)")
    parser.add_argument("--seed", type=as_whole, default=0, help="of split and probes (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    _add_no_dates(parser)


def _add_cold_start(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--target", required=True, metavar="TASK", help="an item task that the model has not learned")
    parser.add_argument("--data", metavar="DATASET", help="the data set that has it (the run's own)")
    parser.add_argument("--task", action="append", metavar="TASK", help="whose vectors: shared, shared:open, a task, or all (shared)")
    parser.add_argument("--users", type=as_count, default=20_000, metavar="N", help="scored at most (20000)")
    parser.add_argument("--seed", type=as_whole, default=0, help="of users, drawn labels and networks (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")


def _add_drift(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="an export or a run")
    parser.add_argument("new", metavar="NEW", nargs="?", help="an export or a run; a run may be both, with two stages")
    parser.add_argument("--stages", action="store_true", help="of one run: each stage with the one before, for its report too")
    parser.add_argument("--old-stage", type=as_count, metavar="N", help="of a run: the weights after stage N (the last)")
    parser.add_argument("--new-stage", type=as_count, metavar="N", help="the same of NEW")
    parser.add_argument("--task", metavar="TASK", help="whose vectors (shared, or an export's only ones)")
    parser.add_argument("--data", metavar="SRC", help="of runs: whose users are encoded (a run's own data set)")
    parser.add_argument("--users", type=as_count, default=5000, metavar="N", help="common users that are compared at most (5000)")
    parser.add_argument("--labels", metavar="FILE", help="for a probe on the old vectors: Parquet or CSV with user and label")
    parser.add_argument("--metric", help="the probe's (auroc for two classes, else accuracy)")
    parser.add_argument("--max-drop", metavar="SHARE", help="exit with 1 where the old probe's score falls by more, as 1%%")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the values there too")


def _add_item_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("items", metavar="ITEMS", help="Parquet or CSV, a file or a folder of parts, with a row an item")
    parser.add_argument("out", metavar="OUT", help="folder or URI of the vectors; the same command again resumes")
    parser.add_argument("--encoder", required=True, metavar="FOLDER", help="a Hugging Face encoder on disk, weights as safetensors")
    parser.add_argument("--item", default="item", metavar="COLUMN", help="the ids' column (item)")
    parser.add_argument(
        "--text", action="append", metavar="COLUMN", help="the text's column; once more for several, which are joined (text)"
    )
    parser.add_argument("--pool", default="mean", choices=("mean", "encoder"), help="mean of the sub-tokens, or the encoder's own (mean)")
    parser.add_argument("--max-length", type=as_count, metavar="N", help="tokens of a text that are read (as many as the encoder allows)")
    parser.add_argument("--batch", type=as_count, default=64, metavar="N", help="texts encoded at a time (64)")
    parser.add_argument("--device", default="cpu", help="where it computes (cpu)")


def _load(options: argparse.Namespace) -> PretrainedModel:
    from dist_teracon.inference.model import from_pretrained

    model = from_pretrained(options.run, options.stage, device=options.device)
    if (at := getattr(options, "at", None)) is not None:
        found = model.moments(1, _moment(at))
        assert found is not None  # a model that does not read it has refused it
        model.moment = int(found[0])
    return model


def _moment(text: str) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--at: expected seconds since 1970 or a date, as 2026-01-31 or 2026-01-31T18:00:00+09:00, got '{text}'"
        ) from None


def _source(model: PretrainedModel, uri: str | None, options: argparse.Namespace) -> UserSource:
    from dist_teracon.inference.sources import of_uri

    return of_uri(model, model.config.dataset if uri is None else uri, dates=not options.no_dates, log=Console().log)


def _tasks(model: PretrainedModel, names: list[str] | None) -> tuple[str, ...]:
    return tuple(model.tasks) if names == ["all"] else tuple(names or ("shared",))


def _export(options: argparse.Namespace) -> None:
    from dist_teracon.inference.export import export
    from dist_teracon.inference.export_job import ExportOptions

    model, console = _load(options), Console()
    shared: SharedVector | None = options.shared
    chosen = ExportOptions(
        tasks=_tasks(model, options.task), shared=shared, format=options.format, dtype=options.dtype, items=options.items,
        labels=tuple(options.labels), align_to=options.align_to, batch=options.batch,
    )  # fmt: skip
    source = _source(model, options.data, options)
    manifest = export(model, source, options.out, chosen, log=console.log, progress=console, cluster=options.cluster)
    for name, entry in manifest["vectors"].items():
        print(f"{name}: {manifest['users']} users × {entry['width']}, {manifest['dtype']}, mean norm {entry['norm']['mean']:.3f}")
    if manifest["unknown_events"]:
        print(f"{manifest['unknown_events']} events are of items that the model does not know; it reads them as unseen")
    print(f"export: {options.out}")


def _predict(options: argparse.Namespace) -> None:
    from dist_teracon.inference.predict_file import check_name, predict_to_file

    check_name(options.out)
    model, console = _load(options), Console()
    model.task(options.task)
    users = predict_to_file(
        model, _source(model, options.events, options), options.out, options.task,
        top=options.top, exclude_seen=options.exclude_seen, normalise=options.normalise, log=console.log, progress=console,
    )  # fmt: skip
    print(f"{users} users: {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    from dist_teracon.atomic import write_json
    from dist_teracon.inference.evaluate import evaluate, score_lines, scores_json

    model, console = _load(options), Console()
    metrics = None if options.metrics is None else [name.strip() for name in options.metrics.split(",")]
    scores = evaluate(
        model, options.data, tasks=options.task, metrics=metrics, split=options.split, exclude_seen=options.exclude_seen,
        max_users=options.max_users, period=options.period, log=console.log, progress=console,
    )  # fmt: skip
    print("\n".join(score_lines(scores)))
    if options.json is not None:
        write_json(options.json, scores_json(model, options.data, options.split, scores))


def _export_model(options: argparse.Namespace) -> None:
    from dist_teracon.inference.padded import export_model

    model = _load(options)
    worst = export_model(model, options.out, options.task)
    print(json.dumps({"program": options.out, "task": options.task, "largest_difference": worst}))


def _item_vectors(options: argparse.Namespace) -> None:
    from dist_teracon.inference.item_vectors import check_out, lines_of, read_texts, write_item_vectors
    from dist_teracon.inference.text_encoder import TextEncoder

    check_out(options.out)
    console = Console()
    texts = read_texts(options.items, item=options.item, text=options.text or ("text",), log=console.log)
    encoder = TextEncoder(options.encoder, pool=options.pool, max_length=options.max_length, device=options.device)
    manifest = write_item_vectors(texts, encoder, options.out, batch=options.batch, log=console.log, progress=console)
    print("\n".join([*lines_of(manifest), f"item vectors: {options.out}"]))


def _probe(options: argparse.Namespace) -> None:
    from dist_teracon.atomic import write_json
    from dist_teracon.data.open import open_dataset
    from dist_teracon.inference.labels_file import labels_of_task, read_labels
    from dist_teracon.inference.probe import every_vector, probe

    if options.seed < 0:
        raise ConfigError(f"--seed: expected 0 or more, got {options.seed}")
    model, console = _load(options), Console()
    tasks = every_vector(model) if options.task == ["all"] else options.task or ["shared"]
    closed: Collection[str] = ()
    if options.labels is not None:
        labels = read_labels(options.labels, seed=options.seed, log=console.log)
        if names := [feature.name for feature in model.inputs.user]:
            console.log(f"the vectors read {', '.join(names)} of users; labels that follow from one of them say nothing of histories")
    else:
        dataset = open_dataset(options.data or model.config.dataset, log=console.log)
        labels, closed = labels_of_task(dataset, options.labels_task), dataset.info.inputs.closed_to([options.labels_task])
        if dataset.info.test_periods:
            console.log(f"{options.labels_task}: of {len(dataset.info.test_periods)} periods of the test the first is scored")
        if options.labels_task in model.tasks:
            console.log(f"{options.labels_task}: the model has learned it, so this is no probe of something new")
    source = _source(model, options.data, options)
    for note in source.notes:
        console.log(note)
    found = probe(model, source, labels, tasks=tasks, metric=options.metric, seed=options.seed, closed=closed, log=console.log)
    print("\n".join(found.lines()))
    if options.json is not None:
        write_json(options.json, {"run": model.run, "fingerprint": model.fingerprint, "stage": model.stage, **found.to_json()})


def _cold_start(options: argparse.Namespace) -> None:
    from dist_teracon.atomic import write_json
    from dist_teracon.inference.cold_start import cold_start
    from dist_teracon.inference.probe import every_vector
    from dist_teracon.inference.run_notes import COLD_START, note

    model, console = _load(options), Console()
    tasks = every_vector(model) if options.task == ["all"] else options.task or ["shared"]
    data = options.data or model.config.dataset
    found = cold_start(model, data, options.target, tasks=tasks, users=options.users, seed=options.seed, log=console.log)
    value = {"run": model.run, "fingerprint": model.fingerprint, "stage": model.stage, "data": data, **found.to_json()}
    print("\n".join(found.lines()))
    if options.json is not None:
        write_json(options.json, value)
    for line in note(model.run, COLD_START, options.target, value):
        print(line)


def _drift(options: argparse.Namespace) -> int:
    from dist_teracon.atomic import write_json
    from dist_teracon.inference.drift import drift, vector_set
    from dist_teracon.inference.labels_file import read_labels

    if options.stages:
        return _stage_drift(options)
    if options.new is None:
        raise ConfigError("drift: expected OLD and NEW, two exports or runs; or RUN --stages for the stages of one run")
    most = None if options.max_drop is None else _share(options.max_drop)
    if most is not None and options.labels is None:
        raise ConfigError("--max-drop: is about an old probe's score, which needs --labels FILE")
    console = Console()
    labels = None if options.labels is None else read_labels(options.labels, log=console.log)
    old, new = (
        vector_set(uri, stage=stage, task=options.task, data=options.data, log=console.log)
        for uri, stage in ((options.old, options.old_stage), (options.new, options.new_stage))
    )
    if old.kind != new.kind:
        console.log(f"vectors of two kinds are compared: {old.kind} and {new.kind}")
    if old.data != new.data:
        console.log("the vectors are of two versions of data, so users' histories may differ, too; of runs --data names one for both")
    found = drift(old, new, users=options.users, labels=labels, metric=options.metric)
    print("\n".join(found.lines()))
    if options.json is not None:
        write_json(options.json, found.to_json())
    if most is not None and found.drop is not None and found.drop > most:
        print(f"the old probe's score falls by {found.drop:.2%}, more than {most:.2%}")
        return 1
    return 0


def _stage_drift(options: argparse.Namespace) -> int:
    from dist_teracon.atomic import write_json
    from dist_teracon.inference.drift import stage_drift, stage_lines
    from dist_teracon.inference.run_notes import DRIFT, note

    others = {"NEW": options.new, "--old-stage": options.old_stage, "--new-stage": options.new_stage, "--labels": options.labels,
              "--metric": options.metric, "--max-drop": options.max_drop}  # fmt: skip
    if given := [name for name, value in others.items() if value is not None]:
        raise ConfigError(f"--stages: compares all stages of one run; leave {', '.join(given)} out")
    found = stage_drift(options.old, task=options.task, data=options.data, users=options.users, log=Console().log)
    if options.json is not None:
        write_json(options.json, found)
    print("\n".join([*stage_lines(found), *note(options.old, DRIFT, found["task"], found)]))
    return 0


def _share(text: str) -> float:
    """Return a share, written as 1% or 0.01."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"--max-drop: expected a share as 1% or 0.01, got '{text}'")
    return value
