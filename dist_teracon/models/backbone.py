"""What a backbone is, and which there are: a new one is one file beside this one and one line in `BACKBONES`.

Legend: N packed positions, B rows (users), C channels, W numbers of a representation, K masked layers, T tasks, V items.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dist_teracon.config.base import ConfigModel
from dist_teracon.config.model import EventFeature, ModelConfig, Pooling
from dist_teracon.config_io import validate
from dist_teracon.data.batches import PackedSequences, Positions
from dist_teracon.errors import ConfigError, nearest, shortened
from dist_teracon.extensions import declared_names, load_class
from dist_teracon.models.dropout import RowNoise
from dist_teracon.models.event_embedding import COLUMN_OF, RECENCY, EventEmbedding
from dist_teracon.models.history_features import COLUMN_OF as HISTORY_COLUMN_OF
from dist_teracon.models.history_features import HistoryFeatures, HistoryStart, settings_of
from dist_teracon.models.input_embedding import NO_INPUTS, InputSizes, ItemFeatures, UserFeatures
from dist_teracon.models.item_table import ItemTable
from dist_teracon.models.pooling import mean_so_far

# Which dropout of a network is which; layers' own have other numbers.
_ON_ITEMS, _ON_REPRESENTATIONS = 0, 1


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of one masked layer, by name within the backbone; an index picks a slice of a stacked parameter.

    What methods freeze, prune or mask, and behind which they insert modules of their own.

    Attributes:
        matrices: Weights of convolutions or linear layers, [out, in, …]. The rows of the last one are the channels that the mask is on;
            those of others are inner ones, which no mask is on.
        biases: Their biases, in the same order.
        norms: Scales and shifts of the layer's LayerNorm.
        reads: The masked layer whose masked output is all that the last matrix reads; None where it reads what no mask is on, as the
            residual stream.
    """

    matrices: tuple[tuple[str, int | None], ...]
    biases: tuple[tuple[str, int | None], ...]
    norms: tuple[tuple[str, int | None], ...]
    reads: int | None = None


# What a method puts behind a masked layer's last matrix: from the layer k, the layer's input at the positions that are computed, [M, C],
# and what its last matrix gives there, [M, C], to what goes on in its place.
Patch = Callable[[int, Tensor, Tensor], Tensor]


class Stepper(Protocol):
    """Reads rows, and goes on from what it kept of them: V views of a row, P positions kept of each.

    It may have `row`, a `RowStepper` that does what `step` does for one row of one view.
    """

    def begin(self, x_LC: Tensor) -> tuple[Tensor, Tensor]:
        """Read a row's embedded positions, one at least: return the last one's output [V, C], and what the next one needs [V, P, C]."""

    def step(self, x_BC: Tensor, kept_BVPC: Tensor) -> tuple[Tensor, Tensor]:
        """Read an embedded position more of each row: return its output [B, V, C], and what the next one needs [B, V, P, C]."""


