"""No event is read twice: a file in two forms, a link to another file, a table whose folder keeps replaced files."""

from __future__ import annotations

import gzip

import pytest
from event_tables import PARTS, TABLE, WHOLE, csv, parquet, refused, rows

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.errors import ConfigError, DataError

SEQUENCES = b"".join(b"0,0,%d,%d,%d\n" % (user + 1, user % 5 + 30, user % 3 + 50) for user in range(20))
IMPRESSIONS = b"user_id,item_id,click\n" + b"".join(b"u%d,i%d,1\n" % (user, item) for user in range(20) for item in range(4))


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("events", {"events/part-0.csv": WHOLE, "events/part-0.csv.gz": gzip.compress(WHOLE)}),
        ("events", {"events/part-0.csv": WHOLE, "events/part-0.parquet": parquet(TABLE)}),
        ("events", {"events/d=1/part-0.CSV": WHOLE, "events/d=1/part-0": WHOLE}),
        ("tenrec", {"a.csv": IMPRESSIONS, "a.csv.gz": gzip.compress(IMPRESSIONS)}),
        ("sequence-csv", {"1_next/part-0.csv": SEQUENCES, "1_next/part-0.csv.gz": gzip.compress(SEQUENCES)}),
    ],
)
def test_a_file_in_two_forms_is_refused(made, format, files):
    refused(made, files, "'(.*)' and '(.*)' are one table in two forms; keep one of them", format=format)


def test_parts_of_equal_names_in_several_folders_are_all_read(made):
    back = made({"events/d=1/part-0.csv": csv(rows(0, 40)), "events/d=2/part-0.csv.gz": gzip.compress(csv(rows(40, 80)))}, PARTS)
    assert back.info["events"] == 80


@pytest.mark.parametrize("pattern", [None, "events-*"])
def test_a_link_to_a_file_that_is_read_is_refused(tmp_path, pattern):
    folder = tmp_path / "raw" / ("events/2020" if pattern is None else "")
    folder.mkdir(parents=True)
    (folder / "events-2020.csv").write_bytes(WHOLE)
    if pattern is None:
        (folder.parent / "latest").symlink_to("2020")
    else:
        (folder / "events-latest.csv").symlink_to("events-2020.csv")
    recipe = parse_recipe({**PARTS, **({} if pattern is None else {"files": {"events": pattern}})})
    with pytest.raises(DataError, match="are one file, by a link; keep one of them"):
        prepare("events", str(tmp_path / "raw"), str(tmp_path / "out"), recipe=recipe)


def test_tables_whose_log_decides_over_their_files_are_refused(made):
    part = parquet(TABLE)
    refused(made, {"events/_delta_log/00.json": b"{}", "events/a.parquet": part, "events/b.parquet": part}, "is a table of Delta Lake")
    refused(made, {"events/.hoodie/x": b"{}", "events/a.parquet": part, "events/b.parquet": part}, "is a table of Hudi")
    iceberg = {"events/metadata/v2.metadata.json": b"{}", "events/data/a.parquet": part, "events/data/b.parquet": part}
    refused(made, iceberg, "is a table of Iceberg")


def test_a_release_of_movielens_without_users_takes_none(made):
    ratings = b"userId,movieId,rating,timestamp\n1,1,3,1600000000\n"
    recipe = {"files": {"users": "users.csv"}, **PARTS}
    refused(
        made,
        {"ratings.csv": ratings, "users.csv": b"userId,g\n1,m\n"},
        "files.users: a release of ratings.csv has no users",
        recipe,
        error=ConfigError,
        format="movielens",
    )
