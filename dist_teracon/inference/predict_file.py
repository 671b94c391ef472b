"""`dist-teracon predict`: the best labels of many users, into a Parquet file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dist_teracon.console import Log, NoProgress, Progress, no_log
from dist_teracon.errors import ConfigError
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.out_folder import write_file
from dist_teracon.inference.sources import UserSource

# Users whose predictions are held at a time.
_AT_ONCE = 4096
_SCHEMA = pa.schema({"user": pa.string(), "labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())})


# Endings of other forms, under which nobody would look for Parquet.
_OTHER_FORMS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".gz", ".zst", ".npy", ".arrow")


def check_name(out: str) -> None:
    """Refuse a name of another form than Parquet, before anything is read.

    Raises:
        ConfigError: it ends as those of other forms do.
    """
    if out.lower().endswith(_OTHER_FORMS):
        raise ConfigError(f"predict {out}: the file is Parquet; give it a name that ends with .parquet")


def predict_to_file(
    model: PretrainedModel, source: UserSource, out: str, task: str, *,
    top: int = 10, exclude_seen: bool | None = None, normalise: bool = False, log: Log = no_log, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write the best labels of a source's users: a row a user with `labels` and `scores`, best first; returns how many users.

    The file's metadata names run, stage, data and task. It appears whole.

    Raises:
        DataError: `out` is there already.
        ConfigError: an unknown task; see `PretrainedModel.predict`.
    """
    model.task(task)
    for note in source.notes:
        log(note)
    metadata = {
        "dist_teracon.run": model.fingerprint,
        "dist_teracon.stage": str(model.stage),
        "dist_teracon.data": str(source.name["version"]),
        "dist_teracon.task": task,
    }
    users = unknown = 0

    def fill(path: Path) -> None:
        nonlocal users, unknown
        with pq.ParquetWriter(path, _SCHEMA.with_metadata(metadata), compression="zstd") as writer:
            for part in (progress or NoProgress()).track(iter(range(source.parts)), source.parts, f"predicting {task}"):
                histories = source.histories(part)
                unknown += histories.unknown
                for first in range(0, len(histories), _AT_ONCE):
                    chunk = histories.slice(first, min(first + _AT_ONCE, len(histories)))
                    found = model.predict(chunk, task, top=top, exclude_seen=exclude_seen, normalise=normalise)
                    writer.write_table(found.to_arrow().cast(_SCHEMA.with_metadata(metadata)))
                    users += len(found)

    write_file(out, fill)
    if unknown and source.name["kind"] == "dataset":  # of events it stands among the notes
        log(f"{unknown} events are of items that the model does not know; it reads them as unseen")
    return users
