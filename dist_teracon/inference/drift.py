"""`dist-teracon drift`: what changed between the vectors of two exports, runs or stages, and what an old consumer would feel of it.

Legend: U common users, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_teracon.console import Log, no_log
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.hashing import stable_hash
from dist_teracon.inference.align import procrustes
from dist_teracon.inference.export_reader import is_export, open_export
from dist_teracon.inference.labels_file import UserLabels
from dist_teracon.inference.model import SHARED, from_pretrained
from dist_teracon.inference.probe import Probe, bootstrapped, check_sizes, default_metric
from dist_teracon.inference.sources import of_uri

NEIGHBOURS = 10
_ROWS_AT_ONCE = 1024

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class VectorSet:
    """Vectors of users, wherever they come from.

    Attributes:
        name: For messages.
        users: Yields names of users, part by part.
        read: From names of users to their vectors, by name.
        kind: What they are: a task's, or `shared:mean` and its like.
        data: The version of the data set or events that they were made from.
    """

    name: str
    users: Callable[[], Iterator[pa.Array]]
    read: Callable[[Mapping[str, Any]], dict[str, Vectors]]
    kind: str = ""
    data: str = ""


def vector_set(uri: str, *, stage: int | None, task: str | None, data: str | None, log: Log = no_log) -> VectorSet:
    """Open the vectors of an export, or of a run's users.

    Args:
        uri: An export or a run.
        stage: Of a run.
        task: Which vectors; the only ones of an export and `shared` of a run where None.
        data: Whose users a run encodes; its own data set's where None.
        log: Takes lines for a person.

    Raises:
        DataError: there is neither.
        ConfigError: no such vectors; a stage of an export.
    """
    if is_export(uri):
        if stage is not None:
            raise ConfigError(f"{uri}: is an export, of one stage; a stage is chosen of a run")
        export = open_export(uri)
        column = export.column_for(task)

        def of_export(wanted: Mapping[str, Any]) -> dict[str, Vectors]:
            parts = export.read(column)
            return {user: row for users, rows in parts for user, row in zip(users.to_pylist(), rows, strict=True) if user in wanted}

        return VectorSet(uri, export.users, of_export, export.kind(column), str(export.manifest["source"]["version"]))
    model = from_pretrained(uri, stage)
    kind, source = model.kind_of_vector(task or SHARED), of_uri(model, data or model.config.dataset, log=log)
    for note in source.notes:
        log(note)

    def of_run(wanted: Mapping[str, Any]) -> dict[str, Vectors]:
        found: dict[str, Vectors] = {}
        for part in range(source.parts):
            users = source.users(part).to_pylist()
            rows = [row for row, user in enumerate(users) if user in wanted]
            histories = source.histories(part) if rows else None
            for first in range(0, len(rows), 512):
                assert histories is not None
                some = rows[first : first + 512]
                vectors = model.vectors(histories.of(some), kind).float().cpu().numpy()
                found.update(zip((users[row] for row in some), vectors, strict=True))
        return found

    version = str(source.name["version"])
    return VectorSet(f"{uri} stage {model.stage}", lambda: (source.users(part) for part in range(source.parts)), of_run, kind, version)


@dataclass(frozen=True)
class Drift:
    """How two sets of vectors differ, on common users.

    Attributes:
        users: How many common users were compared.
        common: How many there are.
        cosine: Mean cosine of a user's old and new vector; None where their widths differ.
        residual: ‖X R − Y‖ / ‖Y‖ after the best rotation R of the new vectors X into the old ones Y; None where widths differ.
        neighbours: Mean share of a user's 10 nearest users, by cosine, that stay.
        cka: Linear centred kernel alignment, 1 for spaces that are equal up to rotation and scale.
        probe: Score of a probe that was fitted on old vectors: on old ones, on new ones, and on new ones that were rotated.
        metric: The probe's.
    """

    users: int
    common: int
    cosine: float | None
    residual: float | None
    neighbours: float
    cka: float
    probe: dict[str, float] | None = None
    metric: str | None = None

    @property
    def drop(self) -> float | None:
        """By which share the old probe's score falls on new vectors; None without a probe."""
        return None if self.probe is None else 1 - self.probe["new"] / self.probe["old"] if self.probe["old"] else 0.0

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        lines = [f"{self.users} of {self.common} common users"]
        if self.cosine is not None and self.residual is not None:
            lines += [f"mean cosine           {self.cosine:.4f}", f"residual, rotated     {self.residual:.4f}"]
        else:
            lines.append("the widths differ, so there is neither a cosine nor a rotation")
        lines += [f"10 nearest that stay  {self.neighbours:.4f}", f"linear CKA            {self.cka:.4f}"]
        if self.probe is not None:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in self.probe.items())
            lines.append(f"old probe, {self.metric}: {shown}; drop {self.drop:.2%}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {**self.__dict__, "drop": self.drop}


def drift(old: VectorSet, new: VectorSet, *, users: int = 5000, labels: UserLabels | None = None, metric: str | None = None) -> Drift:
    """Compare two sets of vectors.

    Args:
        old, new: The sets.
        users: How many common users are compared at most, those of least hash; labelled ones where there are labels.
        labels: Labels for a probe that is fitted on the old vectors.
        metric: The probe's.

    Raises:
        DataError: too few common users.
        ConfigError: an unknown metric; a probe on vectors of different widths.
    """
    names = {user for part in old.users() for user in part.to_pylist()}
    common = [user for part in new.users() for user in part.to_pylist() if user in names]
    if labels is not None:
        labelled = set(labels.users)
        common = [user for user in common if user in labelled]
    chosen = sorted(common, key=lambda user: (stable_hash(user), user))[:users]
    if len(chosen) <= NEIGHBOURS:
        also = " with labels" if labels is not None else ""
        raise DataError(f"{old.name} and {new.name} have {len(chosen)} common users{also}; expected more than {NEIGHBOURS}")
    wanted = dict.fromkeys(chosen)
    old_by_user, new_by_user = old.read(wanted), new.read(wanted)
    y, x = np.stack([old_by_user[user] for user in chosen]), np.stack([new_by_user[user] for user in chosen])
    cosine = residual = rotation = None
    if x.shape[1] == y.shape[1]:
        cosine = float((_unit(x) * _unit(y)).sum(axis=1).mean())
        rotation, residual = procrustes(x, y)
    scores, name = None, None
    if labels is not None:
        if rotation is None:
            raise ConfigError(f"labels: an old probe reads vectors of {y.shape[1]} numbers, and the new ones have {x.shape[1]}")
        scores, name = _old_probe(y, x, x @ rotation.astype(np.float32), chosen, labels, metric)
    return Drift(len(chosen), len(common), cosine, residual, _kept_neighbours(x, y), _cka(x, y), scores, name)


def stage_drift(run: str, *, task: str | None, data: str | None, users: int, log: Log = no_log) -> dict[str, Any]:
    """Compare the vectors of a run's stages: of each with the one before, and of the last with the first.

    Args:
        run: A run of two stages at least.
        task: Whose vectors, from the stage on that learned it; the first task's where None.
        data, users: As of `vector_set` and `drift`.

    Returns:
        JSON values: `task`, `stages` (the names of all), and `rows` with `old`, `new` (stages, counted from 1) and what `drift` finds.

    Raises:
        ConfigError: the run has one stage with such vectors.
    """
    last = from_pretrained(run)
    learned = list(last.tasks)
    chosen = task or learned[0]
    first = 1 if chosen == SHARED else learned.index(last.task(chosen).name) + 1
    if first >= last.stage:
        raise ConfigError(f"drift --stages: of {run} one stage alone has vectors of '{chosen}'; expected two at least")
    numbers = range(first, last.stage + 1)
    told = dict.fromkeys(numbers, no_log) | {first: log}  # what is said of the users once
    sets = {number: _kept(vector_set(run, stage=number, task=chosen, data=data, log=told[number])) for number in numbers}
    pairs = [(number, number + 1) for number in numbers[:-1]]
    if len(pairs) > 1:
        pairs.append((first, last.stage))
    rows = []
    for old, new in pairs:
        log(f"{chosen}: stage {old} and {new}")
        rows.append({"old": old, "new": new, **drift(sets[old], sets[new], users=users).to_json()})
    return {"task": chosen, "fingerprint": last.fingerprint, "stages": learned, "rows": rows}


def _kept(vectors: VectorSet) -> VectorSet:
    """Return a set that reads the vectors of the same users once."""
    kept: dict[tuple[str, ...], dict[str, Vectors]] = {}

    def read(wanted: Mapping[str, Any]) -> dict[str, Vectors]:
        key = tuple(wanted)
        if key not in kept:
            kept[key] = vectors.read(wanted)
        return kept[key]

    return replace(vectors, read=read)


def stage_lines(found: dict[str, Any]) -> list[str]:
    """Return what `stage_drift` found as a table for people."""
    lines = [f"vectors of {found['task']}   cosine  residual  10 nearest   CKA"]
    for row in found["rows"]:
        numbers = [row[name] for name in ("cosine", "residual", "neighbours", "cka")]
        cells = ["     –" if value is None else f"{value:6.4f}" for value in numbers]
        lines.append(f"stage {row['old']} to {row['new']:<{len(found['task']) + 1}}  {'    '.join(cells)}")
    return lines


def _old_probe(
    old: Vectors, new: Vectors, rotated: Vectors, users: list[str], labels: UserLabels, metric: str | None
) -> tuple[dict[str, float], str]:  # fmt: skip
    """Fit a probe on old vectors; returns its score on the test users' old, new, and rotated new vectors."""
    known, places = labels.of(users)
    order = np.argsort(places)
    known = UserLabels(users, known.labels[order], known.classes, known.split[order])
    check_sizes(known)
    chosen = default_metric(len(known.classes), metric)
    fitted, test = Probe(old, known, chosen), known.split == 2
    parts = {"old": old, "new": new, "new, rotated": rotated}
    scores = {
        name: bootstrapped(name, fitted.outcomes(part[test], known.labels[test]), chosen, seed=0).score for name, part in parts.items()
    }
    return scores, chosen.name


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def _kept_neighbours(new: Vectors, old: Vectors) -> float:
    """Return the mean share of each user's nearest users in one space that are among those in the other."""
    kept, sides = 0, [_unit(new), _unit(old)]
    for first in range(0, len(new), _ROWS_AT_ONCE):
        nearest = []
        for unit in sides:
            similarity = unit[first : first + _ROWS_AT_ONCE] @ unit.T
            rows = np.arange(len(similarity))
            similarity[rows, first + rows] = -np.inf
            nearest.append(np.argpartition(-similarity, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS])
        kept += sum(len(np.intersect1d(one, other)) for one, other in zip(*nearest, strict=True))
    return kept / (len(new) * NEIGHBOURS)


def _cka(new: Vectors, old: Vectors) -> float:
    """Return ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of centred vectors (Kornblith et al., 2019); 0 where in one of them all users have one vector."""
    x, y = _centred(new), _centred(old)
    if x is None or y is None:
        return float(x is y)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _centred(vectors: Vectors) -> NDArray[np.float64] | None:
    """Return vectors without their mean; None where nothing but rounding is left."""
    wide = vectors.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(axis=0)
    return centred if np.linalg.norm(centred) > 1e-12 * np.linalg.norm(wide) else None
