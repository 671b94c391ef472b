"""Preparation: a source and a recipe become a data set folder."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dist_teracon import io
from dist_teracon.atomic import atomic_folder, copy_folder
from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.data.input_features import NO_FEATURES, InputFeatures
from dist_teracon.data.prepare.logs import meeting_logs
from dist_teracon.data.prepare.matched import MAX_UNMATCHED
from dist_teracon.data.prepare.padding import PaddedSource
from dist_teracon.data.prepare.splits import effective
from dist_teracon.data.prepare.tables import Tables, TablesSource
from dist_teracon.data.prepare.task_builder import build_tables
from dist_teracon.data.prepare.workspace import Workspace, workspace
from dist_teracon.data.prepare.writer import write_dataset_files, write_on_workers
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.context import ReadContext, Workers
from dist_teracon.data.raw.listing import relative_name
from dist_teracon.data.recipe import Recipe, read_recipe
from dist_teracon.data.recipe_values import clean_name
from dist_teracon.data.schema import FORMAT_VERSION, LABELS_OF_THEIR_OWN, DatasetInfo, SplitRule, read_dataset_info
from dist_teracon.data.shard_source import ShardSource
from dist_teracon.data.sources.base import EventData, SourceFormat
from dist_teracon.data.sources.registry import format_names, source_format
from dist_teracon.data.summary import users_text
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.memory import raise_malloc_thresholds

REJECTED = "rejected.jsonl"


def prepare(
    format: str,
    source: str,
    out: str,
    *,
    recipe: str | Path | Recipe | None = None,
    split: Literal["users", "rows", "last"] | None = None,
    max_bad_rows: float = 0.001,
    min_count: int | None = None,
    shards: int | None = None,
    block: int | None = None,
    made_from: dict[str, Any] | None = None,
    cluster: bool = False,
    max_unmatched: float = MAX_UNMATCHED,
    known_inputs: InputFeatures = NO_FEATURES,
    keep_earlier: bool = False,
    shown: str | None = None,
    log: Log = no_log,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Make a data set from raw logs, or find that it is there already.

    Killed at any moment, the same call goes on from the rows it had spilled, if reading had come to its end.

    Args:
        format: One of `format_names`.
        source: Folder or URI of the raw files.
        out: Folder or URI of the data set.
        recipe: How tasks come from events; formats of events require one.
        split: Overrides the recipe's `split.by`.
        max_bad_rows: Largest share of malformed rows in a file.
        min_count: Overrides the recipe's `history.min_count`: items of fewer occurrences count as unseen.
        shards: Number of shards; by the size where None.
        block: Bytes of a file that are looked at together; what is written does not depend on it.
        made_from: What to record as the origin; by default the files' checksums and the options.
        cluster: Do the work on a Ray cluster; what is written is the same.
        max_unmatched: Largest share of the fewer ids of events and a table of attributes that may be without a partner.
        known_inputs: Side features of the version that this is added to: bins are cut where its are, and a feature may have one value.
        keep_earlier: Keep what users took before their cut histories, also where no task of this recipe has `repeats: false`, as one has
            of the version that this is added to.
        shown: How messages name the result; `out` where None.
        log: Receives lines on what happens.
        progress: Shows how far it is.

    Raises:
        ConfigError: the recipe is wrong or names what the source does not have.
        DataError: the source is missing or malformed, the disk is full, or `out` holds something else.
    """
    reader = _checked_format(format, max_bad_rows=max_bad_rows, shards=shards, min_count=min_count, cluster=cluster)
    rules = recipe if isinstance(recipe, Recipe) or recipe is None else read_recipe(str(recipe))
    if rules is None and reader.needs_recipe:
        raise ConfigError(
            f"--recipe: format '{format}' requires a recipe, which defines how tasks come from events; "
            "`dist-teracon init` writes a first one"
        )
    if not 0 <= max_unmatched <= 1:
        raise ConfigError(f"--max-unmatched: expected a share from 0 to 1, got {max_unmatched:g}")
    if rules is not None and rules.logs and not reader.takes_logs:
        able = ", ".join(name for name in format_names() if source_format(name).takes_logs)
        raise ConfigError(f"logs: format '{format}' has its events in one place; several tables of events are read by: {able}")
    if rules is not None and rules.split.by == "time" and split is not None:
        raise ConfigError(f"--split {split}: the recipe splits by time (split.by), which its dates are for; change the recipe instead")
    if rules is not None and rules.inputs.names and format in LABELS_OF_THEIR_OWN:
        raise ConfigError(f"inputs: features come from tables of users and items, and '{format}' has none; leave them out of the recipe")
    rule = effective((rules or Recipe()).split_rule(split))
    if rule.by == "last" and rules is not None and rules.history.padding == "token":
        raise ConfigError(
            "history.padding: 'token' and a split by 'last' do not go together: of a user with few items padding would be what is trained "
            "on and validated; leave padding out, or split by users"
        )
    check_output(out)
    raw = _raw_files(
        format, source, rules, split=split, max_bad_rows=max_bad_rows, min_count=min_count, shards=shards, made_from=made_from,
        known_inputs=known_inputs, keep_earlier=keep_earlier,
    )  # fmt: skip
    there = existing_dataset(out, raw.origin({}) if io.exists(io.join(out, "dataset.json")) else {})
    if there is not None:
        _check_order(out, there, rules)
        log(f"{out}: is there already, made from the same input and options; nothing to do")
        return there
    raise_malloc_thresholds()
    sizes = raw.sizes()
    with ExitStack() as stack:
        work = stack.enter_context(workspace(out, raw.key(sizes), log, shown=shown))
        stack.enter_context(_full_disk(work))
        bad, total = BadRows(max_bad_rows, work.root / REJECTED, raw.source), sum(sizes.values())
        context = ReadContext(
            bad, work.spill, shards=shards, min_count=min_count, total_bytes=total, progress=progress or NoProgress(), log=log
        )
        if block is not None:
            context.block = block
        if cluster:
            context.workers = stack.enter_context(_ray_workers(out, work))
        log("reading what was drawn" if made_from else f"reading {source}")
        data = _read(
            reader, raw.source, rules, context, log, max_unmatched=max_unmatched, known_inputs=known_inputs, keep_earlier=keep_earlier
        )
        data.source = raw.origin(context.sha256)
        info = _write(data, rule, work, context, log)
        work.publish()
    return info


