"""What every part of a configuration is made of: frozen groups that merge over their defaults, and numbers with bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class ConfigModel(BaseModel):
    """Base of every part of a configuration: immutable, and an unknown field is an error.

    A group that is given in part keeps its other fields as the default of *that* group has them, which need not be the defaults of its
    class: `train: {later: {epochs: 6}}` changes the epochs of later stages and nothing else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _groups_over_their_defaults(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _over(defaults.get(name), given) for name, given in value.items()}


def _over(default: Any, given: Any) -> Any:
    """Return a group's fields merged over those of its default object, at every depth; anything else as it is given."""
    if not isinstance(default, ConfigModel) or not isinstance(given, Mapping):
        return given
    fields = {part: getattr(default, part) for part in type(default).model_fields}
    return {**fields, **{part: _over(fields.get(part), value) for part, value in given.items()}}


def no_boolean(value: Any) -> Any:
    """Refuse `true` and `false`, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004  (pydantic reports values alone)
    return value


# Numbers. Every field has bounds of its own, so that what cannot be meant is an error at once and no loop without an end.
Whole = Annotated[int, BeforeValidator(no_boolean)]
Real = Annotated[float, BeforeValidator(no_boolean)]
Positive = Annotated[Whole, Field(ge=1, le=1 << 31)]
Examples = Annotated[Whole, Field(ge=1, le=1 << 24)]
Epochs = Annotated[Whole, Field(ge=0, le=100_000)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Rate = Annotated[Real, Field(gt=0, lt=10)]
