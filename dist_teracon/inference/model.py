"""A trained model in use: vectors and predictions from histories in raw ids, without the data set, Ray or DeepSpeed.

Legend: B users, W numbers of a representation, T tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon.config.run import RunConfig
from dist_teracon.continual.method import Method
from dist_teracon.continual.open_inputs import known_inputs
from dist_teracon.data.batches import PackedBatch, PackedRows
from dist_teracon.data.dataset import label_of_name, next_label_of_item
from dist_teracon.data.event_columns import NO_TIME, EventColumns
from dist_teracon.data.input_features import MISSING, InputFeatures, close
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM, DatasetInfo, Task, info_from_json
from dist_teracon.errors import ConfigError, RunError, nearest
from dist_teracon.evaluate.scorer import excludes_seen
from dist_teracon.inference.device import usable_device
from dist_teracon.inference.event_columns import ColumnReader, moments_of
from dist_teracon.inference.histories import Histories, HistoryReader
from dist_teracon.inference.ids import id_text
from dist_teracon.inference.predictions import Predictions, best_labels, candidate_labels, joined, not_recommended
from dist_teracon.inference.run_files import local_run
from dist_teracon.inference.state import Reading, StateEncoder, UserState, state_encoder
from dist_teracon.inference.user_features import FeatureReader
from dist_teracon.inference.vocabulary import Vocabularies, Vocabulary
from dist_teracon.models.backbone import Backbone, columns_read, reads_moments
from dist_teracon.models.network import Network
from dist_teracon.train.restore import restore_method
from dist_teracon.train.run_folder import RunFolder

SHARED = "shared"
SharedVector = Literal["mean", "open", "concat"]

# Users encoded at a time; the order of sums, and with it the last bits, is the scorer's at its own default.
_BATCH = 512


def from_pretrained(run: Path | str, stage: int | None = None, *, device: str = "cpu") -> PretrainedModel:
    """Load a trained model from its run alone.

    Args:
        run: The run's folder, or its URI on any store that fsspec opens, written there or copied.
        stage: Which stage's weights, counted from 1; None for the last finished one.
        device: Where it computes.

    Raises:
        RunError: there is no run, no such stage, a file is damaged, or another version of this program has written it.
    """
    uri, where = str(run), usable_device(device)
    folder = RunFolder(local_run(uri, stage))
    try:
        method = restore_method(folder.path, stage)
    except RunError as error:
        # training's way out of it, a new folder, is none here
        text = str(error).replace("; name a new folder with --run", "; load it with that version")
        raise RunError(text.replace(str(folder.path), uri)) from None
    return PretrainedModel(uri, folder, method, device=where)


class PretrainedModel:
    """A run's model after a stage; see `from_pretrained`.

    Attributes:
        run: The run's folder or URI.
        stage: The stage, counted from 1.
        config: The run's configuration.
        info: The description of the data set that it was trained on.
        tasks: The tasks that it has learned, by name, in their order.
        method: The method with its weights, for what is not here.
        last_unknown: Of the last call, the events whose item the model does not know.
        seen_labels: By task the labels that its training saw, bool [labels]; None of a run of before, which has not kept it.
        moment: When predictions are where no call says otherwise, in seconds since 1970: the last moment of which the training data told.
    """

    def __init__(self, run: str, folder: RunFolder, method: Method, *, device: torch.device) -> None:
        self.run, self.method, self.stage = run, method, len(method.learned)
        self.config: RunConfig = folder.config()
        self.info: DatasetInfo = info_from_json(folder.dataset_json())
        self.tasks: dict[str, Task] = {name: self.info.task(name) for name in method.learned}
        self.last_unknown = 0
        self.device = device
        for part in method.model().to(self.device).eval().modules():
            if isinstance(part, Network):
                part.freeze()
        state = folder.stage(self.stage - 1, method.learned[-1]).state()
        self.seen_labels = {
            name: folder.stage(place, name).seen_labels(task.labels) for place, (name, task) in enumerate(self.tasks.items())
        }
        self._weights, self.moment = state["files"]["model.safetensors"], int(state.get("moment", NO_TIME))
        self._vocabularies = Vocabularies(folder, self.info, self.config.dataset)
        self._state_encoders: dict[str, StateEncoder] = {}
        self._label_of_item: dict[str, NDArray[np.int64]] = {}

    def __repr__(self) -> str:
        return f"PretrainedModel({self.run!r}, stage={self.stage}, tasks={list(self.tasks)})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that names weights, model, method and data set together.

        Settings that have their defaults are left out, so that a field that a later version adds changes nothing. Where a later version
        changes a default, a run that had the old one gets another fingerprint: exports and snapshots of before are then refused, and no
        two models that differ share one, as their weights do.
        """
        settings = self.config.model_dump(mode="json", include={"model", "method"}, exclude_defaults=True)
        parts = [self._weights, self.info.fingerprint, settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def shares_backbone(self) -> bool:
        """Whether one backbone serves all tasks, so that their vectors lie in one space."""
        return isinstance(self.method.model(), Network)

    @property
    def default_shared(self) -> SharedVector:
        """What `shared` is where nothing else is asked for: the mean over tasks of one backbone, else all tasks' vectors in a row."""
        return "mean" if self.shares_backbone else "concat"

    @cached_property
    def items(self) -> Vocabulary:
        """Names of the items, by index."""
        return self._vocabularies.items()

    @cached_property
    def reader(self) -> HistoryReader:
        """What reads histories in raw ids."""
        types = self._vocabularies.types() if "types" in self.event_columns else None
        reads = ColumnReader(self.event_columns, types, self.num_types)
        return HistoryReader(self.info, self.items, known=self.num_items, reads=reads, features=self.inputs.user)

    @property
    def event_columns(self) -> tuple[str, ...]:
        """What the model reads of events beside their items: `times`, `types`, or nothing."""
        return tuple(columns_read(self.config.model))

    @property
    def reads_moments(self) -> bool:
        """Whether the model reads how long before its prediction a history's last event was (`recency`)."""
        return reads_moments(self.config.model)

    @cached_property
    def num_types(self) -> int:
        """Types of events that the model has an embedding of, the unknown one included."""
        tables = [value for name, value in self.method.state_dict().items() if name.endswith("event_embedding.type_weight")]
        return int(tables[0].shape[0]) if tables else self.method.context.num_types

    @cached_property
    def num_items(self) -> int:
        """Rows of the item table, reserved ones included."""
        tables = self.method.item_tables()
        state = self.method.state_dict()
        return int(state[tables[0]].shape[0]) if tables else self.info.items

    @cached_property
    def inputs(self) -> InputFeatures:
        """Side features that the model reads, as it knows them, and by task which of them it does not."""
        return known_inputs(self.info, self.config.model, self.method)

    @cached_property
    def feature_reader(self) -> FeatureReader:
        """What reads features of users."""
        names = {feature.name: self._vocabularies.input_values(feature.name) for feature in self.inputs.user if not feature.edges}
        declared = tuple(feature.name for feature in self.info.inputs.user)
        return FeatureReader(self.inputs.user, names, declared, self.reader.recipe)

    def closed_to(self, kind: str) -> frozenset[str]:
        """Return the features of users that vectors of a kind do not read: shared ones none that is closed to a task of the data set."""
        return self.inputs.closed_to([kind]) if kind in self.tasks else self.info.inputs.closed_to(task.name for task in self.info.tasks)

    def item_vectors(self) -> NDArray[np.float32]:
        """Return what the model reads of an item, float32 [items, C], reserved rows included: its embedding and its features'.

        Raises:
            ConfigError: the method has none, or one for each task.
        """
        tables = self.method.item_tables()
        if len(tables) != 1:
            reason = f"a table of items for each of {len(tables)} tasks" if tables else "no table of items"
            raise ConfigError(f"items: method '{self.method.name}' has {reason}, so there is no one vector of an item")
        table = self.method.state_dict()[tables[0]]
        (features,) = [part.item_features for part in self.method.model().modules() if isinstance(part, Backbone)] or [None]
        if features is not None:
            with torch.no_grad():
                table = table + features(torch.arange(len(table), device=table.device))
        return table.float().cpu().numpy()

    def labels(self, task: str) -> Vocabulary:
        """Return the names of a task's labels, by index."""
        return self._vocabularies.labels(self.task(task).name)

    def task(self, name: str) -> Task:
        """Return a task.

        Raises:
            ConfigError: the model has not learned it; names the nearest one.
        """
        if name not in self.tasks:
            known = ", ".join(self.tasks)
            raise ConfigError(f"task '{name}': the model has not learned it{nearest(name, self.tasks)} (stage {self.stage} has: {known})")
        return self.tasks[name]

    def histories(self, histories: Any, *, features: Any = None, dates: bool = True, at: Any = None) -> Histories:
        """Read histories in raw ids, of any form: see `HistoryReader.read`; and features of their users: see `FeatureReader.read`.

        A folder of events may have a table of users, which is read where no features are given. `at` is as of `encode`.
        """
        read = self.reader.read(histories, dates=dates)
        if at is not None:
            read = replace(read, rows=replace(read.rows, moments=self.moments(len(read), at)))
        if isinstance(histories, Histories) and features is None:
            return read
        reader, told = self.feature_reader, read.told
        if features is None and reader.features and isinstance(histories, str | Path):
            features, of_table = reader.of_table(*self.reader.users_of(str(histories), [feature.name for feature in reader.features]))
            told = (*told, *of_table)
        own = reader.read(features, len(read), read.users)
        return replace(read, rows=replace(read.rows, features=own.values), strange_values=own.strange, told=(*told, *own.told))

    def encode(
        self, histories: Any, task: str = SHARED, *,
        shared: SharedVector | None = None, features: Any = None, at: Any = None, batch: int = _BATCH,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Return a vector for each user: float32 [B, W], `T · W` wide for `concat`.

        Args:
            histories: Histories in raw ids, oldest first; see `HistoryReader.read`. A table of events gives users in the order of their
                names (`histories(…).users`).
            task: The task whose vectors they are, or `shared` for one vector for all.
            shared: What `shared` is: `mean` over the tasks' vectors, `open`: all masks open, `concat`: the tasks' vectors in a row.
            features: Features of the users, where the model reads any, as `[{"region": "north"}, {}]`; what is not given is missing.
            at: When the prediction is, for a model that reads `recency`: seconds since 1970 or a datetime, for all users or a list of one
                for each. None: the last moment of which the training data told (`moment`). One before a history's last event is as that.
            batch: Users at a time, on which last digits depend.

        Raises:
            DataError: a history is empty, or an id is neither a text nor a whole number.
            ConfigError: an unknown task; a shared vector that the method does not have.
        """
        read = self.histories(histories, features=features, at=at)
        self.last_unknown = read.unknown
        kind = self.kind_of_vector(task, shared)
        parts = [self.vectors(read.between(first, first + batch), kind) for first in range(0, len(read), batch)]
        return np.concatenate([part.float().cpu().numpy() for part in parts]) if parts else np.zeros((0, self.width(kind)), np.float32)

    def predict(
        self, histories: Any, task: str, *,
        top: int = 10, exclude_seen: bool | None = None, candidates: Sequence[Any] | None = None, normalise: bool = False,
        features: Any = None, at: Any = None, batch: int = _BATCH,
    ) -> Predictions:  # fmt: skip
        """Return the labels that score highest for each user, as raw ids.

        Args:
            histories: As of `encode`.
            task: The task whose labels are ranked.
            top: How many a user, at most.
            exclude_seen: Leave out the items of the user's own history; by default as in the run's own scores.
            candidates: Rank these labels alone: a list of ids for all users, or one for each user; `unknown_candidates` are no labels.
            normalise: Give probabilities over the labels that are ranked; else logits.
            features, at: As of `encode`.
            batch: Users at a time, on which last digits depend.

        Raises:
            DataError: a history is empty, an id is neither a text nor a whole number, or no candidate is a label of the task.
            ConfigError: an unknown task, `top` below 1, or `exclude_seen` for a task whose labels are not items.
        """
        info, read = self.task(task), self.histories(histories, features=features, at=at)
        if top < 1:
            raise ConfigError(f"top: expected 1 or more, got {top}")
        if exclude_seen and not self.info.labels_are_items(task):
            raise ConfigError(
                f"exclude_seen: the labels of task '{task}' are not known to be items of the history, so none can be left out"
            )
        self.last_unknown = read.unknown
        chosen, strange = (None, 0) if candidates is None else candidate_labels(self.labels(task), candidates, len(read), task=task)
        setting = self.config.evaluate.exclude_seen if exclude_seen is None else exclude_seen
        without = info.ranks_labels and excludes_seen(self.info, task, setting)
        head, found = self.method.head(task), []
        for first in range(0, len(read), batch):
            end = min(first + batch, len(read))
            padding, left_out = self.reader.padding, None
            if without or padding is not None:
                left_out = not_recommended(read, first, end, self.label_of_item(task), self.labels(task), seen=without, padding=padding)
            own = chosen[first:end] if chosen is not None and len(chosen) > 1 else chosen
            with torch.no_grad():
                hidden = self.vectors(read.between(first, end), task)
                found.append(best_labels(head, hidden, top=top, left_out=left_out, candidates=own, normalise=normalise))
        indices, scores = joined(found)
        return Predictions(task, indices, scores, read.users, read.unknown, self.labels(task), strange)

    def state(
        self, history: Sequence[Any], task: str = SHARED, *,
        shared: SharedVector | None = None, features: Mapping[str, Any] | None = None, at: Any = None,
    ) -> UserState:  # fmt: skip
        """Read one user's history, for events to be added one at a time by `extend`; `state.vector` is that of `encode`.

        Args:
            history: Raw ids, oldest first.
            task, shared: As of `encode`.
            features: The user's features, where the model reads any.
            at: As of `encode`.

        Raises:
            DataError: the history is empty, or an id is neither a text nor a whole number.
            ConfigError: an unknown task, or a vector of several models.
        """
        kind = self.kind_of_vector(task, shared)
        read = self.histories([history], features=None if features is None else [features], at=at)
        self.last_unknown = read.unknown
        (found,) = self._state_encoder(kind).start([self._opened(read.rows, kind)])
        return self._state_of(kind, found, read.unknown)

    def extend(self, state: UserState, item: Any, *, at: Any = None) -> UserState:
        """Return the state with one more event; its vector is that of the longer history, to 1e-5. The argument stays as it is.

        Args:
            state: What has been read.
            item: The event's item; `{"item": …, "time": …, "type": …}` where the model reads times or types of events.
            at: As of `encode`; of this vector alone.

        Raises:
            DataError: the event lacks a time or type that the model reads.
            ConfigError: the state is another model's.
        """
        return self.extend_each([state], [item], at=at)[0]

    def extend_each(self, states: Sequence[UserState], items: Sequence[Any], *, at: Any = None) -> list[UserState]:
        """Return several users' states with one more event each, as `extend` does for one; those of one kind are computed together."""
        found: list[UserState] = list(states)
        events = [self._event(state, item, at) for state, item in zip(states, items, strict=True)]
        unknown = [int(event.values[0] == UNSEEN_ITEM) for event in events]
        for kind in dict.fromkeys(state.kind for state in states):
            places = [place for place, state in enumerate(states) if state.kind == kind]
            read = self._state_encoder(kind).extend([states[place] for place in places], [events[place] for place in places])
            for place, reading in zip(places, read, strict=True):
                found[place] = self._state_of(kind, reading, states[place].unknown + unknown[place])
        self.last_unknown = sum(unknown)
        return found

    def _state_of(self, kind: str, read: Reading, unknown: int) -> UserState:
        row = read.row
        return UserState(
            kind, self.fingerprint, row.values, read.kept, read.vector, unknown, row.columns, row.features, row.moments, read.total
        )

    def _event(self, state: UserState, item: Any, at: Any) -> PackedRows:
        """Return one more event of a state as a row."""
        if state.fingerprint != self.fingerprint:
            raise ConfigError(f"state: belongs to another model ({state.fingerprint[:12]}…, and this one is {self.fingerprint[:12]}…)")
        columns = self.reader.reads.of_mappings([item])
        index = self.items.index(id_text(item.get("item") if isinstance(item, Mapping) else item))
        known = FIRST_ITEM <= index < self.num_items
        items = np.array([index if known else UNSEEN_ITEM], dtype=np.int32)
        return PackedRows(items, np.array([0, 1]), columns, moments=self.moments(1, at))

    def _state_encoder(self, kind: str) -> StateEncoder:
        if kind not in self._state_encoders:
            self._state_encoders[kind] = state_encoder(self.method, kind, limit=self.info.length_limit, device=self.device)
        return self._state_encoders[kind]

    @torch.no_grad()
    def vectors(self, rows: PackedRows, kind: str) -> Tensor:
        """Return the representations of a batch of rows of item indices, [B, W], on the model's device.

        Args:
            rows: Rows of item indices.
            kind: A task's name, or `shared:mean`, `shared:open`, `shared:concat`.
        """
        rows = self._opened(rows, kind)
        if kind in self.tasks:
            return self.method.encode(self._packed(rows, self.method.mask_index(kind)), kind)
        _, _, way = kind.partition(":")
        if way == "open":
            network = self.method.model()
            assert isinstance(network, Network)
            return network.encode(self._packed(rows, 0), None, positions="last")
        parts = [self.vectors(rows, task) for task in self.tasks]
        return torch.cat(parts, dim=1) if way == "concat" else torch.stack(parts).mean(dim=0)

    def width(self, kind: str) -> int:
        """Return the numbers of a vector of a kind, as of `vectors`."""
        with torch.no_grad():
            every = EventColumns(np.zeros(1, np.int64), np.zeros(1, np.int32))
            none = PackedRows(np.zeros(1, np.int32), np.array([0, 1]), every.only(self.event_columns))
            return int(self.vectors(none, kind).shape[1])

    def _packed(self, rows: PackedRows, mask: int) -> PackedBatch:
        offsets = torch.from_numpy(rows.offsets)
        tasks = torch.full((rows.rows,), mask, dtype=torch.int32)
        return PackedBatch(torch.from_numpy(rows.values), offsets, tasks, "last").with_beside(rows).to(self.device)

    def _opened(self, rows: PackedRows, kind: str) -> PackedRows:
        """Return rows with what vectors of a kind read beside events: features, all missing where there are none, and moments."""
        if self.reads_moments and rows.moments is None:
            rows = replace(rows, moments=self.moments(rows.rows, None))
        if not (names := [feature.name for feature in self.inputs.user]):
            return rows
        values = np.full((rows.rows, len(names)), MISSING, dtype=np.int32) if rows.features is None else rows.features
        return replace(rows, features=close(values, names, self.closed_to(kind)))

    def moments(self, users: int, at: Any) -> NDArray[np.int64] | None:
        """Return when users are predicted, int64 [users], `at` being as of `encode`; None where the model does not read it.

        Raises:
            ConfigError: a moment is given, and the model does not read it.
        """
        if at is not None and not self.reads_moments:
            raise ConfigError(
                "at: the model does not read when it predicts (`recency` among features of events or histories); leave it out"
            )
        return moments_of(at, users, default=self.moment, zone=self.reader.reads.zone) if self.reads_moments else None

    def kind_of_vector(self, task: str, shared: SharedVector | None = None) -> str:
        """Return what `vectors` calls the vectors of a task, or shared ones.

        Raises:
            ConfigError: an unknown task; a shared vector that the method does not have.
        """
        if task != SHARED or task in self.tasks:
            if shared is not None:
                raise ConfigError(f"shared: is for task 'shared', not for the vectors of task '{task}'")
            return self.task(task).name
        way = shared or self.default_shared
        if way not in ("mean", "open", "concat"):
            raise ConfigError(f"shared: expected mean, open or concat, got {way!r}")
        if way != "concat" and not self.shares_backbone:
            raise ConfigError(
                f"shared: method '{self.method.name}' has no one network for all tasks, so they share no space; take concat, or a task"
            )
        return f"{SHARED}:{way}"

    def label_of_item(self, task: str) -> NDArray[np.int64]:
        """Return which label of a task each item is, int64 [items], −1 for none; items and labels of one name are taken for the same."""
        if task not in self._label_of_item:
            labels = self.labels(task)
            self._label_of_item[task] = (
                next_label_of_item(len(self.items), len(labels))
                if self.info.task(task).predicts_next
                else label_of_name(self.items.names, list(map(str, labels.names)))
            )
        return self._label_of_item[task]