def _check_order(out: str, there: DatasetInfo, recipe: Recipe | None) -> None:
    """Raise DataError where a data set that is there has a recipe's tasks in another order, which fingerprints do not tell."""
    has, wanted = [task.name for task in there.tasks[1:]], list(recipe.tasks) if recipe is not None else []
    if sorted(has) == sorted(wanted) and has != wanted:
        raise DataError(
            f"{out}: holds the same tasks in another order ({', '.join(has)}), in which a run learns them where it names none; name a new "
            "folder, or the order in the run's configuration (tasks)"
        )


@dataclass(frozen=True)
class _RawFiles:
    """What a data set is prepared from: raw files of a format, and the options that decide what is written."""

    format: str
    source: str
    uris: list[str]
    options: dict[str, Any]
    made_from: dict[str, Any] | None

    def sizes(self) -> dict[str, int]:
        """Return the stored bytes of each file."""
        return {uri: _size(uri) for uri in self.uris}

    def key(self, sizes: dict[str, int]) -> str:
        """Return a key of the files and options that takes no reading of the files: one of spilled rows that may be kept."""
        stamps = [_stamp(uri) for uri in self.uris]
        return fingerprint({"format": self.format, "source": self.source, "sizes": sizes, "stamps": stamps, **self.options})

    def origin(self, checksums: dict[str, str]) -> dict[str, Any]:
        """Return what `dataset.json` records as its source; files that have no checksum yet are read."""
        if self.made_from is not None:
            return self.made_from
        files = {relative_name(uri, self.source): checksums.get(uri) or io.sha256(uri) for uri in self.uris}
        value = {"format": self.format, "files": files, **self.options}
        return {**value, "fingerprint": fingerprint(value)}


