"""A finished run grows by a task: what it was begun with is renewed, and item tables get rows for new items.

`additions.json` in the run's folder lists what was added; a stage's `items` says how many rows its tables have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.config import RunConfig
from dist_teracon.config_io import dump_config
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.batches import take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import ItemVectors, read_item_vectors
from dist_teracon.data.prepare.versions import ancestors
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, DatasetInfo, Split, info_from_json
from dist_teracon.errors import ConfigError, RunError, TeraconError
from dist_teracon.runtime import Runtime
from dist_teracon.train.run_folder import StageFolder

NewItems = Literal["unseen", "neighbours", "text"]

# A backbone's item table ends so among a method's tensors.
_TABLE = "backbone.items"
# Weight of the penalty in the map from given vectors to a table's rows, as a share of the vectors' mean square.
_RIDGE = 1e-2


@dataclass(frozen=True)
class AddedTask:
    """A task to add to a finished run.

    Attributes:
        name: The task's name.
        new_items: What rows of new items start as: copies of the unseen item's, so that nothing changes before training; or the mean of
            the known items beside them in the training users' sequences; or (`text`) follow from given vectors.
        vectors: For `text`, a file of item vectors (`read_item_vectors`).
    """

    name: str
    new_items: NewItems = "unseen"
    vectors: str | None = None

    def __post_init__(self) -> None:
        """Check that vectors are given where they are wanted, and only there."""
        if (self.new_items == "text") != (self.vectors is not None):
            raise ConfigError("--new-items text and --item-vectors FILE go together: a Parquet file with the columns item and vector")


def with_added_task(config: RunConfig, added: AddedTask, folder: Path) -> RunConfig:
    """Return the configuration of the run with the task at its end.

    Raises:
        RunError: there is no run to add to, or it was run with other settings.
    """
    written = folder / "config.yaml"
    if not written.exists():
        raise RunError(f"{folder}: is no run yet, so no task can be added to it; train it first without --add-task")
    before = RunConfig.model_validate(yaml.safe_load(written.read_text(encoding="utf-8")))
    tasks = before.tasks or tuple(task["name"] for task in io.read_json(str(folder / "dataset.json"))["tasks"])
    if added.name in tasks and not any(entry["task"] == added.name for entry in additions(folder)):
        raise RunError(f"{folder}: has learned '{added.name}' already ({', '.join(tasks)})")
    if added.name in tasks and tasks[-1] != added.name:
        raise RunError(f"{folder}: '{added.name}' was added before {tasks[-1]}; only the last addition can be gone on with")
    return config.model_copy(update={"tasks": tasks if added.name in tasks else (*tasks, added.name)})


def additions(folder: Path) -> list[dict[str, Any]]:
    """Return what was added to a run, in order."""
    path = folder / "additions.json"
    listed: list[dict[str, Any]] = io.read_json(str(path)) if path.exists() else []
    return listed


def claim_addition(folder: Path, config: RunConfig, dataset: Dataset, added: AddedTask) -> str:
    """Turn a finished run's folder into one with the task at its end; returns what is wrong, or nothing. Does nothing twice."""
    assert config.tasks is not None
    info = dataset.info
    was = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    ours, theirs = (value.model_dump(mode="json", exclude={"dataset", "tasks"}) for value in (config, was))
    if differing := [name for name, value in ours.items() if value != theirs[name]]:
        return f"{folder}: was run with other settings (they differ in: {', '.join(differing)}); a task is added with the run's own"
    listed = additions(folder)
    if listed and listed[-1]["task"] == added.name:
        if problem := _begun_otherwise(folder, listed[-1], config, info, added):
            return problem
    else:
        before = io.read_json(str(folder / "dataset.json"))
        unfinished = [task for number, task in enumerate(config.tasks[:-1]) if not StageFolder(folder, number, task).finished]
        if unfinished:
            return f"{folder}: stage '{unfinished[0]}' is not finished; finish the run without --add-task first"
        if problem := _not_a_descendant(folder, before, info):
            return problem
        entry = {"task": added.name, "new_items": added.new_items, "items": [before["items"], info.items], "dataset": info.fingerprint}
        if added.vectors is not None:
            if problem := _unfit_vectors(added.vectors, dataset, known=before["items"], channels=config.model.channels):
                return problem
            entry["vectors"] = io.sha256(added.vectors)
        # first of all, so that a run killed here goes on with the same command
        io.write_json(folder / "additions.json", [*listed, entry])
    io.write_json(folder / "dataset.json", info.to_json())
    with io.atomic_write(folder / "config.yaml") as file:
        file.write(dump_config(config).encode())
    return ""


