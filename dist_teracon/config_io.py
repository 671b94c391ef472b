"""Reading, overriding, merging and validating configurations and recipes; their fields are in `config/` and `data/recipe.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dist_teracon import io
from dist_teracon.config.base import ConfigModel
from dist_teracon.config.run import RunConfig
from dist_teracon.errors import ConfigError, TeraconError, nearest, shortened

M = TypeVar("M", bound=ConfigModel)

# What YAML 1.1 makes of scalars that look like times or numbers; `_Loader` has rules of its own.
_AS_WRITTEN = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")}

# Fields that were renamed or moved, old dotted path to new: the error for an old one names the new one. `*` is any part of a path.
_RENAMED = {
    "train.*.average": "train.*.ema_decay",
    "train.*.earlier_rate": "train.*.pretrained_lr_scale",
    "train.*.backbone_rate": "train.*.pretrained_lr_scale",
    "train.*.head_steps": "train.*.probe_steps",
    "train.lazy_tables": "train.sparse_updates",
    "model.dilations": "model.backbone.dilations",
    "model.kernel_size": "model.backbone.kernel_size",
}


def validate(model: type[M], value: Mapping[str, Any], *, where: str, group: str = "", of: str = "") -> M:
    """Validate a mapping against a part of the configuration.

    Args:
        model: The part.
        value: Its fields.
        where: The file, for messages.
        group: Dotted path of the part, as `method`; the whole where it is empty.
        of: What has these fields, as `method 'hat'`, where another one in its place has others.

    Raises:
        ConfigError: names `where`, each bad field with its dotted path, its value, what is allowed and the nearest known name.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for problem in error.errors(include_url=False, include_context=False):
            path = _place(value, problem)
            lines.setdefault(".".join(map(str, path)), []).append(_explain(model, path, problem, group, of))
        # a field that may be one of several things has a finding for each
        raise ConfigError("\n".join(f"{where}: {' or: '.join(dict.fromkeys(found))}" for found in lines.values())) from None
    except RecursionError:
        raise ConfigError(f"{where}: a field holds itself (an alias within its own anchor); write it out") from None


def _place(value: Any, problem: Any) -> tuple[int | str, ...]:
    """Return the path of a finding's field; of a field that may be one of several things pydantic adds which of them it tried."""
    path: list[int | str] = []
    for number, part in enumerate(problem["loc"]):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return (*path, part) if problem["type"] in ("missing", "extra_forbidden") or not number else tuple(path)
        path.append(part)
    return tuple(path)


def _explain(model: type[BaseModel], place: Sequence[int | str], problem: Any, group: str, of: str) -> str:
    path = ".".join(str(part) for part in (*filter(None, [group]), *place))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        if (now := _new_name(path)) is not None:
            return f"{path}: was renamed to {now}"
        known = _known_fields(model, place[:-1])
        head = f"{of} has" if of and len(place) == 1 else "known"
        return f"{path}: unknown field{nearest(str(place[-1]), known)} ({head}: {', '.join(sorted(known)) or 'none'})"
    if problem["type"] == "missing":
        return f"{path}: required field missing"
    if not path:
        return message
    if problem["type"] == "model_type":
        message = "expected a mapping of fields"
    if problem["type"] == "tuple_type":
        message = "expected a list, as [one, two]"
    return f"{path}: {message} (is {shortened(problem['input'])})"


def _new_name(path: str) -> str | None:
    """Return today's path of a field that was renamed or moved, or None."""
    for old, new in _RENAMED.items():
        if found := re.fullmatch(re.escape(old).replace(r"\*", "(.+)"), path):
            return new.replace("*", found[1]) if found.groups() else new
    return None


def _known_fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields at a dotted path of a model, as far as it can be followed."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(str(part)) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:
            # a table with free keys, as train.by_task: its values' model is the annotation's last argument
            arguments = getattr(current, "__args__", ())
            current = arguments[-1] if arguments else None
        else:
            current = field.annotation
        # a group that may be left out, as `DeepSpeedZero | None`
        inside = [part for part in getattr(current, "__args__", ()) if isinstance(part, type) and issubclass(part, BaseModel)]
        current = inside[0] if type(None) in getattr(current, "__args__", ()) and inside else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def read_yaml(uri: str, *, folder: str = "") -> dict[str, Any]:
    """Read a YAML file that holds a mapping; a relative name that is no file is looked up among those that are shipped.

    Args:
        uri: The file; or a shipped one, with or without its folder and ending: `configs/recipes/ml-100k.yaml`, `ml-100k`.
        folder: Where in `configs/` a bare name stands: nowhere deeper for runs, `recipes`, `compare`.

    Raises:
        ConfigError: no such file, not YAML (with the line), or not a mapping.
    """
    try:
        value = yaml.load(_read_text(uri, folder), Loader=_Loader)  # a safe loader
        _copy(value)  # comes to an end where no group holds itself
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ConfigError(f"{uri}: a group holds itself, or groups lie hundreds deep") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{uri}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{uri}: expected a mapping of fields, got {type(value).__name__}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key written twice, which YAML would let win silently, and takes values as they are written.

    Dates stay text, so that one that is in no calendar is told with its field. Numbers are decimal: `012` (to YAML 1.1 an octal ten),
    `1_000` and `12:30` (to it a number of base 60) stay text, as they are names in recipes.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of thousands of digits
            if isinstance(error, yaml.YAMLError):
                raise
            raise yaml.constructor.ConstructorError(None, None, f"{shortened(node.value)}: {error}", node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.add(key if isinstance(key, str | int | float) else None)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_WRITTEN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$", re.ASCII), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", re.ASCII),
    list("-+0123456789."),
)