def _raw_files(
    format: str, source: str, recipe: Recipe | None, *,
    split: str | None, max_bad_rows: float, min_count: int | None, shards: int | None, made_from: dict[str, Any] | None = None,
    known_inputs: InputFeatures = NO_FEATURES, keep_earlier: bool = False,
) -> _RawFiles:  # fmt: skip
    folder = io.input_path(source)
    options = {
        "recipe": None if recipe is None else recipe.to_json(),
        "split": split,
        "max_bad_rows": max_bad_rows,
        "shards": shards,
        **({} if min_count is None else {"min_count": min_count}),
        **({} if known_inputs == NO_FEATURES else {"known_inputs": known_inputs.to_json()}),
        # events of one moment stand in the order of the logs, which the recipe's fingerprint does not tell
        **({"logs": list(recipe.logs)} if recipe is not None and len(recipe.logs) > 1 else {}),
        # where the recipe says so itself, this changes nothing
        **({"keep_earlier": True} if keep_earlier and recipe is not None and not recipe.leaves_out_taken else {}),
    }
    return _RawFiles(format, folder, source_format(format).files(folder, recipe), options, made_from)


def prepared_fingerprint(
    format: str,
    source: str,
    recipe: Recipe | None,
    *,
    split: str | None,
    max_bad_rows: float,
    min_count: int | None,
    shards: int | None,
    known_inputs: InputFeatures = NO_FEATURES,
    keep_earlier: bool = False,
) -> str:
    """Return the fingerprint of what `prepare` would make, which it records as `source.fingerprint`; reads the files for checksums."""
    raw = _raw_files(
        format, source, recipe, split=split, max_bad_rows=max_bad_rows, min_count=min_count, shards=shards,
        known_inputs=known_inputs, keep_earlier=keep_earlier,
    )  # fmt: skip
    value: str = raw.origin({})["fingerprint"]
    return value