def _begun_otherwise(folder: Path, entry: dict[str, Any], config: RunConfig, info: DatasetInfo, added: AddedTask) -> str:
    if entry["new_items"] != added.new_items:
        return f"{folder}: '{added.name}' was added with --new-items {entry['new_items']}; use that again"
    if added.vectors is not None and not io.exists(added.vectors):
        return f"{added.vectors}: no such file; '{added.name}' was added with the vectors that it held"
    if added.vectors is not None and entry["vectors"] != io.sha256(added.vectors):
        return f"{folder}: '{added.name}' was added with other vectors than {added.vectors} holds; use that file again"
    if entry["dataset"] != info.fingerprint:
        return f"{folder}: '{added.name}' was added from another data set than {config.dataset}; use that one again"
    return ""


def _unfit_vectors(uri: str, dataset: Dataset, *, known: int, channels: int) -> str:
    try:
        _mapping_of(read_item_vectors(uri, dataset), known, channels=channels, uri=uri)
    except TeraconError as error:
        return str(error)
    return ""


def _not_a_descendant(folder: Path, before: dict[str, Any], info: DatasetInfo) -> str:
    if before == json.loads(json.dumps(info.to_json())):
        return ""
    if info_from_json(before).fingerprint in ancestors(info):
        return ""
    return (
        f"{folder}: the data set is neither the one of this run nor a version of it; make one with "
        "`dist-teracon prepare … --append` on the run's own data set"
    )


