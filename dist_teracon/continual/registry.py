"""Which methods there are, those of other installed packages among them, and the configured one with its settings."""

from __future__ import annotations

import importlib

from dist_teracon.config.base import ConfigModel
from dist_teracon.config.run import RunConfig
from dist_teracon.config_io import validate
from dist_teracon.continual.method import Method
from dist_teracon.errors import ConfigError, nearest, shortened
from dist_teracon.extensions import declared_names, load_class

# name -> module of that name's file beside this one, whose class of that name is the method
METHODS = {
    "teracon": "teracon",
    "sinmo": "sinmo",
    "fineall": "fineall",
    "mtl": "mtl",
    "peterrec": "peterrec",
    "piggyback": "piggyback",
    "hat": "hat",
    "conure": "conure",
    "lowrank": "lowrank",
    "popularity": "popularity",
    "itemknn": "itemknn",
    "svdlr": "svdlr",
}
# whose scores are those of every task learned alone, the denominator of forward transfer
SINGLE_TASK = "sinmo"
_registered: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method known by its name."""
    _registered[method.name] = method
    return method


def method_class(name: str) -> type[Method]:
    """Return a method by name.

    Raises:
        ConfigError: no such method, and the nearest is named; or a package's cannot be imported.
    """
    if name not in _registered and name in METHODS:
        importlib.import_module(f"dist_teracon.continual.{METHODS[name]}")
    elif name not in _registered and (found := load_class("methods", name, Method)) is not None:  # type: ignore[type-abstract]
        _registered[name] = found
    if name not in _registered:
        known = sorted({*METHODS, *_registered, *declared_names("methods")})
        raise ConfigError(f"method.name: no method {shortened(name)}{nearest(name, known)} (known: {', '.join(known)})")
    return _registered[name]


def resolve_method(config: RunConfig, *, where: str) -> tuple[type[Method], ConfigModel]:
    """Return the configured method's class and validated settings.

    Raises:
        ConfigError: an unknown method, field or value.
    """
    values = dict(config.method)
    name = values.pop("name", None)
    if not isinstance(name, str):
        known = sorted({*METHODS, *declared_names("methods")})
        raise ConfigError(f"{where}: method.name: required field missing (one of: {', '.join(known)})")
    try:
        kind = method_class(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error.__cause__
    return kind, validate(kind.Settings, values, where=where, group="method", of=f"method '{name}'")