class Backbone(nn.Module, ABC):
    """Maps packed behaviour sequences to representations.

    Embeddings of items and events, dropout and pooling are here, the same for every backbone; a backbone is what stands between,
    `transform`.

    Args:
        settings: The backbone's own, an instance of its `Settings`.
        num_items: Size V of the item table, reserved rows included.
        channels: C.
        generator: Source of the initial values.
        pooling: `last`: the representation is the last position's; `mean`: the normalised mean of the items is added to it;
            `concat`: it stands beside it.
        dropout: Rate on item embeddings and on representations, for rows with a dropout key.
        event_features: What is read of events beside their items.
        num_types: Types of events, the unknown one included.
        inputs: Side features of users and items that are read.
        history: What is read of histories as a whole.

    Attributes:
        name: In the configuration (`model.backbone.name`).
        Settings: Fields of `model.backbone` beside the name.
        num_masked_layers: K.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[ConfigModel]] = ConfigModel
    num_masked_layers: int

    def __init__(
        self,
        settings: ConfigModel,
        *,
        num_items: int,
        channels: int,
        generator: torch.Generator,
        pooling: Pooling = "last",
        dropout: float = 0.0,
        event_features: Sequence[EventFeature] = (),
        num_types: int = 0,
        inputs: InputSizes = NO_INPUTS,
        history: HistoryFeatures | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.channels, self.pooling, self.dropout = settings, channels, pooling, dropout
        self.item_embedding = ItemTable(num_items, channels, generator=generator)
        self.event_embedding = EventEmbedding(event_features, channels, num_types=num_types) if event_features else None
        self.item_features: ItemFeatures | None = None
        if inputs.item:
            self.item_features = ItemFeatures(inputs.item, channels, num_items=num_items, values=inputs.item_values)
        self.user_features = UserFeatures(inputs.user, channels) if inputs.user else None
        self.history_features = history

    @property
    def output_dim(self) -> int:
        """Numbers W of a representation."""
        parts = 1 + (self.pooling == "concat") + (self.user_features is not None)
        return parts * self.channels + (0 if self.history_features is None else self.history_features.width)

    @classmethod
    def check(cls, settings: ConfigModel, *, channels: int) -> str:
        """Return what is wrong with settings at a width C, a line that begins with the field; nothing where they fit."""
        return ""

    @classmethod
    def event_columns(cls, settings: ConfigModel) -> Mapping[str, str]:
        """Return the columns of events (`times`, `types`) that the layers read themselves, each with the setting that asks for it."""
        return {}

    @classmethod
    def places(cls, settings: ConfigModel) -> int:
        """Return how many places of a row have embeddings of their own, those behind sharing the last one; 0 where places have none."""
        return 0

    @abstractmethod
    def transform(self, x_NC: Tensor, sequences: PackedSequences, masks_TKC: Tensor | None, *, positions: Positions) -> Tensor:
        """Return what the layers make of the embedded positions: [N, C] for `all`, [B, C] for `last`, zeros for an empty row.

        A position reads its own row, and nothing behind itself.

        Args:
            x_NC: The embedded positions.
            sequences: Where rows begin and which task each is of.
            masks_TKC: A mask for each task and masked layer; None for no masks.
            positions: Which outputs are needed; what only others need is not to be computed.
        """

    def transform_padded(
        self, x_BLC: Tensor, lengths: Tensor, mask_KC: Tensor | None, *, times_BL: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Return what `transform` makes of each row's last position, from padded rows and one mask: [B, C].

        In plain operations of dynamic batch and length, for `torch.export` (`inference/padded.py`); a backbone need not have it.

        Args:
            x_BLC: Rows that begin at the left, zero behind their end.
            lengths: int64 [B], at least 1 each.
            mask_KC: The mask of the task; None for no masks.
            times_BL: int64, when the events were; for layers that read it (`event_columns`).

        Raises:
            ConfigError: the backbone does not have it.
        """
        raise ConfigError(f"model.backbone: '{self.name}' cannot be exported (it has no `transform_padded`)")

    def freeze(self) -> None:
        """Let what is prepared of the weights be kept from here on: none of them changes any more."""

    @property
    def reach(self) -> int | None:
        """How many positions, itself included, an output can depend on, for a backbone that has a `stepper`; None for one that has not."""
        return None

    def stepper(self, masks_VKC: Tensor | None) -> Stepper:
        """Return what reads rows under each of V masks (None: one view without), with the weights as they are now."""
        raise NotImplementedError(f"{self.name} has no stepper: a caller asks `reach` first, which is None")

    def transform_patched(self, x_NC: Tensor, sequences: PackedSequences, patch: Patch, *, positions: Positions) -> Tensor:
        """Return what `transform` does without masks, with `patch` behind every masked layer's last matrix.

        For methods that insert modules of their own; a backbone without this method is refused by them (`takes_patches`).
        """
        raise NotImplementedError(f"{self.name} takes no patches; a method asks `takes_patches` first")

    @classmethod
    def takes_patches(cls) -> bool:
        """Return whether modules can be inserted."""
        return cls.transform_patched is not Backbone.transform_patched

    @abstractmethod
    def decay_parameters(self) -> set[str]:
        """Return the names of the parameters that weight decay acts on: matrices, and the item table's."""

    @abstractmethod
    def masked_layers(self) -> Sequence[LayerParameters]:
        """Return the parameters of each of the K masked layers, in the masks' order."""

    def flops(self, sequences: PackedSequences, *, positions: Positions) -> float:
        """Return the multiplications and additions of a forward pass: each layer's matrices at every position.

        A backbone that computes fewer positions for `last`, or more than its matrices, says so here.
        """
        numbers = sum(
            (self.get_parameter(name) if index is None else self.get_parameter(name)[index]).numel()
            for layer in self.masked_layers()
            for name, index in layer.matrices
        )
        return 2.0 * numbers * sequences.values.shape[0]

    def norm_parameters(self) -> set[str]:
        """Return the names of all scales and shifts of LayerNorms, also of those that belong to no masked layer."""
        return {name for layer in self.masked_layers() for name, _ in layer.norms}

    def embed(self, sequences: PackedSequences) -> Tensor:
        """Return what the layers read of each position [N, C]: its item's embedding, with its event's and its item's features'."""
        x_NC: Tensor = self.item_embedding(sequences.values)
        if self.event_embedding is not None:
            x_NC = x_NC + self.event_embedding(sequences.times, sequences.types, sequences.row_offsets, sequences.moments)
        return x_NC if self.item_features is None else x_NC + self.item_features(sequences.values)

    def embed_items(self, items_N: Tensor) -> Tensor:
        """Return what `embed` does, [N, C], for a backbone without an `event_embedding`, which reads items int32 [N] alone."""
        assert self.event_embedding is None, "an event is more than its item"
        x_NC: Tensor = self.item_embedding(items_N)
        return x_NC if self.item_features is None else x_NC + self.item_features(items_N)

    def encode(
        self,
        sequences: PackedSequences,
        masks_TKC: Tensor | None,
        *,
        positions: Positions,
        dropout_key: Tensor | None = None,
        patch: Patch | None = None,
    ) -> Tensor:
        """Encode packed sequences.

        Args:
            sequences: Rows of item indices, oldest first, each of a task.
            masks_TKC: [T, K, C], a mask for each task and masked layer, or None.
            positions: `all` for every position, `last` for each row's last.
            dropout_key: int64 [B], what a row's dropout follows from; rows of key 0 have none.
            patch: What goes behind the masked layers' last matrices; without masks.

        Returns:
            [N, W] or [B, W]; an empty row gives zeros in its first C numbers.
        """
        x_NC = self.embed(sequences)
        noise = None
        if dropout_key is not None and self.dropout:
            noise = RowNoise.of(sequences.row_offsets, dropout_key, self.dropout, total=x_NC.shape[0])
            x_NC = noise.on_positions(x_NC, _ON_ITEMS)
        if dropout_key is not None:
            sequences = replace(sequences, dropout_key=dropout_key)
        masks = None if masks_TKC is None else masks_TKC.to(x_NC.dtype)
        with record_function("blocks"):
            if patch is None:
                hidden = self.transform(x_NC, sequences, masks, positions=positions)
            else:
                assert masks is None, "patches stand instead of masks"
                hidden = self.transform_patched(x_NC, sequences, patch, positions=positions)
        if self.pooling != "last":
            mean = mean_so_far(x_NC, sequences.row_offsets, positions=positions)
            hidden = hidden + mean if self.pooling == "mean" else torch.cat([hidden, mean], dim=1)
        if self.user_features is not None:
            own = self.user_features.beside(sequences.user_features, sequences.row_offsets, outputs=hidden.shape[0], positions=positions)
            hidden = torch.cat([hidden, own.to(hidden.dtype)], dim=1)
        if self.history_features is not None:
            hidden = torch.cat([hidden, self.history_features(sequences, positions=positions).to(hidden.dtype)], dim=1)
        if noise is None:
            return hidden
        return (noise.on_positions if positions == "all" else noise.on_last)(hidden, _ON_REPRESENTATIONS)

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Encode packed sequences, see `encode`; for `torch.func.functional_call`, which runs a module's `forward`."""
        return self.encode(*arguments, **named)


