"""Preparation on a Ray cluster: the same steps as on one machine, each a Ray Data pass over its pieces.

    files       -> spilled rows by partition, in the staging folder
    partitions  -> what each holds, added up by the driver into vocabularies
    groups      -> shards, written where the data set grows; under `split: rows` one more pass before it, for the examples' keys

A piece's result is a row of Ray Data's, of some kilobytes; rows of users travel through the staging folder, which lies beside the data
set and must be seen by all nodes: a shared disk, or the store itself. What is written equals that of one machine byte for byte, as
shards, vocabularies and order follow from the users alone. Every pass checks that each piece came back once, and the last one that
users and examples are as many as were read.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from fsspec.core import url_to_fs

from dist_teracon import io
from dist_teracon.data.prepare.writer import ShardStats, Splitter, default_shards, joined_keys, row_split_keys, write_group, write_metadata
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.schema import DatasetInfo, SplitRule
from dist_teracon.data.shard_source import ShardSource
from dist_teracon.data.streaming.source import SEQUENCES, PartitionCounts, SequenceSource, TaskFiles, labels_kind, spill_file
from dist_teracon.data.streaming.spill import Partitioning, Spill
from dist_teracon.errors import DataError

R = TypeVar("R")
_REJECTED = "rejected.jsonl"
_FAILED = "--cluster: a worker failed"


@dataclass(frozen=True)
class _Piece:
    """One file of a task, and what its reading left: its folder in the staging place, and its rows' place among the task's."""

    number: int
    task: int
    uri: str
    folder: str
    row: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Read:
    """What came of reading a piece."""

    kept: int
    fields: int
    files: tuple[str, ...]
    sha256: str
    bad: dict[str, int]
    rejected: str
    error: str | None = None


@dataclass(frozen=True)
class _Staged:
    """Spilled rows of all pieces; see `ReadSpill`."""

    pieces: tuple[_Piece, ...]

    def __call__(self, kind: str, partitions: list[int]) -> Any:
        tables = []
        for partition in partitions:
            name = f"{kind}-{partition:03d}.arrow"
            for piece in self.pieces:
                if name in piece.files:
                    table = pa.ipc.open_stream(io.read_bytes(io.join(piece.folder, name))).read_all()
                    rows = pa.compute.add(table.column("row"), piece.row)  # counted from the task's first file on
                    tables.append(table.set_column(table.column_names.index("row"), "row", rows))
        return pa.concat_tables(tables) if tables else None


@dataclass
class Cluster:
    """A Ray cluster at work on one data set.

    Attributes:
        staging: URI of a folder that all nodes see.
        kept: Rows by task, to be compared with what is written.
    """

    staging: str
    kept: dict[int, int] = field(default_factory=dict)

    def spill(self, tasks: Sequence[TaskFiles], context: ReadContext, partitioning: Partitioning) -> tuple[int, _Staged]:
        """Read every task's files, each on a worker; returns the widest row's fields, and a reader of what was spilled.

        Raises:
            DataError: as `spill_rows`; of several files the error of the first that is wrong.
        """
        listed = [(number, uri) for number, task in enumerate(tasks) for uri in task.uris]
        pieces = [_Piece(n, task, uri, io.join(self.staging, f"piece-{n:05d}")) for n, (task, uri) in enumerate(listed)]
        limit, root, block, here = context.bad.limit, context.bad.root, context.block, Path.cwd()

        def read(piece: _Piece) -> _Read:
            # a relative path is the driver's, and a worker may run in another folder
            with chdir(here) if io.is_local(piece.uri) and here.is_dir() else nullcontext():
                return _read_piece(piece, partitioning, limit=limit, root=root, block=block)

        results = _on_ray(read, pieces, lambda done: context.progress.update("reading", done, len(pieces)))
        for piece, result in zip(pieces, results, strict=True):
            if result.error is not None:
                raise DataError(result.error)
            context.sha256[piece.uri] = result.sha256
            context.bad.merge(result.bad, result.rejected)
        placed = []
        for piece, result in zip(pieces, results, strict=True):
            before = self.kept.get(piece.task, 0)
            placed.append(_Piece(piece.number, piece.task, piece.uri, piece.folder, before, result.files))
            self.kept[piece.task] = before + result.kept
        return max(result.fields for result in results), _Staged(tuple(placed))

    def counted(self, source: SequenceSource) -> list[PartitionCounts]:
        """Count every partition on the workers."""
        return _on_ray(source.count, range(source.partitioning.partitions))

    def write_dataset_files(
        self, folder: Path, out: str, source: ShardSource, rule: SplitRule, shards: int | None, *, advance: Callable[[int, int], None]
    ) -> DatasetInfo:
        """Write a data set as `writer.write_dataset_files` does: the shards by workers, vocabularies and `dataset.json` here.

        Args:
            folder: Where the data set grows; all nodes see it if `out` is local.
            out: Folder or URI of the data set; on a store workers write to it directly.
            source: What is written.
            rule: The split.
            shards: Their number; by the number of users where None.
            advance: Called with how many groups of how many are written.

        Raises:
            DataError: a task has no example in one of the parts, or counts differ from what was read.
        """
        hashes = source.user_hashes()
        count = shards or default_shards(len(hashes))
        groups = source.shard_groups(count)
        keys = {} if rule.by == "users" else joined_keys(_on_ray(lambda group: row_split_keys(source, rule, group, count), groups))
        splitter = Splitter.of(rule, hashes, keys)
        target = str(folder.absolute()) if io.is_local(out) else out

        def write(group: Any) -> ShardStats:
            written = ShardStats.zero(source)
            with tempfile.TemporaryDirectory() as name:
                for part in write_group(Path(name), source, splitter, group, count):
                    written.add(part)
                copy_folder(Path(name), target)
            return written

        written = ShardStats.zero(source)
        for part in _on_ray(write, groups, lambda done: advance(done, len(groups))):
            written.add(part)
        self._check(source, written, users=len(hashes))
        return write_metadata(folder, source, rule, count, written)

    def _check(self, source: ShardSource, written: ShardStats, *, users: int) -> None:
        names = [source.next_task, *(task.name for task in source.tasks)]
        found = {"users": written.users} | {f"rows of '{name}'": n for name, n in zip(names[1:], written.users_of_task[1:], strict=True)}
        expected = {"users": users} | {f"rows of '{name}'": self.kept[place] for place, name in enumerate(names) if place}
        differ = [f"{found[what]} {what} written, {expected[what]} read" for what in found if found[what] != expected[what]]
        if differ:
            raise DataError(f"the cluster's parts do not add up: {'; '.join(differ)}; nothing was published, prepare the data set again")

    def clear(self) -> None:
        """Remove the staging folder."""
        filesystem, path = url_to_fs(self.staging)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def _read_piece(piece: _Piece, partitioning: Partitioning, *, limit: float, root: str, block: int) -> _Read:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = ReadContext(BadRows(limit, folder / _REJECTED, root), folder / "spill", block=block)
        context.spill.mkdir()
        sequences = Spill(context.spill, SEQUENCES, partitioning)
        labels = Spill(context.spill, labels_kind(piece.task), partitioning) if piece.task else None
        try:
            kept, fields = spill_file(piece.uri, piece.task, context, sequences, labels)
        except DataError as error:
            return _Read(0, 0, (), "", {}, "", str(error))
        for spilled in (sequences, labels):
            if spilled is not None:
                spilled.close()
        context.bad.close()
        rejected = folder / _REJECTED
        copy_folder(context.spill, piece.folder)
        files = tuple(sorted(path.name for path in context.spill.iterdir()))
        text = rejected.read_text(encoding="utf-8") if rejected.exists() else ""
        return _Read(kept, fields, files, context.sha256[piece.uri], context.bad.counts, text)


def copy_folder(folder: Path, target: str) -> None:
    """Copy a local folder's files to a folder or URI; a local file appears whole or not at all."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if io.is_local(target):
            with io.atomic_write(io.local_path(target) / name) as file, path.open("rb") as source:
                shutil.copyfileobj(source, file)
        else:
            io.put(path, io.join(target, name))


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Be connected to the cluster of `RAY_ADDRESS` or of a Ray job; without one, to Ray processes of one's own on this machine.

    Raises:
        DataError: the cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except ConnectionError as error:
        raise DataError(f"--cluster: Ray at RAY_ADDRESS does not answer ({error}); start it, or unset RAY_ADDRESS") from None
    try:
        yield
    finally:
        ray.shutdown()


