"""Several tables of events in a folder, a service each, as the logs of one recipe."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from dist_teracon.data.init.columns import Content, Guess, content_of, guess_roles
from dist_teracon.data.init.samples import Sample
from dist_teracon.data.init.tasks import seconds_of, task_name
from dist_teracon.data.raw.listing import stem

# Of two whole tables so large a share of the fewer users is in both, if they speak of the same people.
_IN_COMMON = 0.2
_MOST_TYPES = 20


@dataclass(frozen=True)
class Log:
    """A table of events among several.

    Attributes:
        name: In the recipe; the type of its events, where it has no types of its own.
        sample: Some of its rows.
        roles: Which column holds what; `type` only where its types are used.
        times: Unit of its times, `iso` for dates, None for none.
    """

    name: str
    sample: Sample
    roles: dict[str, Guess]
    times: str | None

    def column(self, role: str) -> list[str | None]:
        """Return the sample's values of a role, nothing where there is none."""
        return self.sample.columns[self.roles[role].column] if role in self.roles else [None] * self.sample.rows

    def events(self) -> Iterator[tuple[str | None, str | None, float | None]]:
        """Return user, item and time of the sample's rows."""
        moments = [None] * self.sample.rows if self.times is None else seconds_of(self.column("timestamp"), self.times)
        return zip(self.column("user"), self.column("item"), moments, strict=True)

    def types(self) -> list[str | None]:
        """Return the type of each event of the sample."""
        return self.column("type") if "type" in self.roles else [self.name] * self.sample.rows


def logs_of(first: Sample, others: Sequence[Sample]) -> tuple[list[Log], dict[str, str]]:
    """Return a table of events and those of the others that speak of the same users, and why the rest does not.

    Args:
        first: The table that is read whatever the others are.
        others: Further tables that look like events.
    """
    logs: list[Log] = []
    left_out: dict[str, str] = {}
    for sample in (first, *others):
        contents = {name: content_of(sample, name) for name in sample.columns}
        roles = guess_roles(sample, contents)
        taken = {text for log in logs for text in (log.name, *log.types()) if text is not None}
        log = Log(_name(sample, taken), sample, roles, _times_of(roles, contents))
        if (why := _unlike(log, logs[0]) or _copied(log, logs)) if logs else "":
            left_out[sample.name] = why
        else:
            logs.append(_with_types(log, contents, taken))
    return logs, left_out


def _times_of(roles: dict[str, Guess], contents: dict[str, Content]) -> str | None:
    return contents[roles["timestamp"].column].times if "timestamp" in roles else None


def _name(sample: Sample, taken: Collection[str]) -> str:
    """Return the file's name without what tells its parts apart; not one that is a type already."""
    bare = re.sub(r"[*\d]+", " ", stem(sample.name)).strip(" -_.")
    first = task_name(bare) if bare else "events"
    name, number, known = first, 2, {text.casefold() for text in taken}
    while name.casefold() in known:
        name, number = f"{first}-{number}", number + 1
    return name


def _copied(log: Log, logs: Sequence[Log]) -> str:
    """Return that most rows of a table are another one's; empty where they are not."""
    rows = set(log.events())
    for other in logs:
        if 2 * (both := len(rows & set(other.events()))) > len(rows):
            return f"{both:,} of its {len(rows):,} different rows looked at (user, item, time) are in {other.sample.name} too"
    return ""


def _unlike(log: Log, first: Log) -> str:
    """Return why a table cannot be read beside the first one; empty where it can."""
    if (log.times is None) != (first.times is None):
        without = log if log.times is None else first
        return f"{without.sample.name} has no column of times, by which the events of both would be put in order"
    if log.sample.encoding != first.sample.encoding:
        return f"is written in {log.sample.encoding}, {first.sample.name} in {first.sample.encoding}"
    ours, theirs = ({text for text in other.column("user") if text is not None} for other in (log, first))
    both = len(ours & theirs)
    if not both or (log.sample.whole and first.sample.whole and both < _IN_COMMON * min(len(ours), len(theirs))):
        return f"{both} of its {len(ours)} users are in {first.sample.name}"
    return ""


def _with_types(log: Log, contents: dict[str, Content], taken: set[str]) -> Log:
    """Return the log with its own types where it has several that no other log has, else without."""
    if "type" not in log.roles:
        return log
    content = contents[log.roles["type"].column]
    if 2 <= content.distinct <= _MOST_TYPES and not taken & set(content.counts):
        return log
    return replace(log, roles={role: guess for role, guess in log.roles.items() if role != "type"})


def put_together(logs: Sequence[Log]) -> tuple[Sample, dict[str, Guess]]:
    """Return the events of all logs as one sample, times in seconds, and its roles; users and items under the first log's names."""
    first = logs[0]
    roles = {
        "user": first.roles["user"],
        "item": first.roles["item"],
        **({"timestamp": Guess("timestamp", "sure", "of all logs")} if first.times is not None else {}),
        "type": Guess("type", "sure", "the names of the logs, or their own types"),
    }
    columns: dict[str, list[str | None]] = {roles[role].column: [] for role in roles}
    for log in logs:
        for role in ("user", "item"):
            columns[roles[role].column] += log.column(role)
        columns[roles["type"].column] += log.types()
        if log.times is not None:
            moments = seconds_of(log.column("timestamp"), log.times)
            columns["timestamp"] += [None if moment is None else repr(moment) for moment in moments]
    whole = all(log.sample.whole for log in logs)
    return Sample("logs", tuple(uri for log in logs for uri in log.sample.files), columns, whole=whole), roles