# name -> module of that name's file beside this one, whose class of that name is the backbone
BACKBONES = {"nextitnet": "nextitnet", "sasrec": "sasrec"}
_registered: dict[str, type[Backbone]] = {}


def register_backbone(backbone: type[Backbone]) -> type[Backbone]:
    """Class decorator: make a backbone known by its name."""
    _registered[backbone.name] = backbone
    return backbone


def drops(model: ModelConfig) -> bool:
    """Return whether training drops anything of a row, of its items and representation or within the layers (`model.backbone.dropout`)."""
    return model.dropout > 0 or bool(model.backbone.get("dropout", 0))


def resolve_backbone(model: ModelConfig, *, where: str) -> tuple[type[Backbone], ConfigModel]:
    """Return the configured backbone's class and its validated settings.

    Raises:
        ConfigError: an unknown backbone, field or value.
    """
    values: Mapping[str, Any] = model.backbone
    name = str(values["name"])
    if name not in _registered and name in BACKBONES:
        importlib.import_module(f"dist_teracon.models.{BACKBONES[name]}")
    elif name not in _registered:
        try:
            found = load_class("backbones", name, Backbone)  # type: ignore[type-abstract]
        except ConfigError as error:
            raise ConfigError(f"{where}: model.backbone.name: {error}") from error.__cause__
        if found is not None:
            _registered[name] = found
    if name not in _registered:
        known = sorted({*BACKBONES, *_registered, *declared_names("backbones")})
        raise ConfigError(f"{where}: model.backbone.name: no backbone {shortened(name)}{nearest(name, known)} (known: {', '.join(known)})")
    kind = _registered[name]
    given = {key: value for key, value in values.items() if key != "name"}
    settings = validate(kind.Settings, given, where=where, group="model.backbone", of=f"backbone '{name}'")
    if problem := kind.check(settings, channels=model.channels):
        raise ConfigError(f"{where}: model.backbone.{problem}")
    return kind, settings