def grown_tensors(
    tensors: dict[str, Tensor], dataset: Dataset, *, task: str, new_items: NewItems, runtime: Runtime, vectors: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give item tables the rows that the data set's new items need.

    Args:
        tensors: A finished stage's.
        dataset: The version that the next stage learns from.
        task: The task that it learns.
        new_items: What the new rows start as.
        runtime: This process's place; ranks count in their own shards.
        vectors: For `text`, the file of given vectors.

    Returns:
        The tensors, and what was done, for the stage's state.

    Raises:
        TeraconError: the given vectors cannot be read or used.
    """
    tables = {name: value for name, value in tensors.items() if name == _TABLE or name.endswith(f".{_TABLE}")}
    known = min(value.shape[0] for value in tables.values()) if tables else dataset.info.items
    report: dict[str, Any] = {"items_before": known, "items": dataset.info.items, "new_items": new_items, "started": 0}
    fresh = dataset.info.items - known
    if not fresh:
        return tensors, report
    start = _Unseen()
    if new_items == "neighbours":
        start = _Neighbours(*_neighbours(dataset, task, known, runtime))
    elif new_items == "text":
        if vectors is None:
            raise RunError(f"'{task}' was added with --new-items text: name the file of vectors again, by --item-vectors")
        channels = next(iter(tables.values())).shape[1]
        start = _mapping_of(read_item_vectors(vectors, dataset), known, channels=channels, uri=vectors)
    grown = dict(tensors)
    for name, table in tables.items():
        rows, told = start.rows(table, fresh)
        report |= told
        grown[name] = torch.cat([table, rows.to(table.dtype)])
    return grown, report


def growth_lines(told: dict[str, Any]) -> list[str]:
    """Tell a person what `grown_tensors` did."""
    fresh, started = told["items"] - told["items_before"], told["started"]
    if not fresh:
        return []
    ways = {"neighbours": f"{started} start as the mean of their neighbours, ", "text": f"{started} start from given vectors, "}
    lines = [f"{fresh} new items: {ways.get(told['new_items'], '')}{fresh - started} as the unseen item"]
    if "explained" in told:
        lines.append(
            f"a linear map from {told['mapped_from']} known items' vectors explains {told['explained']:.0%} of their rows' variance"
        )
    return lines


class _Unseen:
    """New rows are copies of the unseen item's."""

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the rows of `fresh` new items [fresh, C], and what is told of them: how many `started` as other than unseen."""
        return table[UNSEEN_ITEM].repeat(fresh, 1), {}


@dataclass(frozen=True)
class _Neighbours(_Unseen):
    """New rows are means of known rows: of each new item `new` (from 0), the known ones `beside` it, each so many `times`."""

    new: NDArray[np.int64]
    beside: NDArray[np.int64]
    times: NDArray[np.int64]

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        new, beside, times = (torch.from_numpy(part) for part in (self.new, self.beside, self.times))
        sums = torch.zeros(fresh, table.shape[1], dtype=torch.float64)
        sums.index_add_(0, new, table[beside].double() * times[:, None])
        total = torch.zeros(fresh, dtype=torch.float64).index_add_(0, new, times.double())
        rows = torch.where(total[:, None] > 0, sums / total.clamp_min(1)[:, None], table[UNSEEN_ITEM].double())
        return rows, {"started": int((total > 0).sum())}


@dataclass(frozen=True)
class _Mapped(_Unseen):
    """New rows follow from given vectors: as they are, or by a linear map that is fitted on the known items with vectors.

    Attributes:
        given: The vectors.
        known: Items from here on are new.
    """

    given: ItemVectors
    known: int

    def rows(self, table: Tensor, fresh: int) -> tuple[Tensor, dict[str, Any]]:
        vectors, items = torch.from_numpy(self.given.vectors).double(), torch.from_numpy(self.given.items)
        old, new = items < self.known, items >= self.known
        told: dict[str, Any] = {"started": int(new.sum()), "mapped_from": int(old.sum()), "given_unknown": self.given.unknown}
        wanted = vectors[new]
        if bool(old.any()):
            wanted, explained = _linear_map(vectors[old], table[items[old]].double(), wanted)
            told["explained"] = round(explained, 4)
        rows = table[UNSEEN_ITEM].double().repeat(fresh, 1)
        rows[items[new] - self.known] = wanted
        return rows, told


def _mapping_of(given: ItemVectors, known: int, *, channels: int, uri: str) -> _Mapped:
    """Check that given vectors serve the items from `known` on.

    Raises:
        RunError: none of them has a vector; or no known item has one, so that no map can be fitted, and the width is not the table's.
    """
    if not (given.items >= known).any():
        raise RunError(
            f"{uri}: has no vector of a new item ({given.items.size} of known ones, {given.unknown} of items not in the data set)"
        )
    if not (given.items < known).any() and given.vectors.shape[1] != channels:
        raise RunError(
            f"{uri}: vectors are {given.vectors.shape[1]} wide and the model {channels}, and no known item has one from which a map "
            "could be fitted; add the known items' vectors to the file"
        )
    return _Mapped(given, known)


def _linear_map(x_old: Tensor, y_old: Tensor, x_new: Tensor) -> tuple[Tensor, float]:
    """Ridge regression with intercept from given vectors to rows; returns the new rows and the share of variance that it explains."""
    x_mean, y_mean = x_old.mean(0), y_old.mean(0)
    x, y = x_old - x_mean, y_old - y_mean
    square = x.T @ x
    penalty = _RIDGE * square.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    weights = torch.linalg.solve(square + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    left, whole = (y - x @ weights).square().sum(), y.square().sum()
    return (x_new - x_mean) @ weights + y_mean, float(1 - left / whole) if whole > 0 else 0.0


def _neighbours(
    dataset: Dataset, task: str, known: int, runtime: Runtime
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a new item (counted from 0) and a known one beside it in a training user's sequence, and how often, each pair once."""
    found = []
    for shard in own_shards(dataset.info.shards, runtime.rank, runtime.world_size):
        data = dataset.shard(shard)
        rows = take_rows(data.values, data.offsets, dataset.labels(task, shard).of(Split.TRAIN).users)
        inside = np.ones(max(0, rows.values.shape[0] - 1), dtype=bool)
        inside[rows.offsets[1:-1] - 1] = False  # the last of one user and the first of the next are no neighbours
        left, right = rows.values[:-1][inside].astype(np.int64), rows.values[1:][inside].astype(np.int64)
        for one, other in ((left, right), (right, left)):
            kept = (one >= known) & (other < known) & (other >= FIRST_ITEM)
            found.append((one[kept] - known) * known + other[kept])
    pairs, times = np.unique(np.concatenate([np.concatenate(found)] if found else [np.zeros(0, np.int64)]), return_counts=True)
    told = runtime.gather((pairs, times))
    keys, places = np.unique(np.concatenate([part for part, _ in told]), return_inverse=True)
    counted = np.zeros(keys.shape[0], dtype=np.int64)
    np.add.at(counted, places, np.concatenate([part for _, part in told]))
    return keys // known, keys % known, counted