def _checked_format(format: str, *, max_bad_rows: float, shards: int | None, min_count: int | None, cluster: bool) -> SourceFormat:
    reader = source_format(format)
    if not 0 <= max_bad_rows < 1:
        raise ConfigError(f"--max-bad-rows: expected a share of at least 0 and below 1, got {max_bad_rows}")
    for option, value in (("--shards", shards), ("--min-count", min_count)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: expected 1 or more, got {value}")
    if cluster and not reader.on_cluster:
        able = ", ".join(name for name in format_names() if source_format(name).on_cluster)
        raise ConfigError(f"--cluster: '{format}' is prepared on one machine; on a cluster: {able}")
    return reader


def _ray_workers(out: str, work: Workspace) -> AbstractContextManager[Workers]:
    """Return workers whose staging folder is next to the data set."""
    from dist_teracon.data.prepare.ray_workers import ray_workers

    return ray_workers(str((work.root / "staging").absolute()) if io.is_local(out) else f"{out.rstrip('/')}.preparing")


def _read(
    reader: SourceFormat, source: str, rules: Recipe | None, context: ReadContext, log: Log, *,
    max_unmatched: float, known_inputs: InputFeatures, keep_earlier: bool,
) -> ShardSource:  # fmt: skip
    """Read raw files into what a data set is written from."""
    read = reader.read(source, rules, context)
    data: ShardSource
    if isinstance(read, EventData):
        if read.logs:
            context.notes["logs"] = meeting_logs(read, rules or Recipe(), limit=max_unmatched, log=log)
        tables = build_tables(
            rules or Recipe(), read, bad=context.bad, min_count=context.min_count, max_unmatched=max_unmatched,
            known_inputs=known_inputs, keep_earlier=keep_earlier, log=log,
        )  # fmt: skip
        _check(tables)
        data = TablesSource(tables)
    elif rules is not None and rules.split.by == "time":
        raise ConfigError("split.by: 'time' splits by when events were, and this format has none; split by users, rows or last")
    else:
        data = read
    data.notes = {**data.notes, **context.notes, "malformed_rows": dict(sorted(context.bad.counts.items()))}
    for name, why in context.notes.get("files", {}).get("not_read", {}).items():
        log(f"not read: {name}, which {why}")
    for kind, count in data.notes["malformed_rows"].items():
        log(f"left out malformed rows: {count} × {kind}")
    if rules is not None and rules.history.padding == "token":
        data = PaddedSource(data)
    _check_names(data)
    return data


def _write(data: ShardSource, rule: SplitRule, work: Workspace, context: ReadContext, log: Log) -> DatasetInfo:
    """Write a data set into the working folder, with the file of malformed rows where there are any."""
    users = users_text(len(data.user_hashes()), data.notes)
    log(f"writing {users}, {len(data.items):,} items, {1 + len(data.tasks)} tasks to {work.shown}")
    advance = partial(context.report, "writing")
    if context.workers is None:
        info = write_dataset_files(work.dataset, data, rule, context.shards, advance=advance)
    else:
        target = str(work.dataset) if io.is_local(work.out) else work.out
        info = write_on_workers(
            context.workers, work.dataset, target, data, rule, context.shards, kept_rows=context.kept_rows, advance=advance
        )
    context.bad.close()
    if (work.root / REJECTED).exists():
        (work.root / REJECTED).replace(work.dataset / REJECTED)
    return info


class _full_disk:  # noqa: N801  (read as a function in a with statement)
    """Turn the error of a full disk into a user's."""

    def __init__(self, work: Workspace) -> None:
        self.work = work

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in str(error)):
            raise DataError(
                f"{io.shown_path(self.work.root)}: the disk is full; nothing was written to {self.work.shown}. "
                "Preparation needs room for about a quarter of the raw text there, and for the data set"
            ) from None


def prepare_tables(tables: Tables, out: str, split_rule: SplitRule, *, shards: int | None = None, log: Log = no_log) -> DatasetInfo:
    """Write tables that were made by a generator, or find that they are there already; raises as `write_dataset`."""
    made_from = {**tables.source, "split": asdict(effective(split_rule)), "shards": shards}
    made_from["fingerprint"] = fingerprint(made_from)
    if (there := existing_dataset(out, made_from)) is not None:
        log(f"{out}: is there already, made from the same options; nothing to do")
        return there
    return write_dataset(replace(tables, source=made_from), out, split_rule, shards=shards)


def fingerprint(made_from: dict[str, Any]) -> str:
    """Return the SHA-256 of what a data set is made from: input checksums and options."""
    value = {**made_from, "format_version": FORMAT_VERSION}
    value.pop("fingerprint", None)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def existing_dataset(out: str, made_from: dict[str, Any]) -> DatasetInfo | None:
    """Return the data set in `out` if it was made from the same input and options, None if nothing is there.

    Raises:
        DataError: `out` holds another data set, a damaged one, or something else.
    """
    check_output(out)
    if not io.exists(io.join(out, "dataset.json")):
        return None
    info = read_dataset_info(out)
    if info.source.get("fingerprint") != made_from["fingerprint"]:
        differs = [key for key in made_from if key != "fingerprint" and info.source.get(key) != made_from[key]]
        raise DataError(
            f"{out}: holds a data set made from something else (differs in: {', '.join(differs) or 'options'}); "
            "name a new folder or remove it"
        )
    for path, entry in info.files.items():
        uri = io.join(out, path)
        if not io.exists(uri) or _size(uri) != entry.bytes:
            raise DataError(f"{uri}: is missing or changed since the data set was made; remove {out} and prepare it again")
    return info


