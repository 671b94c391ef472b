"""A toy source, as docs/extending.md shows it: a folder of `*.jsonl`, a line an event, `{"user": "u1", "item": "i7", "time": 3}`."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from dist_teracon import io
from dist_teracon.data.raw.categorical import Categorical
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.files import LineBlocks
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.sources.base import EventData, Events, SourceFormat, folder_name, natural_key
from dist_teracon.errors import DataError


def files(folder: str, recipe: Recipe | None) -> list[str]:
    names = [name for name in io.list_folder(folder) if name.endswith(".jsonl")]
    if not names:
        raise DataError(f"{folder}: no *.jsonl file there")
    return [io.join(folder, name) for name in sorted(names, key=natural_key)]


def read(folder: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    events = [event for uri in files(folder, recipe) for event in _events(uri, context)]
    user, item = (Categorical.from_arrow(pa.array([event[part] for event in events], pa.string())) for part in (0, 1))
    return EventData(folder_name(folder), Events(user, item, np.array([time for *_, time in events], dtype=np.float64)))


def _events(uri: str, context: ReadContext) -> list[tuple[str, str, float]]:
    found, lines, blocks = [], 0, LineBlocks(uri, size=context.block)
    for block in blocks:
        for number, line in enumerate(block.content.splitlines(), start=block.first):
            lines += 1
            try:
                event = json.loads(line)
                found.append((str(event["user"]), str(event["item"]), float(event["time"])))
            except (ValueError, LookupError, TypeError):
                context.bad.add("no event", f"{uri}:{number}", text=line.decode(errors="replace"))
        context.report_position(uri, blocks.position)
    context.bad.check(uri, lines)
    context.sha256[uri] = blocks.sha256
    return found


FORMAT = SourceFormat(files, read)
