"""Any data set in the numbering of a model: items and labels by their names, what the model does not know set apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.data import ragged
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.dataset import Dataset, Labels, Ragged, Shard, label_of_name
from dist_teracon.data.input_features import MISSING, InputFeatures
from dist_teracon.data.prepare.padding import PADDING, left_padded, padded_columns
from dist_teracon.data.prepare.versions import ancestors
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, DatasetInfo, Task
from dist_teracon.errors import DataError
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.vocabulary import Vocabulary
from dist_teracon.models.backbone import columns_read
from dist_teracon.models.heads import Head


def are_versions(one: DatasetInfo, other: DatasetInfo) -> bool:
    """Return whether two data sets are the same or versions of one, so that items and labels have one numbering."""
    return one.fingerprint == other.fingerprint or one.fingerprint in ancestors(other) or other.fingerprint in ancestors(one)


def item_map(model: PretrainedModel, dataset: Dataset) -> NDArray[np.int32]:
    """Return the model's index of each of a data set's items, int32 [items]; the unseen item for those that it does not know."""
    if are_versions(model.info, dataset.info):
        own = np.arange(dataset.info.items, dtype=np.int32)
    else:
        own = model.items.indices(dataset.vocabulary("items")["item"].combine_chunks()).astype(np.int32)
        own[:FIRST_ITEM] = np.arange(FIRST_ITEM)
    return np.where((own < 0) | (own >= model.num_items), np.int32(UNSEEN_ITEM), own).astype(np.int32)


def read_event_columns(model: PretrainedModel, dataset: Dataset) -> None:
    """Let a data set read of events and of users' features what the model reads, and nothing else.

    Raises:
        DataError: it does not have it, or cuts a number into other bins.
    """
    for feature in model.inputs.user:
        own = next((one for one in dataset.info.inputs.user if one.name == feature.name), None)
        if own is None:
            raise DataError(
                f"{dataset.uri}: has no feature '{feature.name}' of users, which the model reads (model.input_features); prepare it with "
                f"inputs.user: [{feature.name}] in the recipe"
            )
        if own.edges != feature.edges:
            raise DataError(
                f"{dataset.uri}: cuts '{feature.name}' at {list(own.edges)}, and the model reads bins cut at {list(feature.edges)}; "
                "prepare it with these edges as inputs.user.bins in the recipe"
            )
    dataset.read_inputs([feature.name for feature in model.inputs.user], closed=model.inputs.closed)
    if lacks := [name for name in model.event_columns if name not in dataset.info.history.names]:
        raise DataError(
            f"{dataset.uri}: keeps no {lacks[0]} of events, which the model reads ({columns_read(model.config.model)[lacks[0]]}); "
            f"prepare it with history.keep: [{lacks[0].removesuffix('s')}] in the recipe"
        )
    dataset.read_columns(model.event_columns)


def type_map(model: PretrainedModel, dataset: Dataset) -> NDArray[np.int32]:
    """Return the model's number of each of a data set's types of events, int32 [types]; the unknown type for those it does not know."""
    if not model.num_types:
        return np.zeros(dataset.info.history.types, dtype=np.int32)
    return model.reader.reads.numbers(pa.array(dataset.types(), pa.string()))


def feature_maps(model: PretrainedModel, dataset: Dataset) -> list[NDArray[np.int32]]:
    """Return for each feature of users that a model reads its number of each of a data set's values; missing for those not known."""
    maps = []
    for feature in model.inputs.user:
        if feature.edges:
            maps.append(np.arange(feature.values, dtype=np.int32))
        else:
            maps.append(model.feature_reader.numbers(feature, dataset.input_values(feature.name)))
    return maps


def padding_of(dataset: Dataset) -> int | None:
    """Return the index of the item that fills up a data set's sequences, None where they are not filled up."""
    if dataset.info.notes.get("padding") != "token":
        return None
    return int(pc.index(dataset.vocabulary("items")["item"], PADDING).as_py())


