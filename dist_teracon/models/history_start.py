"""What the numbers of whole histories (`history_features.py`) are standardised by, and the SVD's factors: from training users alone.

Legend: N items of all sequences, U users.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.batches import PackedBatch, PackedRows, concatenate, take_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.schema import Split, Task
from dist_teracon.data.user_svd import UserSvd
from dist_teracon.errors import DataError
from dist_teracon.hashing import mix64, stable_hash
from dist_teracon.models.history_features import HistoryFeatures, HistoryStart, settings_of

# Events held at a time, about 20 bytes each in the SVD's matrix; users beyond that are left out by a hash, whatever the number of ranks.
EVENTS = 1 << 24
_ROWS_AT_ONCE = 4096


def history_start(dataset: Dataset, task: Task, model: ModelConfig, *, seed: int) -> HistoryStart:
    """Return what follows from the histories of a first task's training users; the same on one machine for equal arguments.

    Args:
        dataset: The data set, which reads what the features read.
        task: The first task of a run.
        model: With `history_features`.
        seed: Of the randomised SVD, and of the choice of users where there are too many.

    Raises:
        DataError: no user is trained on.
        TeraconError: scikit-learn is not installed, for `svd`.
    """
    rows = training_rows(dataset, task, seed=seed)
    if not rows.rows:
        raise DataError(f"data set '{dataset.info.name}': task '{task.name}' has no user to train on, from whom histories' features follow")
    factors = None
    if "svd" in model.history_features:
        found = UserSvd.fit(rows.values, rows.offsets, items=dataset.info.items, dimension=model.history_svd, seed=seed)
        factors = torch.zeros(dataset.info.items, 1 + model.history_svd)
        factors[:, 0] = torch.from_numpy(found.weights)
        factors[:, 1 : 1 + len(found.directions)] = torch.from_numpy(np.ascontiguousarray(found.directions.T * found.weights[:, None]))
    numbers = HistoryFeatures(**settings_of(model), num_items=dataset.info.items, start=_plain(model, dataset.info.items, factors))
    total = torch.zeros(3, numbers.width, dtype=torch.float64)  # how many are known, their sum, the sum of their squares
    for first in range(0, rows.rows, _ROWS_AT_ONCE):
        raw = numbers.raw(_packed(rows.between(first, first + _ROWS_AT_ONCE)).sequences, positions="last").double()
        known = ~raw.isnan()
        raw = raw.nan_to_num(nan=0.0)
        total += torch.stack([known.double().sum(0), raw.sum(0), raw.square().sum(0)])
    count = total[0].clamp_min(1)
    mean = total[1] / count
    spread = (total[2] / count - mean.square()).clamp_min(0).sqrt()
    # what is the same for all tells nothing, and where numbers hardly differ it is by rounding
    scale = torch.where(spread > 1e-6 * mean.abs().clamp_min(1.0), 1 / spread.clamp_min(1e-12), 0.0)
    return HistoryStart(mean.float(), scale.float(), factors)


def _plain(model: ModelConfig, items: int, factors: Tensor | None) -> HistoryStart:
    return HistoryFeatures(**settings_of(model), num_items=0).unknown_start(items, factors)


def _packed(rows: PackedRows) -> PackedBatch:
    tasks = torch.zeros(rows.rows, dtype=torch.int32)
    return PackedBatch(torch.from_numpy(rows.values), torch.from_numpy(rows.offsets), tasks, "last").with_beside(rows)


def training_rows(dataset: Dataset, task: Task, *, seed: int) -> PackedRows:
    """Return the histories of a task's training users without what the first task is validated and tested on, shard by shard."""
    behind = dataset.info.split.behind(Split.TRAIN)
    picked = [(dataset.shard(shard), dataset.labels(task.name, shard).of(Split.TRAIN).users) for shard in range(dataset.info.shards)]
    if behind:
        picked = [(data, users[data.offsets[users + 1] - data.offsets[users] > behind]) for data, users in picked]
    events = sum(int((data.offsets[users + 1] - data.offsets[users]).sum()) for data, users in picked)
    share, kept = min(1.0, EVENTS / max(1, events)), []
    for data, users in picked:
        place = (mix64(data.user_hash[users], key=stable_hash(f"history-features:{seed}")) >> np.uint64(11)).astype(np.float64) / 2.0**53
        chosen = users[place < share] if share < 1 else users
        kept.append(take_rows(data.values, data.offsets, chosen, without_last=behind, columns=data.columns))
    rows = concatenate(kept)
    if dataset.moments is None:
        return rows
    return replace(rows, moments=np.full(rows.rows, dataset.moments.of(task, Split.TRAIN), dtype=np.int64))