def _read_text(uri: str, folder: str) -> str:
    packaged = _shipped(uri, folder)
    if io.exists(uri) and (packaged is None or not io.is_folder(uri)):
        try:
            return io.read_bytes(uri).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{uri}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if packaged is not None:
        return packaged.read_text(encoding="utf-8")
    listed = resources.files("dist_teracon.configs").joinpath(folder).iterdir()
    names = sorted(entry.name for entry in listed if entry.name.endswith(_SHIPPED))
    place = "/".join(["configs", *filter(None, [folder])])
    raise ConfigError(f"{uri}: no such file{nearest(Path(uri).name, names)} (shipped in {place}: {', '.join(names)})")


# What shipped files' names end in.
_SHIPPED = (".yaml", ".json")


def _shipped(uri: str, folder: str) -> Traversable | None:
    """Return a shipped file by its path below `configs/`, or by its name in a folder there; None if there is none."""
    parts = uri.removeprefix("configs/").split("/")
    if "://" in uri or uri.startswith("/") or ".." in parts:
        return None
    root = resources.files("dist_teracon.configs")
    for base in (root.joinpath(folder), root):
        for ending in ("", *_SHIPPED):
            found = base.joinpath(*parts[:-1], f"{parts[-1]}{ending}")
            if found.name.endswith(_SHIPPED) and found.is_file():
                return found
    return None


def apply_overrides(value: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a mapping with `dotted.field=value` settings applied; values are read as YAML.

    Raises:
        ConfigError: a setting without `=`, or below a field that is no mapping.
    """
    result = _copy(value)
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path:
            raise ConfigError(f"--set {override}: expected dotted.field=value, as in model.channels=64, got '{override}'")
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: '{parent}' is {child!r}, it has no fields below it")
            node = child
        try:
            node[leaf] = yaml.load(text, Loader=_Loader)  # a safe loader
        except (yaml.YAMLError, RecursionError) as error:
            problem = getattr(error, "problem", None)
            raise ConfigError(f"--set {override[:200]}: the value is not valid YAML{f': {problem}' if problem else ''}") from None
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def load_config(uri: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run's configuration.

    Raises:
        ConfigError: with file and dotted field.
    """
    return make_config(apply_overrides(read_yaml(uri), overrides), where=uri)


def make_config(value: dict[str, Any], *, where: str) -> RunConfig:
    """Validate a run's configuration, merged over its preset.

    Raises:
        ConfigError: with `where` and dotted field.
    """
    if (preset := value.get("preset")) == "paper":
        value = deep_merge(read_yaml(f"configs/presets/{preset}.yaml"), value)
    train = value.get("train")
    if isinstance(train, dict) and isinstance(train.get("deepspeed"), str):
        value = {**value, "train": _with_deepspeed_file(train, where=f"{where}: train.deepspeed")}
    return validate(RunConfig, value, where=where)


# Where this program keeps what a DeepSpeed JSON says, and how it is read from there.
_OF_DEEPSPEED = {
    "zero": ("zero_optimization", "stage"),
    "gradient_clipping": ("gradient_clipping",),
    "accumulation": ("gradient_accumulation_steps",),
}


def _with_deepspeed_file(train: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Return the fields of `train` with those of the DeepSpeed JSON that `deepspeed` names; values of `auto` are left to this program.

    Raises:
        ConfigError: no such file, no JSON mapping, or a setting that contradicts a field of `train`.
    """
    uri = train["deepspeed"]
    try:
        settings = json.loads(_read_text(uri, "deepspeed"))
    except (TeraconError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)[:200]
        raise ConfigError(
            f"{where}: train.deepspeed: expected settings, or the path of a DeepSpeed JSON, got {shortened(uri)} ({why})"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{where}: {uri}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: {uri}: expected a mapping of DeepSpeed's settings, got {type(settings).__name__}")
    rest, found = _without_auto(settings), {}
    for field, path in _OF_DEEPSPEED.items():
        group = rest if len(path) == 1 else rest.get(path[0])
        if isinstance(group, dict) and path[-1] in group:
            found[field] = group.pop(path[-1])
    for precision in ("bf16", "fp16"):
        group = rest.pop(precision, None)
        if isinstance(group, dict) and group.get("enabled"):
            found["precision"] = precision  # fp16 is refused as any precision that is not known
    rest = {key: value for key, value in rest.items() if value != {}}
    for field, value in found.items():
        if field in train and train[field] != value:
            raise ConfigError(f"{where}: {uri} gives {value!r} and train.{field} is {train[field]!r}; leave one of them out")
    return {**train, **found, "deepspeed": rest}


def _without_auto(value: Any) -> Any:
    return {key: _without_auto(entry) for key, entry in value.items() if entry != "auto"} if isinstance(value, dict) else value


def deep_merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings field by field, so that one field of a group does not drop the others."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = deep_merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
