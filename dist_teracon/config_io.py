"""Reading, overriding, merging and validating configurations and recipes; their fields are in `config.py` and `data/recipe.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dist_teracon import io
from dist_teracon.config import ConfigModel, RunConfig
from dist_teracon.errors import ConfigError, nearest

M = TypeVar("M", bound=ConfigModel)

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


def validate(model: type[M], value: Mapping[str, Any], *, where: str) -> M:
    """Validate a mapping against a part of the configuration.

    Raises:
        ConfigError: names `where`, each bad field with its dotted path, its value, what is allowed and the nearest known name.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors(include_url=False, include_context=False)]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explain(model: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        if (now := _new_name(path)) is not None:
            return f"{path}: was renamed to {now}"
        known = _known_fields(model, problem["loc"][:-1])
        return f"{path}: unknown field{nearest(str(problem['loc'][-1]), known)} (known: {', '.join(sorted(known))})"
    if problem["type"] == "missing":
        return f"{path}: required field missing"
    if not path:
        return message
    return f"{path}: {message} (is {problem['input']!r})"


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
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def read_yaml(uri: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; a relative name that is no file is looked up among the packaged configurations.

    Raises:
        ConfigError: no such file, not YAML (with the line), or not a mapping.
    """
    try:
        value = yaml.load(_read_text(uri), Loader=_Loader)  # a safe loader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{uri}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{uri}: expected a mapping of fields, got {type(value).__name__}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key written twice, which YAML would let win silently."""

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


def _read_text(uri: str) -> str:
    if io.exists(uri):
        try:
            return io.read_bytes(uri).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{uri}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    packaged = resources.files("dist_teracon.configs").joinpath(*uri.removeprefix("configs/").split("/"))
    if "://" not in uri and not uri.startswith("/") and packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    folder = "recipes" if "recipe" in uri else "deepspeed" if uri.endswith(".json") else ""
    listed = resources.files("dist_teracon.configs").joinpath(folder).iterdir()
    shipped = sorted(entry.name for entry in listed if entry.name.endswith((".yaml", ".json")))
    raise ConfigError(f"{uri}: no such file{nearest(Path(uri).name, shipped)} (shipped in configs/{folder}: {', '.join(shipped)})")


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
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from None
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
        settings = json.loads(_read_text(uri))
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
