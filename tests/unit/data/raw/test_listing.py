"""What a source holds: natural order, hidden files, kinds by name and content, patterns; on a disk and on a store alike."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_teracon.data.raw.listing import list_source, natural_key, partition_values, relative_name, stem, table_kind
from dist_teracon.errors import ConfigError, DataError

FILES = (
    "events/part-0.csv", "events/part-10.CSV", "events/part-2.csv.GZ", "events/date=2020-01-31/part-00000", "events/date=2020-01-31/b1.pq",
    "events/._part-0.csv", "events/_SUCCESS", "events/.part-0.csv.crc", "events/part-0.csv.crc", "events/README", "events/x.json",
    "events/_part-1.csv", "users.csv", ".DS_Store", "notes.md", "old/users.csv",
)  # fmt: skip


def put(root: str) -> str:
    """Write the files below a folder or URI."""
    for name in FILES:
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(b"user,item\nu1,i1\n")
    return root


@pytest.fixture(params=["disk", "store"])
def source(request, tmp_path: Path) -> str:
    return put(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")


def test_a_folder_is_listed_in_natural_order_and_every_other_file_is_named(source):
    listing = list_source(source)
    assert listing.files == ["notes.md", "users.csv"]
    assert listing.folders == ["events", "old"]
    read = listing.parts("events")
    assert read == [
        "events/date=2020-01-31/b1.pq", "events/date=2020-01-31/part-00000", "events/part-0.csv", "events/part-2.csv.GZ",
        "events/part-10.CSV",
    ]  # fmt: skip
    listing.leave_others(read, "is not wanted")
    assert listing.not_read == {
        "events/README": "is neither CSV nor Parquet by its name and content",
        "events/x.json": "is neither CSV nor Parquet by its name and content",
        "events/_part-1.csv": "its name begins with '_', as that of a hidden file",
        "notes.md": "is not wanted", "old/": "is not wanted", "users.csv": "is not wanted",
    }  # fmt: skip


def test_patterns_name_files_and_folders(source):
    listing = list_source(source)
    assert listing.match(["*.csv"], where="files.users") == ["users.csv"]
    assert listing.match(["old"], where="files.users") == ["old/users.csv"]
    assert listing.match(["events/part-*"], where="files.events") == ["events/part-0.csv", "events/part-2.csv.GZ", "events/part-10.CSV"]
    assert listing.match(["events/date=2020-01-31"], where="files.events")[0] == "events/date=2020-01-31/b1.pq"
    with pytest.raises(ConfigError, match=r"files\.events: .* has no 'user\.csv'; did you mean 'users\.csv'"):
        listing.match(["user.csv"], where="files.events")


def test_a_source_may_be_one_file(source):
    listing = list_source(f"{source}/users.csv")
    assert (listing.files, listing.is_file, listing.uri("users.csv")) == (["users.csv"], True, f"{source}/users.csv")
    assert relative_name(f"{source}/users.csv", f"{source}/users.csv") == "users.csv"
    assert relative_name(f"{source}/events/a.csv", f"{source}/") == "events/a.csv"
    with pytest.raises(DataError, match="no such folder"):
        list_source(f"{source}/none")


def test_kinds_by_name_or_content(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-0")
    (tmp_path / "part-1").write_text("a\n1\n")
    (tmp_path / "part-2").write_bytes(b"Obj\x01\x00\x00")
    kinds = [table_kind(str(tmp_path / name)) for name in ("part-0", "part-1", "part-2")]
    assert kinds == ["parquet", "text", None]
    assert [table_kind(name) for name in ("a.PQ", "a.tsv.Zst", "a.Parquet", "a.txt.xz")] == ["parquet", "text", "parquet", "text"]
    assert [stem(name) for name in ("Events.CSV.gz", "x/users.pq", "events")] == ["events", "users", "events"]


def test_natural_order_and_partitions():
    assert sorted(["p10", "p2", "p01", "a"], key=natural_key) == ["a", "p01", "p2", "p10"]
    assert partition_values("date=2020-01-31/kind=a%2Fb/none=__HIVE_DEFAULT_PARTITION__/part-0=1.csv") == {
        "date": "2020-01-31", "kind": "a/b", "none": None,
    }  # fmt: skip


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "part-0.csv").write_text("user,item\n")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "events").symlink_to(tmp_path / "real")
    assert list_source(str(tmp_path / "raw")).parts("events") == ["events/part-0.csv"]
