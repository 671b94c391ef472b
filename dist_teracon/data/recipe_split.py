"""The part of a recipe on how examples are split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dist_teracon.data.recipe_values import Moment, RecipePart

SPLIT_DATES = ("labels_from", "validation_from", "test_from", "test_periods")


def _listed(value: Any) -> Any:
    """Take one moment for a list of it."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class SplitPart(RecipePart):
    """How examples are split; see `SplitRule`. The seed is the recipe's where it is left out.

    Attributes:
        validation_from, test_from: Under `time`: the moments at which what is validated and what is tested begin.
        test_periods: Under `time`: the moments at which further test periods begin, each told from the histories before it.
        labels_from: Under `time`, with tasks of items: the moment from which their training labels are; histories end there.
    """

    by: Literal["users", "rows", "last", "time"] = "users"
    labels_from: Moment | None = None
    validation_from: Moment | None = None
    test_from: Moment | None = None
    test_periods: Annotated[tuple[Moment, ...], BeforeValidator(_listed)] = ()
    seed: int | None = Field(default=None, ge=0)
    train: float = Field(default=0.8, gt=0, lt=1)
    validation: float = Field(default=0.05, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)
    folds: int = Field(default=1, ge=1, le=1000)
    fold: int = Field(default=0, ge=0, le=1000)

    @model_validator(mode="after")
    def _whole(self) -> SplitPart:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test must add up to 1")
        if self.fold >= self.folds:
            raise ValueError(f"fold must be below folds ({self.folds})")
        if self.folds > 1 and self.validation + 1 / self.folds >= 1:
            raise ValueError("a test window of 1/folds and the validation share leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _dated(self) -> SplitPart:
        dates = {name: getattr(self, name) for name in SPLIT_DATES if getattr(self, name) not in (None, ())}
        if self.by != "time" and dates:
            raise ValueError(f"{next(iter(dates))} is for 'by: time'")
        if self.by == "time" and (self.validation_from is None or self.test_from is None):
            raise ValueError("'by: time' requires validation_from and test_from, the dates at which these parts begin")
        moments = [moment for value in dates.values() for moment in (value if isinstance(value, tuple) else (value,))]
        if moments != sorted(set(moments)):
            raise ValueError(f"{', '.join(dates)} must lie one after the other")
        if self.by == "time" and self.folds > 1:
            raise ValueError("'by: time' has one test period; folds are for splits by users or rows")
        return self

    @property
    def tests(self) -> tuple[float, ...]:
        """The moments at which test periods begin; nothing without dates."""
        return () if self.test_from is None else (self.test_from, *self.test_periods)

    @model_serializer(mode="wrap")
    def _older_fingerprints_stay(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name not in SPLIT_DATES or value not in (None, (), [])}
