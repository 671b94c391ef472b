"""Vectors of a retrained model turned into the space of an earlier export, by the rotation that fits best on common users.

Orthogonal Procrustes: R = U Vᵀ of the singular vectors of XᵀY, X the new vectors and Y the old ones, minimises ‖X R − Y‖ over
orthogonal R. A rotation changes no inner product between the new vectors.

Legend: B users, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_teracon.console import Log
from dist_teracon.errors import DataError
from dist_teracon.hashing import stable_hash
from dist_teracon.inference.export_reader import Export, open_export
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.out_folder import OutFolder
from dist_teracon.inference.sources import UserSource
from dist_teracon.inference.vectors_file import write_safetensors

# Common users that the rotation is fitted on, at most; those of the least hash.
FIT_USERS = 50_000
_FILE = "alignment.safetensors"


@dataclass(frozen=True)
class Alignment:
    """A rotation.

    Attributes:
        rotation: float32 [W, W].
        facts: The residual ‖X R − Y‖ / ‖Y‖, that without a rotation, on how many users, and whose space it is.
    """

    rotation: NDArray[np.float32]
    facts: dict[str, Any]

    def apply(self, vectors_BW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors turned."""
        return vectors_BW @ self.rotation


def procrustes(new_BW: NDArray[np.floating[Any]], old_BW: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], float]:
    """Return the orthogonal matrix [W, W] that turns new vectors into old ones best, and the residual ‖X R − Y‖ / ‖Y‖."""
    new, old = new_BW.astype(np.float64), old_BW.astype(np.float64)
    left, _, right = np.linalg.svd(new.T @ old)
    rotation = left @ right
    return rotation, float(np.linalg.norm(new @ rotation - old) / max(np.linalg.norm(old), np.finfo(np.float64).tiny))


def check_old(model: PretrainedModel, old_uri: str, kind: tuple[str, str]) -> tuple[Export, str]:
    """Return the earlier export and the name of its vectors that new ones can be turned to.

    Raises:
        DataError: it has no such vectors, or ones of another width.
    """
    old = open_export(old_uri)
    name, own = kind
    column = old.column_for(name)
    if old.width(column) != model.width(own):
        raise DataError(
            f"{old_uri}: its vectors have {old.width(column)} numbers and the new ones {model.width(own)}; a rotation needs equal widths"
        )
    return old, column


def align(
    model: PretrainedModel, source: UserSource, folder: OutFolder, old_uri: str, kind: tuple[str, str], *, log: Log
) -> Alignment:  # fmt: skip
    """Fit the rotation into an earlier export's space, and write it into the new export's folder.

    Args:
        model: The new model.
        source: The users of the new export.
        folder: The new export's.
        old_uri: The earlier export.
        kind: Name and kind of the vectors.
        log: Takes the residual.

    Raises:
        DataError: the earlier export has no such vectors, ones of another width, or too few common users.
    """
    old, column = check_old(model, old_uri, kind)
    if old.kind(column) != kind[1]:
        log(f"--align-to {old_uri}: its vectors are {old.kind(column)}, and the new ones {kind[1]}; they are turned all the same")
    new_BW, old_BW = _common(model, source, old, column, kind[1])
    if len(new_BW) < new_BW.shape[1]:
        raise DataError(
            f"--align-to {old_uri}: {len(new_BW)} common users do not determine a rotation of {new_BW.shape[1]} numbers; at least as many "
            "users are needed"
        )
    rotation, residual = procrustes(new_BW, old_BW)
    before = float(np.linalg.norm(new_BW - old_BW) / max(np.linalg.norm(old_BW), np.finfo(np.float32).tiny))
    facts = {"to": old.manifest["fingerprint"], "users": len(new_BW), "residual": residual, "residual_before": before}
    found = Alignment(rotation.astype(np.float32), facts)
    folder.write(_FILE, lambda path: write_safetensors(path, {"rotation": found.rotation}, {}))
    log(f"aligned to {old_uri} on {len(new_BW)} common users: residual {residual:.4f} of the old vectors' norm, {before:.4f} before")
    return found


def _common(
    model: PretrainedModel, source: UserSource, old: Export, column: str, kind: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Return the new and the old vectors of common users, two [B, W]."""
    chosen = _chosen(source, old)
    new_parts, names = [], []
    for part in range(source.parts):
        users = source.users(part).to_pylist()
        rows = [row for row, user in enumerate(users) if user in chosen]
        if not rows:
            continue
        histories = source.histories(part)
        for first in range(0, len(rows), 512):
            packed = histories.of(rows[first : first + 512])
            new_parts.append(model.vectors(packed, kind).float().cpu().numpy())
        names += [users[row] for row in rows]
    wanted = {user: place for place, user in enumerate(names)}
    old_BW = np.zeros((len(names), old.width(column)), dtype=np.float32)
    for users, vectors in old.read(column):
        for row, user in enumerate(users.to_pylist()):
            if (place := wanted.get(user)) is not None:
                old_BW[place] = vectors[row]
    return (np.concatenate(new_parts) if new_parts else np.zeros_like(old_BW)), old_BW


def _chosen(source: UserSource, old: Export) -> Mapping[str, int]:
    """Return the users that a source and an export have in common, those of the least hash where there are many."""
    own = {user for part in range(source.parts) for user in source.users(part).to_pylist()}
    names = [user for users in old.users() for user in users.to_pylist() if user in own]
    hashes = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    return {names[place]: place for place in np.argsort(hashes, kind="stable")[:FIT_USERS].tolist()}
