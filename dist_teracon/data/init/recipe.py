"""`dist-teracon init`: a first recipe with comments, from samples of raw files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from types import MappingProxyType

import yaml

from dist_teracon import io
from dist_teracon.atomic import atomic_write
from dist_teracon.data.init.columns import Content, Guess, content_of, guess_roles, named_role
from dist_teracon.data.init.logs import Log, logs_of, put_together
from dist_teracon.data.init.recipe_text import recipe_lines, scalar
from dist_teracon.data.init.samples import Folder, Sample, attributes_within, sample_folder
from dist_teracon.data.init.tasks import Proposal, Tables, propose
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import stem
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.sources.base import folder_name
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.text import cropped, folded, table_lines

_OWN = {"user": "user", "item": "item", "timestamp": "timestamp", "type": "type", "value": "value"}
_OWN_RECBOLE = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "type": "type", "value": "rating"}


@dataclass
class Draft:
    """A recipe before it is written.

    Attributes:
        format: For `dist-teracon prepare`.
        text: YAML with comments.
        notes: What a person should know.
    """

    format: str
    text: str
    notes: list[str] = field(default_factory=list)


def init_recipe(folder: str, out: str) -> list[str]:
    """Write a recipe for the raw files in a folder; returns what was guessed, as lines for a terminal of 80 columns.

    Raises:
        ConfigError: `out` is there already, or lies on a store.
        DataError: no table looks like events.
    """
    if not io.is_local(out):
        raise ConfigError(f"--out {out}: expected a file on a local disk")
    if io.exists(out):
        raise ConfigError(f"--out {out}: is there already and is never overwritten; name another file")
    found = sample_folder(folder)
    kind = known_format(found)
    draft = _DRAFTS[kind](found)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder_name(folder)).strip("-.") or "first"
    prepare = shlex.join(["dist-teracon", "prepare", draft.format, folder, f"data/{name}", "--recipe", out])
    then = [prepare, f"dist-teracon inspect data/{name}", f"dist-teracon train ml-100k --set dataset=data/{name} --run runs/{name}"]
    head = [
        f"# Written by `dist-teracon init {folder}` from samples of the files. Every line is a guess:",
        "# look through it, change what is wrong, and leave out what is not wanted (docs/own-data.md has every field).",
        *(f"#   {command}" for command in then),
    ]
    text = "\n".join([*head, draft.text.rstrip("\n"), ""])
    parse_recipe(yaml.safe_load(text), where=out)  # what is written can be read
    path = io.local_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())
    return [
        *folded(f"{folder}: format {draft.format}"),
        *draft.notes,
        *(
            line
            for name, why in found.not_read.items()
            if name not in found.sequences
            for line in folded(f"not read: {name}: {why}", indent="  ")
        ),
        "",
        *folded(f"wrote {out}; look through it, then:"),
        *(f"  {command}" for command in then),
    ]


def known_format(folder: Folder) -> str:
    """Return the format that a folder's files have."""
    names = [without_compression(name).lower() for name in folder.names]
    if any(name.endswith(".inter") for name in names):
        return "recbole"
    if {"u.data", "ratings.dat"} & set(names) or {"ratings.csv", "movies.csv"} <= set(names):
        return "movielens"
    if "original_desen_pretrain.csv" in names:
        return "ttl"
    for sample in folder.tables.values():
        header = set(sample.columns)
        if {"user_id", "item_id"} <= header and header & {"click", "follow", "like", "share"}:
            return "tenrec"
    return "sequence-csv" if folder.sequences and not folder.tables else "events"


# -- formats with columns of their own


