"""Small generated raw data and a reader of data sets that shares no code with the writer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

OCCUPATIONS = ("artist", "doctor", "engineer", "student")


@dataclass(frozen=True)
class ReadBack:
    """A data set read back: `sequences` by user; `labels[task][user]` as (label, split) pairs; names from the vocabularies."""

    info: dict[str, Any]
    sequences: dict[str, list[str | None]]
    labels: dict[str, dict[str, list[tuple[str, int]]]]
    shard_of_user: dict[str, int]


def read_back(folder: Path) -> ReadBack:
    """Read a data set folder with names in place of indices; an unseen item is None."""
    info = json.loads((folder / "dataset.json").read_text())
    items = {row["index"]: row["item"] for row in pq.read_table(folder / "vocab/items.parquet").to_pylist()}
    sequences: dict[str, list[str | None]] = {}
    shard_of_user: dict[str, int] = {}
    labels: dict[str, dict[str, list[tuple[str, int]]]] = {task["name"]: {} for task in info["tasks"]}
    names: dict[str, dict[int, Any]] = {}
    for task in info["tasks"]:
        if task["kind"] == "next":
            names[task["name"]] = {index - 2: item for index, item in items.items()}
        else:
            rows = pq.read_table(folder / f"vocab/{task['name']}.parquet").to_pylist()
            names[task["name"]] = {row["index"]: row["label"] for row in rows}
    for shard in range(info["shards"]):
        users = pq.read_table(folder / f"users/shard-{shard:05d}.parquet").to_pylist()
        for user in users:
            assert user["user_id"] not in sequences
            assert user["user_hash"] % info["shards"] == shard
            sequences[user["user_id"]] = [items[index] for index in user["sequence"]]
            shard_of_user[user["user_id"]] = shard
        for task in info["tasks"]:
            for row in pq.read_table(folder / f"tasks/{task['name']}/shard-{shard:05d}.parquet").to_pylist():
                pairs = [(names[task["name"]][label], split) for label, split in zip(row["labels"], row["split"], strict=True)]
                assert labels[task["name"]].setdefault(users[row["row"]]["user_id"], pairs) is pairs
    return ReadBack(info, sequences, labels, shard_of_user)


@pytest.fixture
def read() -> Callable[[Path], ReadBack]:
    """Give tests the reader."""
    return read_back


def write_atomic(folder: Path, *, users: int = 80, items: int = 60, seed: int = 0) -> list[tuple[str, str, int, int]]:
    """Write RecBole's atomic files of ML-100K's shape; return the ratings (user, item, rating, time) in file order."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ratings = []
    for user in range(1, users + 1):
        for item in generator.choice(items, size=int(generator.integers(20, 50)), replace=False):
            ratings.append((str(user), str(item + 1), int(generator.integers(1, 6)), int(generator.integers(880_000_000, 880_000_040))))
    ratings = [ratings[index] for index in generator.permutation(len(ratings))]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml.inter").write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in ratings))
    people = "".join(f"{user}\t{10 + user % 55}\t{'MF'[user % 2]}\t{OCCUPATIONS[user % 4]}\t5{user:04d}\n" for user in range(1, users + 1))
    (folder / "ml.user").write_text("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + people)
    movies = "".join(f"{item}\tFilm {item}\t19{item:02d}\tDrama Comedy\n" for item in range(1, items + 1))
    (folder / "ml.item").write_text("item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + movies)
    return ratings


@pytest.fixture
def atomic(tmp_path: Path) -> Path:
    """A folder of atomic files of ML-100K's shape."""
    write_atomic(tmp_path / "raw")
    return tmp_path / "raw"


def write_events(folder: Path, events: dict[str, list[Any]], **others: dict[str, list[Any]]) -> Path:
    """Write events, and `users` and `items`, as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in {"events": events, **others}.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def events_folder(tmp_path: Path) -> Callable[..., Path]:
    """Give tests a writer of event folders."""
    return lambda events, **others: write_events(tmp_path / "raw", events, **others)
