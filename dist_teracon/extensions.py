"""Parts that other installed packages bring: methods, backbones, sources and metrics, declared as entry points of Python packages.

A configuration names a part, and never a module: what is imported is what somebody has installed, so that a run folder which comes from
elsewhere cannot have code of its choice run.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

from dist_teracon.errors import ConfigError

Kind = Literal["methods", "backbones", "sources", "metrics"]

T = TypeVar("T")


def group_of(kind: Kind) -> str:
    """Return the group of entry points in which packages declare parts of a kind."""
    return f"dist_teracon.{kind}"


def declared(kind: Kind) -> list[EntryPoint]:
    """Return what installed packages declare, in the order of names."""
    return sorted(entry_points(group=group_of(kind)), key=lambda entry: entry.name)


def declared_names(kind: Kind) -> list[str]:
    """Return the names of parts that installed packages declare, each once."""
    return list(dict.fromkeys(entry.name for entry in declared(kind)))


def package_of(entry: EntryPoint) -> str:
    """Return the package that declares a part, with its version."""
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def load(kind: Kind, name: str, expected: type[T]) -> T | None:
    """Return a part by name; None where no package declares it.

    Args:
        kind: Of the part.
        name: Its name.
        expected: What it is an instance of; for a class `type`.

    Raises:
        ConfigError: several packages declare it, or it cannot be imported, or is something else.
    """
    found = [entry for entry in declared(kind) if entry.name == name]
    if not found:
        return None
    if len(found) > 1:
        packages = ", ".join(package_of(entry) for entry in found)
        raise ConfigError(f"'{name}' is declared by several installed packages ({packages}); uninstall all but one")
    (entry,) = found
    where = f"'{name}' of {package_of(entry)} ({entry.value})"
    try:
        part = entry.load()
    except Exception as error:
        raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(part, expected):
        raise ConfigError(f"{where}: expected {_an(expected.__name__)}, got {_an(type(part).__name__)}")
    return part


def load_class(kind: Kind, name: str, expected: type[T]) -> type[T] | None:
    """Return a class by name, a subclass of `expected` whose `name` is the same; None where no package declares it.

    Raises:
        ConfigError: as of `load`.
    """
    found = load(kind, name, type)
    if found is None:
        return None
    where = f"'{name}' ({found.__module__}:{found.__name__})"
    if not issubclass(found, expected):
        raise ConfigError(f"{where}: expected a subclass of {expected.__module__}.{expected.__name__}")
    if getattr(found, "name", None) != name:
        raise ConfigError(f"{where}: its `name` is {getattr(found, 'name', None)!r}; expected the same")
    return found


def _an(noun: str) -> str:
    return "a class" if noun == "type" else f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