def columns_read(model: ModelConfig, *, where: str = "model") -> dict[str, str]:
    """Return the columns of events that a model reads beside items, each with the field of the configuration that asks for it."""
    return dict(sorted({column: field for column, field, _ in reversed(columns_asked(model, where=where))}.items()))


def columns_asked(model: ModelConfig, *, where: str = "model") -> list[tuple[str, str, str]]:
    """Return what asks for columns of events: the column, the field of the configuration, and its entry, empty for a field without."""
    kind, settings = resolve_backbone(model, where=where)
    entries = [(COLUMN_OF[name], "model.event_features", name) for name in model.event_features]
    history = [(HISTORY_COLUMN_OF[name], "model.history_features", name) for name in model.history_features if name in HISTORY_COLUMN_OF]
    return [*entries, *history, *((column, f"model.backbone.{name}", "") for column, name in kind.event_columns(settings).items())]


def reads_moments(model: ModelConfig) -> bool:
    """Return whether a model reads when rows are predicted (`PackedBatch.moments`)."""
    return RECENCY in model.event_features or "recency" in model.history_features


def make_backbone(
    model: ModelConfig,
    *,
    num_items: int,
    generator: torch.Generator,
    item_vectors: Tensor | None = None,
    num_types: int = 0,
    inputs: InputSizes = NO_INPUTS,
    history: HistoryStart | None = None,
) -> Backbone:
    """Build the configured backbone with fresh weights, the items' from `item_vectors` [V, C] where there are any.

    `history` is what histories' features start from; without it theirs are about to be loaded.
    """
    kind, settings = resolve_backbone(model, where="model")
    # without features a backbone is built as ever: its own constructor need not know of them
    events: dict[str, Any] = {"event_features": model.event_features, "num_types": num_types} if model.event_features else {}
    if inputs != NO_INPUTS:
        events["inputs"] = inputs
    if model.history_features:
        events["history"] = HistoryFeatures(**settings_of(model), num_items=num_items, start=history)
    backbone = kind(
        settings, num_items=num_items, channels=model.channels, generator=generator, pooling=model.pooling, dropout=model.dropout, **events
    )
    if item_vectors is not None:
        with torch.no_grad():
            backbone.item_embedding.weight.copy_(item_vectors)
    return backbone