def _on_ray(work: Callable[[Any], R], pieces: Sequence[Any], done: Callable[[int], None] = lambda _: None) -> list[R]:
    """Return `work` of each piece in the pieces' order, done by the cluster's workers.

    Raises:
        DataError: a worker's error that is a user's, or a piece that did not come back once.
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    shared = ray.put((work, list(pieces)))  # once a cluster, not once a piece

    def one(row: dict[str, Any]) -> dict[str, Any]:
        work, pieces = ray.get(shared)
        # between this program's own processes, in a form that Arrow does not look into
        try:
            return {"number": row["number"], "error": "", "result": pickle.dumps(work(pieces[row["number"]]))}
        except DataError as error:
            return {"number": row["number"], "error": str(error), "result": b""}
        except Exception as error:  # whatever it is, the driver reports it in one line
            text = f"{_FAILED} ({type(error).__name__}: {error}); do all nodes see the raw files and the data set's folder?"
            return {"number": row["number"], "error": text, "result": b""}

    numbers = ray.data.from_items([{"number": number} for number in range(len(pieces))], override_num_blocks=max(1, len(pieces)))
    found: dict[int, R] = {}
    errors: dict[int, str] = {}
    times = 0
    try:
        for row in numbers.map(one).iter_rows():
            times += 1
            if row["error"]:
                errors[row["number"]] = row["error"]
            else:
                found[row["number"]] = pickle.loads(row["result"])
            done(times)
    except ray.exceptions.RayError as error:
        raise DataError(f"{_FAILED} ({type(error).__name__}); was it stopped, or out of memory? see the cluster's logs") from None
    if errors:
        raise DataError(errors[min(errors)])
    if times != len(pieces) or len(found) != len(pieces):
        raise DataError(f"--cluster: {times} results came back for {len(pieces)} pieces of work; prepare the data set again")
    return [found[number] for number in range(len(pieces))]
