"""What users took and their sequences do not tell: items before cut histories, and in them those too rare for the catalogue.

It is kept so that rankings leave it out too.

Legend: U rows of users, E events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_teracon.data import ragged
from dist_teracon.data.raw.categorical import Categorical

Int = NDArray[np.int64]

# Events that are looked at together, so that rows which hold the same events many times need no memory for all of them.
_AT_ONCE = 1 << 22


def earlier_items_of(
    items: Categorical, events: Int, ahead: tuple[Int, Int], histories: tuple[Int, Int], position: NDArray[np.int32]
) -> tuple[tuple[NDArray[np.int32], Int], list[str]] | None:  # fmt: skip
    """Return what each row's user took beside its sequence, as of `ShardRows.earlier`, and the names of what no sequence holds.

    None where sequences tell everything.

    Args:
        items: Of all events of the source.
        events: int64 [E], those of whole histories, user by user.
        ahead: Where in `events` those before each row's history begin, and how many they are, int64 [U] each.
        histories: The events of each row's history, ragged [U].
        position: Of the items' codes in the catalogue, −1 for none.
    """
    starts, lengths = ahead
    within = items.codes[histories[0]].astype(np.int64), histories[1]
    rare = ragged.keep(*within, position[within[0]] < 0)
    if not lengths.any() and not len(rare[0]):
        return None
    rows, parts = max(1, _AT_ONCE // max(1, int(lengths.max()))), []
    for first in range(0, len(lengths), rows):
        some = slice(first, first + rows)
        codes = items.codes[events[ragged.positions(starts[some], lengths[some])]].astype(np.int64)
        own = ragged.take(*rare, np.arange(len(lengths))[some])
        parts.append(ragged.distinct(*ragged.side_by_side((codes, ragged.offsets_of(lengths[some])), own)))
    codes, offsets = ragged.concatenate(parts)
    # such an item has no place in the catalogue where no sequence holds it, and may be a label all the same
    others = np.unique(codes[position[codes] < 0])
    values = np.where(position[codes] >= 0, position[codes], -1 - np.searchsorted(others, codes)).astype(np.int32)
    return (values, offsets), [items.names[code] for code in others.tolist()]