class MappedDataset(Dataset):
    """A data set read through another one, in a model's numbering.

    A label that the model does not know becomes one more, the last, which nothing was trained on: as a target it is a miss.

    Args:
        inner: The data set.
        model: The model.
    """

    def __init__(self, inner: Dataset, model: PretrainedModel) -> None:
        read_event_columns(model, inner)
        self.uri, self._inner, self._model = inner.uri, inner, model
        self._item_map = item_map(model, inner)
        self._versions = are_versions(model.info, inner.info)
        self._type_map = type_map(model, inner)
        self._feature_maps = feature_maps(model, inner)
        self.inputs_read, self.closed = InputFeatures(model.inputs.user), model.inputs.closed
        self._limit, self.moments = model.info.length_limit, None
        # the data set's own padding is taken off, and the model's put on
        self._own_padding = padding_of(inner)
        self._label_maps: dict[str, NDArray[np.int32]] = {}
        self._label_of_earlier = {}
        tasks = tuple(self._mapped_task(task) for task in inner.info.tasks if task.name in model.tasks)
        # the rules of histories and rankings are those that the model was trained by
        self.info = replace(inner.info, tasks=tasks, items=model.num_items, source=model.info.source, inputs=self.inputs_read)

    def shard(self, index: int) -> Shard:
        """Return a shard's users, their sequences cut to the model's length."""
        found = self._inner.shard(index)
        values, offsets, columns = found.values, found.offsets, found.columns
        if columns.types is not None:
            columns = replace(columns, types=self._type_map[columns.types])
        if self._own_padding is not None:
            columns = columns[values != self._own_padding]
            values, offsets = ragged.keep(values, offsets, values != self._own_padding)
        columns = columns.last(offsets, limit=self._limit)
        values, offsets = ragged.last(self._item_map[values], offsets, limit=self._limit)
        if (padding := self._model.reader.padding) is not None:
            columns = padded_columns(columns, offsets, length=self._limit)
            values, offsets = left_padded(values, offsets, length=self._limit, padding=padding)
        return replace(found, values=values, offsets=offsets, columns=columns, features=self._features(index))

    def earlier(self, index: int) -> Ragged | None:
        """Return the items that each of a shard's users took before the sequence, as `shard` cuts it, begins; as the data set has them."""
        found, shard = self._inner.earlier(index), self._inner.shard(index)
        values, offsets = shard.values, shard.offsets
        if self._own_padding is not None:
            values, offsets = ragged.keep(values, offsets, values != self._own_padding)
        cut = np.maximum(np.diff(offsets) - self._limit, 0)
        if cut.any():
            beyond = values[ragged.positions(offsets[:-1], cut)], ragged.offsets_of(cut)
            found = beyond if found is None else ragged.side_by_side(found, beyond)
        return found

    def earlier_of_model(self, index: int) -> Ragged | None:
        """Return `earlier` in the model's numbering."""
        found = self.earlier(index)
        if found is None:
            return None
        return self._index_of_any[found[0]], found[1]

    @cached_property
    def _index_of_any(self) -> NDArray[np.int32]:
        """The model's index of each of the data set's items and, behind them, of those that no sequence holds."""
        others = self._model.items.indices(pa.array(self._inner.earlier_items(), pa.string()))
        known = (others >= FIRST_ITEM) & (others < self._model.num_items)
        return np.concatenate([self._item_map, np.where(known, others, UNSEEN_ITEM).astype(np.int32)])

    def names_unknown_to_model(self, index: int) -> tuple[NDArray[np.object_], NDArray[np.int64]] | None:
        """Return the names of items that each of a shard's users took and the model does not know, ragged; None where there are none."""
        shard, before = self._inner.shard(index), self._inner.earlier(index)
        values, offsets = shard.values, shard.offsets
        if before is not None:
            values, offsets = ragged.side_by_side(before, (values, offsets))
        strange = (self._index_of_any[values] == UNSEEN_ITEM) & (values >= FIRST_ITEM) & (values != (self._own_padding or UNSEEN_ITEM))
        if not strange.any():
            return None
        values, offsets = ragged.keep(values, offsets, strange)
        return self._names_of_any[values], offsets

    @cached_property
    def _names_of_any(self) -> NDArray[np.object_]:
        """The names of what `_index_of_any` numbers."""
        return np.array([*self._inner.vocabulary("items")["item"].to_pylist(), *self._inner.earlier_items()], dtype=object)

    def _labels_of_earlier(self, task: str) -> NDArray[np.int64]:
        items, others = self._inner.vocabulary("items")["item"].to_pylist(), self._inner.earlier_items()
        if not self.info.labels_are_items(task):
            return np.full(len(items) + len(others), -1, dtype=np.int64)
        if self.info.task(task).predicts_next:
            return np.concatenate([self._model.label_of_item(task)[self._item_map], np.full(len(others), -1, dtype=np.int64)])
        return label_of_name([*items, *others], list(map(str, self._model.labels(task).names)))

    def _features(self, index: int) -> NDArray[np.int32] | None:
        """Return a shard's features of users that the model reads, in its numbering; all of them, as `user_features` closes some."""
        found, names = self._inner.shard(index).features, [feature.name for feature in self._inner.info.inputs.user]
        if found is None or not self._feature_maps:
            return None
        places = [names.index(feature.name) for feature in self._model.inputs.user]
        return np.stack([numbers[found[:, place]] for place, numbers in zip(places, self._feature_maps, strict=True)], axis=1)

    def notes(self) -> list[str]:
        """Return what of items, types of events and features of users the model does not know, for a person."""
        lines, reads_types = [], "types" in self._model.event_columns
        known = np.delete(self._item_map, [*range(FIRST_ITEM), *([] if self._own_padding is None else [self._own_padding])])
        if items := int((known == UNSEEN_ITEM).sum()):
            lines.append(f"{items} of {len(known)} items of {self.uri} are not known to the model; it reads them as unseen")
        unknown = [str(name) for name, own in zip(self._inner.types(), self._type_map, strict=True) if name is not None and not own]
        if reads_types and unknown:
            lines.append(f"types of events that the model does not know are read as the unknown type: {_few(unknown)}")
        for feature, numbers in zip(self._model.inputs.user, self._feature_maps, strict=True):
            names = [] if feature.edges else self._inner.input_values(feature.name)
            if strange := [str(name) for name, own in zip(names, numbers, strict=False) if name is not None and own == MISSING]:
                lines.append(f"values of '{feature.name}' that the model does not know are read as missing: {_few(strange)}")
        return lines

    def read_shard(self, index: int) -> Shard:
        """Return a shard's users as `shard`, without keeping the shard in memory."""
        found = self.shard(index)
        self._inner.forget(index)
        return found

    def labels(self, task: str, index: int) -> Labels:
        """Return a shard's labels of a task."""
        found = self._inner.labels(task, index)
        return replace(found, values=self._label_maps[task][found.values])

    def train_counts(self, task: str, shards: Iterable[int] | None = None) -> NDArray[np.int64]:
        """Return what the model's training saw of each label: the counts in a version of its own data set, else 1 for all it knows."""
        known = self._model.task(task).labels
        counts = self._inner.train_counts(task, shards)[:known] if self._versions else np.ones(known, dtype=np.int64)
        return np.concatenate([counts, np.zeros(self.info.task(task).labels - known, dtype=np.int64)])

    def label_of_item(self, task: str) -> NDArray[np.int64] | None:
        """Return which label of a task each item is, −1 for none."""
        return self._model.label_of_item(task)[: self._model.num_items] if self.info.labels_are_items(task) else None

    def _mapped_task(self, task: Task) -> Task:
        own = self._model.task(task.name)
        if own.kind != task.kind:
            raise DataError(f"{self.uri}: task '{task.name}' is of kind {task.kind}, and the model learned one of kind {own.kind}")
        known = own.labels
        if self._versions:
            place = np.arange(task.labels)
            place = np.where(place < known, place, -1)
        elif task.predicts_next:
            place = self._item_map[FIRST_ITEM:].astype(np.int64) - FIRST_ITEM
            place = np.where((place >= 0) & (place < known), place, -1)
        else:
            names: Vocabulary = self._model.labels(task.name)
            place = names.indices(self._inner.vocabulary(task.name)["label"].combine_chunks())
        strange = place < 0
        if strange.any() and not task.ranks_labels:
            few = ", ".join(self._inner.vocabulary(task.name)["label"].take(np.flatnonzero(strange)[:5]).to_pylist())
            raise DataError(f"{self.uri}: task '{task.name}' has classes that the model does not know ({few}), so it cannot be scored")
        self._label_maps[task.name] = np.where(strange, known, place).astype(np.int32)
        return replace(task, labels=known + int(strange.any()))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class MappedEncoder:
    """A model as the scorer reads it on a `MappedDataset`: a head has one more row where there are labels that the model does not know."""

    def __init__(self, model: PretrainedModel, info: DatasetInfo) -> None:
        self._method, self._info = model.method, info

    def mask_index(self, task: str) -> int:
        """Return the row of the mask table that a task's rows use."""
        return self._method.mask_index(task)

    def encode(self, batch: PackedBatch, task: str) -> Tensor:
        """Return the representations."""
        return self._method.encode(batch, task)

    def head(self, task: str) -> Head:
        """Return a task's head; the row of unknown labels scores below every other."""
        head, labels = self._method.head(task), self._info.task(task).labels
        if head.labels == labels:
            return head
        wider = Head(head.weight.shape[1], labels, generator=torch.Generator()).to(head.weight.device, head.weight.dtype)
        with torch.no_grad():
            wider.weight.zero_()
            wider.weight[: head.labels] = head.weight
            wider.bias.fill_(-torch.inf)
            wider.bias[: head.labels] = head.bias
        return wider
