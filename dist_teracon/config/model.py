"""The group `model`: the backbone and the heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dist_teracon.config.base import ConfigModel, Real, Share, Whole

HeadLoss = Literal["auto", "full", "sampled", "gbce"]
Pooling = Literal["last", "mean", "concat"]
EventFeature = Literal["gaps", "types", "recency"]
HistoryFeature = Literal["counts", "types", "recency", "svd"]
HISTORY_FEATURES: tuple[HistoryFeature, ...] = ("counts", "types", "recency", "svd")

# `auto` takes the exact loss while a head's weights, gradient and Adam's two moments, four bytes each, stay below this.
_FULL_HEAD_BYTES = 4 << 30


class SampledSoftmax(ConfigModel):
    """Sampled softmax with log-Q correction.

    Attributes:
        negatives: Labels drawn a step; with `in_batch` at most so many.
        distribution: `log_uniform` over labels by falling frequency, the same draw on all processes; `in_batch`: the labels of a
            process's other examples, so that results depend on the number of processes.
    """

    negatives: Annotated[Whole, Field(ge=1, le=1 << 20)] = 1024
    distribution: Literal["log_uniform", "in_batch"] = "log_uniform"


class Gbce(ConfigModel):
    """Generalised binary cross-entropy (docs/method.md, Training).

    Attributes:
        negatives: Labels drawn a step, all equally often.
        calibration: t: 0 is plain binary cross-entropy, 1 undoes what drawing few negatives does to the probabilities.
    """

    negatives: Annotated[Whole, Field(ge=1, le=1 << 20)] = 256
    calibration: Annotated[Real, Field(ge=0, le=1)] = 0.75


class HeadsConfig(ConfigModel):
    """By what loss heads are trained; scores always rank all labels.

    Attributes:
        default: `full`: cross-entropy, exact over all labels; `sampled`: over drawn ones; `auto`: exact while the head fits, else
            `sampled`; `gbce`: binary cross-entropy of the target against drawn labels.
        by_task: What single tasks do otherwise, by name.
        sampled: How labels are drawn.
        gbce: How many labels are drawn, and how the loss is calibrated.
        label_smoothing: Share of a target's weight that the exact loss spreads evenly over all labels.
        tied: Tasks whose heads have the items' embeddings as weights, and biases of their own: the first one, of next items, or none.
    """

    default: HeadLoss = "auto"
    by_task: dict[str, HeadLoss] = {}
    sampled: SampledSoftmax = SampledSoftmax()
    gbce: Gbce = Gbce()
    label_smoothing: Share = 0.0
    tied: tuple[str, ...] = ()

    def loss_of(self, task: str, *, labels: int, output_dim: int) -> Literal["full", "sampled", "gbce"]:
        """Return by what loss a task's head is trained; a representation has `output_dim` numbers."""
        chosen = self.by_task.get(task, self.default)
        if chosen == "auto":
            return "sampled" if labels * output_dim * 16 > _FULL_HEAD_BYTES else "full"
        return chosen


class GivenItemVectors(ConfigModel):
    """Vectors of items that a user hands in, as of their texts, in the place of those that are drawn or counted.

    Attributes:
        file: Parquet with the columns `item` and `vector`, or a folder that `dist-teracon item-vectors` wrote.
    """

    file: Annotated[str, Field(min_length=1)]


class ModelConfig(ConfigModel):
    """The shared backbone (docs/method.md, Backbones).

    Attributes:
        backbone: `name` and the backbone's own settings, as `{name: nextitnet, dilations: [1, 4]}`; a name alone takes its defaults.
        channels: Width C of items and representations.
        pooling: What the representation holds of the sequence as a whole: `mean` adds the normalised mean of its items, `concat` puts it
            beside the last position's vector (twice as wide then), `last` (as published) has none.
        item_init: Initial item vectors: `svd` of which items the first task's training users take together, `uniform` (as published), or
            `{file: …}`: given ones, mapped to C numbers.
        event_features: What is read of events beside their items, where the data set keeps it (`history.keep`): `gaps`, the time since
            the event before, in buckets of its logarithm; `types`; `recency`, the time to what follows: the next event, and behind a
            history's last one the moment of prediction.
        input_features: Which side features are read, where the data set has them (`inputs`): their names, or `all`.
        history_features: What of a history as a whole stands beside the representation: `counts` of its events and distinct items, of
            its `types`, `recency`: the days since it ended, and the truncated `svd` of its items (docs/method.md, Backbones).
        history_svd: How many directions `svd` has.
        dropout: Share of the entries of items and representations that are dropped in training; none of replayed rows.
        heads: By what loss the tasks' heads are trained.
    """

    backbone: dict[str, Any] = {"name": "nextitnet"}
    channels: Annotated[Whole, Field(ge=1, le=4096)] = 256
    pooling: Pooling = "concat"
    item_init: Literal["uniform", "svd"] | GivenItemVectors = "svd"
    event_features: tuple[EventFeature, ...] = ()
    input_features: tuple[str, ...] | Literal["all"] = ()
    history_features: tuple[HistoryFeature, ...] = ()
    history_svd: Annotated[Whole, Field(ge=1, le=1024)] = 64
    dropout: Share = 0.3
    heads: HeadsConfig = HeadsConfig()

    @field_validator("item_init", mode="before")
    @classmethod
    def _one_of_three(cls, value: Any) -> Any:
        """Refuse with one message, where pydantic would have one for each of the ways."""
        given = value.model_dump() if isinstance(value, GivenItemVectors) else value
        named = isinstance(given, dict) and list(given) == ["file"] and isinstance(given["file"], str) and given["file"]
        if given not in ("uniform", "svd") and not named:
            raise ValueError("expected uniform, svd, or {file: VECTORS} with the path of a file of item vectors")
        return value

    @field_validator("input_features", mode="before")
    @classmethod
    def _names_or_all(cls, value: Any) -> Any:
        """Refuse with one message, where pydantic would have one for each of the ways."""
        if value != "all" and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
            raise ValueError("expected a list of features' names, as [region, category], or all")
        return value

    @field_validator("history_features")
    @classmethod
    def _in_one_order(cls, value: tuple[HistoryFeature, ...]) -> tuple[HistoryFeature, ...]:
        """Order them, so that weights do not depend on the order in which they are named."""
        return tuple(sorted(value, key=HISTORY_FEATURES.index))

    @field_validator("event_features", "input_features", "history_features")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if value != "all" and len(set(value)) < len(value):
            raise ValueError("expected each feature once")
        return value

    @field_validator("backbone", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        """Take a name for a backbone with its default settings, and settings without a name for the default backbone's."""
        if isinstance(value, str):
            return {"name": value}
        return {"name": "nextitnet", **value} if isinstance(value, dict) else value