def check_output(out: str) -> None:
    """Check that a data set can be written to a place, or is there, before any work for it.

    Raises:
        DataError: a local place is a file, a link to nothing, or a folder that holds something else.
    """
    if io.is_local(out) and (folder := io.output_folder(out)).exists() and not (folder / "dataset.json").exists() and any(folder.iterdir()):
        raise DataError(f"{out}: is there already and is no data set; name a new folder or remove it")


def _size(uri: str) -> int:
    filesystem, path = io.filesystem_of(uri)
    return int(filesystem.size(path))


def _stamp(uri: str) -> str:
    """Return a file's version on its store: its etag, or when it was last changed."""
    filesystem, path = io.filesystem_of(uri)
    info = filesystem.info(path)
    return str(info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created") or "")


def write_dataset(tables: Tables, out: str, split_rule: SplitRule, *, shards: int | None = None) -> DatasetInfo:
    """Split, shard and write tables as a data set folder; equal tables give equal bytes.

    Local folders appear whole or not at all; on a store `dataset.json` comes last.

    Raises:
        DataError: the tables cannot make a data set, or a local `out` is there already and not empty.
    """
    _check(tables)
    source = TablesSource(tables)
    if io.is_local(out):
        with atomic_folder(io.output_folder(out), last="dataset.json") as folder:
            return write_dataset_files(folder, source, effective(split_rule), shards)
    with tempfile.TemporaryDirectory() as name:
        info = write_dataset_files(Path(name), source, effective(split_rule), shards)
        copy_folder(Path(name), out, last="dataset.json")
    return info


def _check_names(data: ShardSource) -> None:
    """Raise DataError where tasks cannot have their names, or have one class only."""
    names = [data.next_task, *(task.name for task in data.tasks)]
    for name in names:
        try:
            same = clean_name(name) == name
        except ValueError as error:
            raise DataError(f"data set '{data.name}': {error}") from None
        if not same:
            raise DataError(f"data set '{data.name}': the task's name '{name}' is not in Unicode's composed form (NFC)")
    if len(set(names)) != len(names):
        raise DataError(f"data set '{data.name}': two tasks have one name ({', '.join(names)})")
    for task in data.tasks:
        if len(task.classes) < 2:
            raise DataError(f"task '{task.name}': expected two labels or more, got {len(task.classes)}")


def _check(tables: Tables) -> None:
    """Raise DataError where tables cannot make a data set."""
    sequences = tables.sequences
    lengths = np.diff(sequences.offsets)
    if len(sequences.user_ids) == 0:
        raise DataError(f"data set '{tables.name}': has no users")
    if len(set(sequences.user_ids)) != len(sequences.user_ids):
        raise DataError(f"data set '{tables.name}': a user id stands there more than once")
    if (lengths < 1).any():
        raise DataError(f"user '{sequences.user_ids[int(lengths.argmin())]}': has no history")
    if len(sequences.values) and not -1 <= int(sequences.values.min()) <= int(sequences.values.max()) < len(tables.items):
        raise DataError(f"data set '{tables.name}': an item lies outside of the catalogue of {len(tables.items)}")
    for column, values in tables.feature_values():
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= len(column.names):
            raise DataError(f"data set '{tables.name}': a value of feature '{column.name}' lies outside of its {len(column.names)}")
    _check_names(TablesSource(tables))
    for table in tables.labels:
        if len(table.values) and not 0 <= int(table.values.min()) <= int(table.values.max()) < len(table.classes):
            raise DataError(f"task '{table.name}': a label lies outside of its {len(table.classes)} classes")
        if (np.diff(table.offsets) < 1).any() or (np.diff(table.users) < 1).any():
            raise DataError(f"task '{table.name}': users must ascend and have a label each")
