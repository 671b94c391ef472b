"""What commands measured of a finished run later: `cold_start.json` and `drift.json` in its folder, as tables for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_teracon.report.values import NONE, as_list, as_mapping, as_number, as_whole, score_text

COLD_START, DRIFT = "cold_start.json", "drift.json"


@dataclass(frozen=True)
class LaterTable:
    """A table of the page: a title, a note, heads of columns and named rows."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]

    @property
    def need(self) -> float:
        """How many columns of short numbers are as wide as its own."""
        return sum(max([1.0, *(len(cells[place]) / 9 for _, cells in self.rows)]) for place in range(len(self.columns)))


def cold_start_tables(found: Mapping[str, Any]) -> list[LaterTable]:
    """Return a table for each target and group of users, of hit rates by system."""
    tables = []
    for target, value in ((name, as_mapping(entry)) for name, entry in found.items()):
        users, vectors = as_mapping(value.get("users")), as_list(value.get("vectors"))
        protocols = [str(name) for name in as_list(value.get("protocols"))]
        cutoffs = [f"hr@{cutoff}" for cutoff in as_list(value.get("cutoffs"))]
        for group, scores in as_mapping(value.get("scores")).items():
            table = as_mapping(scores)
            rows = [
                (
                    f"vectors: {name}" if name in vectors else str(name),
                    [_score(as_mapping(as_mapping(entry).get(protocol)).get(cutoff)) for protocol in protocols for cutoff in cutoffs],
                )
                for name, entry in table.items()
            ]
            note = f"{as_whole(users.get(group)) or 0} users; after stage {value.get('stage')}; {as_whole(value.get('labels'))} labels."
            heads = [f"{cutoff.upper()} {protocol}" for protocol in protocols for cutoff in cutoffs]
            # the best of the others is the same for all vectors
            best = next((to for entry in table.values() if (to := _chief(entry).get("to"))), None)
            if best is not None:
                heads.insert(0, f"HR@10 all labels, less {best}")
                rows = [(name, [_gain(entry), *cells]) for (name, cells), entry in zip(rows, table.values(), strict=True)]
            tables.append(LaterTable(f"{target}, {group} users", note, heads, rows))
    return tables


def _chief(entry: object) -> dict[str, Any]:
    """Return the hit rate by which systems are held against each other."""
    return as_mapping(as_mapping(as_mapping(entry).get("all labels")).get("hr@10"))


def _gain(entry: object) -> str:
    value = _chief(entry)
    gain, interval = as_number(value.get("gain")), _interval(value.get("gain_interval"))
    if gain is None or interval is None:
        return NONE
    return f"{gain:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def drift_tables(found: Mapping[str, Any]) -> list[LaterTable]:
    """Return a table for each task whose vectors were compared."""
    tables = []
    for task, value in ((name, as_mapping(entry)) for name, entry in found.items()):
        names, entries = as_list(value.get("stages")), [as_mapping(row) for row in as_list(value.get("rows"))]
        rows = []
        for row in entries:
            title = " → ".join(
                f"{number} {names[number - 1]}"
                for number in (row.get("old"), row.get("new"))
                if isinstance(number, int) and 0 < number <= len(names)
            )
            rows.append((title, [_number(row.get(name)) for name in ("cosine", "residual", "neighbours", "cka")]))
        users = as_whole(entries[0].get("users")) if entries else None
        note = f"{users or 0} users; from a stage to the next, and from the first to the last."
        tables.append(
            LaterTable(f"Vectors of {task}", note, ["mean cosine", "residual, rotated", "10 nearest that stay", "linear CKA"], rows)
        )
    return tables


def _score(value: object) -> str:
    entry = as_mapping(value)
    score, interval = as_number(entry.get("score")), _interval(entry.get("interval"))
    if score is None:
        return NONE
    return f"{score:.3f}" + ("" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.3f}")


def _interval(value: object) -> tuple[float, float] | None:
    ends = [number for end in as_list(value) if (number := as_number(end)) is not None]
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _number(value: object) -> str:
    number = as_number(value)
    return NONE if number is None else score_text(number)