def _shipped(folder: Folder, name: str) -> str:
    """Return a shipped recipe without its comments on top, under the folder's name."""
    text = resources.files("dist_teracon.configs").joinpath("recipes", name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join(f"name: {scalar(folder_name(folder.uri))}" if line.startswith("name:") else line for line in lines)


def _movielens(folder: Folder) -> Draft:
    recipe = "ml-100k.yaml" if "u.data" in folder.names else "ml-1m.yaml"
    text = _shipped(folder, recipe)
    has_users = any(name in folder.names for name in ("u.user", "users.dat"))
    if not has_users:
        text = "\n".join(line for line in text.splitlines() if "kind: profile" not in line)
    return Draft(
        "movielens", text, ["a release of MovieLens: films rated 1 to 3 are the history, 4 and 5 two tasks,", "then the user's profile"]
    )


def _tenrec(folder: Folder) -> Draft:
    header = {name for sample in folder.tables.values() for name in sample.columns}
    wanted = {"like": "like", "share": "share", "category": "video_category", "age": "age", "gender": "gender"}
    missing = [task for task, column in wanted.items() if column not in header]
    text = "\n".join(
        line for line in _shipped(folder, "tenrec.yaml").splitlines() if not any(line.strip().startswith(f"{task}:") for task in missing)
    )
    return Draft("tenrec", text, ["Tenrec's columns: clicks are the history; likes, shares, profiles are the tasks"])


def _sequences(kind: str) -> Callable[[Folder], Draft]:
    def draft(folder: Folder) -> Draft:
        text = f"name: {scalar(folder_name(folder.uri))}\nseed: 0\nsplit: {{by: users, train: 0.8, validation: 0.05, test: 0.15}}"
        return Draft(kind, text, ["files of sequences with their targets, a task a file; a recipe is optional"])

    return draft


# -- events


def _recbole(folder: Folder) -> Draft:
    tables = {}
    for name, sample in folder.tables.items():
        columns = {column.rpartition(":")[0] or column: values for column, values in sample.columns.items() if "_seq" not in column}
        tables[name] = replace(sample, columns=columns)
    by_ending = {
        ending: next((sample for name, sample in tables.items() if without_compression(name).endswith(ending)), None)
        for ending in (".inter", ".user", ".item")
    }
    if by_ending[".inter"] is None:
        raise DataError(f"{folder.uri}: the *.inter file cannot be read ({'; '.join(folder.not_read.values())})")
    return _draft("recbole", folder, by_ending[".inter"], by_ending[".user"], by_ending[".item"], own=_OWN_RECBOLE)


def _events(folder: Folder) -> Draft:
    events = _best(folder, "events", _events_rank)
    if events is None:
        shown = "; ".join(f"{name} ({', '.join(sample.columns)})" for name, sample in folder.tables.items()) or "no table"
        unread = "".join(f"; not read: {name}: {why}" for name, why in folder.not_read.items())
        raise DataError(
            f"{folder.uri}: no table looks like events: expected a row an event, with a column of users, who occur more than once, and one "
            f"of items (found: {shown}{unread})"
        )
    roles = guess_roles(events, {name: content_of(events, name) for name in events.columns})
    users, items = (
        _best(folder, f"{role}s", partial(_attribute_rank, role=role, key=roles[role].column), without=(events,))
        for role in ("user", "item")
    )
    taken = [id(sample) for sample in (events, users, items) if sample is not None]
    further = [sample for sample in folder.tables.values() if id(sample) not in taken and sample.rows and _events_rank(sample) > 0]
    logs, left_out = logs_of(events, further)
    return _draft("events", folder, events, users, items if items is not users else None, own=_OWN, logs=logs, left_out=left_out)


def _best(folder: Folder, name: str, rank: Callable[[Sample], float], *, without: Sequence[Sample] = ()) -> Sample | None:
    """Return the table of that name, or that of the highest rank above 0."""
    others = [sample for sample in folder.tables.values() if sample not in without and sample.rows]
    named = [sample for sample in others if stem(sample.name) == name and rank(sample) > 0]
    ranked = sorted((sample for sample in others if rank(sample) > 0), key=rank, reverse=True)
    return next(iter(named or ranked), None)


def _events_rank(sample: Sample) -> float:
    roles = guess_roles(sample, contents := {name: content_of(sample, name) for name in sample.columns})
    if "user" not in roles or "item" not in roles:
        return 0.0
    user = contents[roles["user"].column]
    if user.distinct > 0.95 * user.filled:  # a row a user
        return 0.0
    return 1.0 + 4 * ("timestamp" in roles) + 2 * sum(roles[role].confidence != "guess" for role in ("user", "item")) + sample.rows / 1e6


def _attribute_rank(sample: Sample, *, role: str, key: str) -> float:
    column = key if key in sample.columns else next((name for name in sample.columns if named_role(name) == role), None)
    if column is None or len(sample.columns) < 2:
        return 0.0
    content = content_of(sample, column)
    return (2.0 if column == key else 1.0) if content.distinct > 0.95 * content.filled and content.filled > 0.95 * sample.rows else 0.0


def _draft(
    kind: str, folder: Folder, events: Sample, users: Sample | None, items: Sample | None, *,
    own: Mapping[str, str], logs: Sequence[Log] = (), left_out: Mapping[str, str] = MappingProxyType({}),
) -> Draft:  # fmt: skip
    contents = {name: content_of(events, name) for name in events.columns}
    roles = guess_roles(events, contents)
    draft = Draft(kind, "")
    attributes: dict[str, tuple[Sample, dict[str, Content]] | None] = {}
    free = [name for name, content in contents.items() if name not in {guess.column for guess in roles.values()} and content.times is None]
    for role, sample in (("user", users), ("item", items)):
        key, attributes[role] = roles[role].column, None
        if sample is None and kind == "events" and (sample := attributes_within(events, key, free)) is not None:
            free = [name for name in free if name not in sample.columns]
            named = ", ".join(name for name in sample.columns if name != key)
            draft.notes += folded(f"{events.name}: {named}: one value for each {role}, so attributes of {role}s", indent="  ")
        if sample is not None and key in sample.columns:
            attributes[role] = (sample, {name: content_of(sample, name) for name in sample.columns})
        elif sample is not None:
            other = next(name for name in sample.columns if named_role(name) == role)
            told = f"{sample.name}: its {role}s stand in '{other}', those of the events in '{key}': give both one name to use it"
            draft.notes += folded(told, indent="  ")
    if len(logs) > 1:
        events, roles = put_together(logs)
        contents = {name: content_of(events, name) for name in events.columns}
    tables = Tables(events, roles, contents, attributes["user"], attributes["item"])
    proposal = propose(tables)
    several = logs if len(logs) > 1 else ()
    draft.notes[:0] = _notes(tables, proposal, folder, several, left_out)
    draft.text = "\n".join(recipe_lines(folder_name(folder.uri), tables, proposal, own=own, logs=several, names_files=kind == "events"))
    return draft


def _notes(tables: Tables, proposal: Proposal, folder: Folder, logs: Sequence[Log], left_out: Mapping[str, str]) -> list[str]:
    read = [(f"log {log.name}", log.sample) for log in logs] or [("events", tables.events)]
    read += [(what, pair[0]) for what, pair in (("users", tables.users), ("items", tables.items)) if pair]
    rows = [(what, sample.name, f"{sample.rows:,}{'' if sample.whole else ' of more'}") for what, sample in read]
    used = {id(sample) for _, sample in read}
    there = {role for _, roles in _roles(tables, logs) for role in roles} | ({"type"} if logs else set())  # a log's name is one
    without = [role for role in _OWN if role not in there]
    return [
        *table_lines(("", "table", "rows looked at"), rows, names=("", "table")),
        "",
        *(line for name, roles in _roles(tables, logs) for line in _role_lines(name, roles)),
        *(folded(f"no column of: {', '.join(without)}") if without else []),
        "",
        *folded(f"history: {proposal.why}", indent="  "),
        *(
            line
            for task in proposal.tasks
            for line in folded(f"{'task' if task.is_active else 'as a comment, task'} {task.name}: {task.why}", indent="  ")
        ),
        *(line for name, why in proposal.left_out.items() for line in folded(f"no task: {name}: {why}", indent="  ")),
        *([] if any(task.is_active for task in proposal.tasks) else ["no task beside the first one, the next item of the history"]),
        *_unused_lines([sample for sample in folder.tables.values() if id(sample) not in used], left_out),
    ]


def _roles(tables: Tables, logs: Sequence[Log]) -> list[tuple[str, Mapping[str, Guess]]]:
    """Return the columns' roles of each log, or of the one table of events."""
    return [(log.name, log.roles) for log in logs] or [("events", tables.roles)]


def _role_lines(name: str, roles: Mapping[str, Guess]) -> list[str]:
    heads = (cropped(name, 16), "column", "how sure", "why")
    return table_lines(heads, [(role, guess.column, guess.confidence, guess.why) for role, guess in roles.items()], names=heads)


def _unused_lines(samples: Sequence[Sample], left_out: Mapping[str, str]) -> list[str]:
    """Return the tables that nothing is made of; of those that look like events, why they do not go with the others."""
    if not samples:
        return ["every table is used"]
    lines = folded(f"tables that nothing is made of: {', '.join(sample.name for sample in samples)}")
    for name, why in left_out.items():
        lines += folded(f"{name} looks like events, but {why}; `logs` in a recipe names several tables of events", indent="  ")
    return lines


_DRAFTS: dict[str, Callable[[Folder], Draft]] = {
    "recbole": _recbole, "movielens": _movielens, "tenrec": _tenrec, "ttl": _sequences("ttl"), "sequence-csv": _sequences("sequence-csv"),
    "events": _events,
}  # fmt: skip
