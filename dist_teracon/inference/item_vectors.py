"""`dist-teracon item-vectors`: vectors of items from their texts, for `model.item_init` and `--new-items text`.

    item-vectors.json     written last: encoder, settings, counts, checksums of the parts
    part-00042.parquet    item, vector (a list of fixed size)

Works part by part; a stopped job goes on with the same command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_teracon import io
from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.data.item_vectors_file import MANIFEST
from dist_teracon.data.raw.bad_rows import BadRows
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.listing import list_source
from dist_teracon.data.raw.parts import open_parts, read_parts
from dist_teracon.data.raw.table import ColumnSpec
from dist_teracon.errors import ConfigError, DataError, nearest
from dist_teracon.inference.out_folder import OutFolder
from dist_teracon.inference.text_encoder import TextEncoder
from dist_teracon.inference.vectors_file import fixed_lists, write_table

FORMAT_VERSION = 1
ITEMS_A_PART = 20_000


@dataclass(frozen=True)
class ItemTexts:
    """Items and their texts.

    Attributes:
        items, texts: Arrow arrays of texts, of the same length, an item once.
        without: Items of the table that have no text.
        repeated: Further rows of items, which are left out.
    """

    items: pa.Array
    texts: pa.Array
    without: int
    repeated: int

    def checksum(self) -> str:
        """Return the SHA-256 of items and texts."""
        digest = hashlib.sha256()
        for item, text in zip(self.items.to_pylist(), self.texts.to_pylist(), strict=True):
            digest.update(f"{item}\0{text}\0".encode())
        return digest.hexdigest()


def read_texts(uri: str, *, item: str = "item", text: Sequence[str] = ("text",), log: Log = no_log) -> ItemTexts:
    """Read items and their texts from a table, CSV or Parquet; of an item that stands there twice the first row with a text counts.

    Args:
        uri: A file, or a folder of the table's parts.
        item: Column of the ids, as in the raw data.
        text: Columns of the text; several are joined by a blank.
        log: Takes what is passed over.

    Raises:
        DataError: no such file or column, malformed rows, or no item has a text.
    """
    if not text or len({item, *text}) < len(text) + 1:
        raise ConfigError("--text: expected at least one column, each once, and not the items' own")
    if not io.exists(uri):
        raise DataError(f"{uri}: no such file or folder")
    listing = list_source(uri)
    with TemporaryDirectory() as folder:
        context = ReadContext(BadRows(root=uri, adjustable=False), Path(folder), log=log)
        parts = open_parts(
            [listing.uri(name) for name in listing.files], dialect=Dialect(delimiter=",", quote='"'), context=context, guess=True
        )
        for name in (item, *text):
            if name not in parts[0].header:
                option = "--item" if name == item else "--text"
                has = ", ".join(parts[0].header)
                raise DataError(f"{uri}: has no column '{name}'{nearest(name, parts[0].header)} (has: {has}); name it with {option}")
        specs = {item: ColumnSpec("token", required=True), **{name: ColumnSpec("token") for name in text}}
        table = read_parts(parts, specs, context)
    context.bad.tell(uri, log)
    ids = pa.array(table.columns[item], pa.string())
    columns = [pc.fill_null(pa.array(table.columns[name], pa.string()), "") for name in text]
    joined = pc.utf8_trim_whitespace(columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, " "))
    written = np.flatnonzero(np.asarray(pc.not_equal(joined, "")))
    codes = np.asarray(ids.dictionary_encode().indices)
    _, first = np.unique(codes[written], return_index=True)
    rows = written[np.sort(first)]
    if not rows.size:
        raise DataError(f"{uri}: none of {len(ids)} rows has a text in {', '.join(text)}")
    without = len(np.unique(codes)) - rows.size
    return ItemTexts(ids.take(rows), joined.take(rows), without, len(ids) - rows.size - without)


def write_item_vectors(
    texts: ItemTexts, encoder: TextEncoder, out: str, *, batch: int = 64, log: Log = no_log, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the vectors of items' texts into a folder or URI; the same call again goes on, or finds it finished.

    Returns:
        The manifest.

    Raises:
        RunError: `out` holds something else, or vectors of other texts or another encoder.
    """
    folder = OutFolder(out, MANIFEST)
    settings = {
        "encoder": encoder.fingerprint(), "pool": encoder.pool, "max_length": encoder.max_length, "batch": batch,
        "texts": texts.checksum(), "items": len(texts.items), "items_a_part": ITEMS_A_PART,
    }  # fmt: skip
    if folder.claim(settings):
        log(f"{out}: is finished already")
        manifest: dict[str, Any] = folder.read_json(MANIFEST)
        return manifest
    records = []
    parts = -(-len(texts.items) // ITEMS_A_PART)
    for number in (progress or NoProgress()).track(iter(range(parts)), parts, "encoding texts"):
        own = slice(number * ITEMS_A_PART, (number + 1) * ITEMS_A_PART)
        records.append(_part(folder, number, texts.items[own], texts.texts[own], encoder, batch))
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "encoder": encoder.folder.name,
        "width": encoder.width,
        "items": sum(record["items"] for record in records),
        "without_text": texts.without + sum(record["without"] for record in records),
        "repeated": texts.repeated,
        "cut": sum(record["cut"] for record in records),
        "files": {name: entry for record in records for name, entry in record["files"].items()},
    }
    folder.finish(manifest)
    return manifest


def _part(folder: OutFolder, number: int, items: pa.Array, texts: pa.Array, encoder: TextEncoder, batch: int) -> dict[str, Any]:
    """Write a part, or find it written."""
    record, name = f".progress/part-{number:05d}.json", f"part-{number:05d}.parquet"
    if folder.exists(record):
        found: dict[str, Any] = folder.read_json(record)
        return found
    vectors, has, cut = encoder.encode(texts.to_pylist(), batch=batch)
    if not np.isfinite(vectors).all():
        raise DataError(f"{encoder.folder}: a text's vector has numbers that are not finite; the encoder is broken")
    columns = {"item": items.filter(pa.array(has)), "vector": fixed_lists(vectors[has])}
    entry = folder.write(name, partial(write_table, columns=columns, metadata={"dist_teracon.encoder": encoder.folder.name}))
    result = {"items": int(has.sum()), "without": int((~has).sum()), "cut": cut, "files": {name: entry}}
    folder.write_json(record, result)
    return result


def lines_of(manifest: dict[str, Any]) -> list[str]:
    """Return what was written and what was left out, for people."""
    lines = [f"{manifest['items']} items × {manifest['width']}, from {manifest['encoder']}"]
    if manifest["without_text"]:
        lines.append(f"{manifest['without_text']} items have no text, or none that the tokenizer reads; they have no vector")
    if manifest["repeated"]:
        lines.append(f"{manifest['repeated']} further rows of items that stand there before, or without a text; left out")
    if manifest["cut"]:
        lines.append(f"{manifest['cut']} texts reach {manifest['settings']['max_length']} tokens, and were cut there if they are longer")
    return lines


def check_out(out: str) -> None:
    """Check the place of the result before an encoder is loaded.

    Raises:
        ConfigError: it is a file.
    """
    if io.exists(out) and not io.is_folder(out):
        raise ConfigError(f"{out}: is a file; expected a new folder, or one that the same command has begun")
