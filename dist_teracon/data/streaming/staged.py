"""Spilled rows of many files, each file read by one of several workers: they lie in a staging folder that all workers see."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dist_teracon import io
from dist_teracon.atomic import copy_folder
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.context import ReadContext, Workers
from dist_teracon.data.streaming.source import SEQUENCES, TaskFiles, check_rows, labels_kind, spill_file
from dist_teracon.data.streaming.spill import Partitioning, Spill, spill_name
from dist_teracon.errors import DataError

_REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class _Piece:
    """One file of a task, and what its reading left: its folder in the staging place, and its rows' place among the task's.

    `alone` is whether the task has no other file.
    """

    task: int
    uri: str
    folder: str
    alone: bool = True
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
class StagedRows:
    """Spilled rows of all pieces; a `ReadSpill`."""

    pieces: tuple[_Piece, ...]

    def __call__(self, kind: str, partitions: list[int]) -> Any:
        tables = []
        for partition in partitions:
            name = spill_name(kind, partition)
            for piece in self.pieces:
                if name in piece.files:
                    table = pa.ipc.open_stream(io.read_bytes(io.join(piece.folder, name))).read_all()
                    rows = pa.compute.add(table.column("row"), piece.row)  # counted from the task's first file on
                    tables.append(table.set_column(table.column_names.index("row"), "row", rows))
        return pa.concat_tables(tables) if tables else None


def spill_on_workers(
    workers: Workers, tasks: Sequence[TaskFiles], context: ReadContext, partitioning: Partitioning
) -> tuple[int, StagedRows]:
    """Read every task's files as `spill_rows` does, each on a worker; `context.kept_rows` then holds the rows by task.

    Returns:
        The widest row's fields, and a reader of what was spilled.

    Raises:
        DataError: as `spill_rows`; of several files the error of the first that is wrong.
    """
    listed = [(number, uri) for number, task in enumerate(tasks) for uri in task.uris]
    pieces = [
        _Piece(task, uri, io.join(workers.staging, f"piece-{number:05d}"), alone=len(tasks[task].uris) == 1)
        for number, (task, uri) in enumerate(listed)
    ]
    limit, root, block, here = context.bad.limit, context.bad.root, context.block, Path.cwd()

    def read(piece: _Piece) -> _Read:
        # a relative path is the driver's, and a worker may run in another folder
        with chdir(here) if io.is_local(piece.uri) and here.is_dir() else nullcontext():
            return _read_piece(piece, partitioning, limit=limit, root=root, block=block)

    results = workers.map(read, pieces, done=lambda count: context.progress.update("reading", count, len(pieces)))
    for piece, result in zip(pieces, results, strict=True):
        if result.error is not None:
            raise DataError(result.error)
        context.sha256[piece.uri] = result.sha256
        context.bad.merge(result.bad, result.rejected)
    placed = []
    for piece, result in zip(pieces, results, strict=True):
        task = tasks[piece.task].name
        before = context.kept_rows.get(task, 0)
        placed.append(replace(piece, row=before, files=result.files))
        context.kept_rows[task] = before + result.kept
    for each in tasks:
        check_rows(each, context.kept_rows.get(each.name, 0))
    return max(result.fields for result in results), StagedRows(tuple(placed))


def _read_piece(piece: _Piece, partitioning: Partitioning, *, limit: float, root: str, block: int) -> _Read:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = ReadContext(BadRows(limit, folder / _REJECTED, root), folder / "spill", block=block)
        context.spill.mkdir()
        sequences = Spill(context.spill, SEQUENCES, partitioning)
        labels = Spill(context.spill, labels_kind(piece.task), partitioning) if piece.task else None
        try:
            kept, fields = spill_file(piece.uri, piece.task, context, sequences, labels, alone=piece.alone)
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
