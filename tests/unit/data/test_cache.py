"""The local cache: what it maps is what was prepared, made once, whole or not at all."""

from __future__ import annotations

import multiprocessing
import shutil

import numpy as np
import pytest

from dist_teracon.data import dataset as dataset_module
from dist_teracon.data.cache import cache_folder
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import DataError

COLUMNS = ("user_hash", "values", "offsets", "targets"), ("users", "values", "offsets", "split")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIST_TERACON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def columns_of(dataset):
    found = []
    for index in range(dataset.info.shards):
        for part, names in zip((dataset.shard(index), dataset.labels("likes", index)), COLUMNS, strict=True):
            found += [getattr(part, name) for name in names]
    return found


def same(ours, theirs):
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(make_dataset, cache, monkeypatch):
    plain = make_dataset(users=20)
    cache.write_text("a file")
    with pytest.raises(
        DataError, match=r"cache: copies of data sets cannot be kept there \(.*\); name another folder .* DIST_TERACON_CACHE"
    ):
        columns_of(Dataset(plain.uri, cached=True))
    for name in ("DIST_TERACON_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", missing_home)
    with pytest.raises(DataError, match=r"there is no home folder .* DIST_TERACON_CACHE"):
        cache_folder()


def missing_home():
    raise RuntimeError("Could not determine home directory.")


def test_mapped_columns_are_those_of_the_files(make_dataset):
    plain = make_dataset(users=70)
    for _ in range(2):  # made, then found
        assert same(columns_of(Dataset(plain.uri, cached=True)), columns_of(plain))


def test_a_mapped_column_lies_on_disk_and_is_read_only(make_dataset):
    (values,) = (Dataset(make_dataset().uri, cached=True).shard(0).values,)
    assert isinstance(values.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_what_is_cached_is_read_without_the_data_set(make_dataset, tmp_path):
    whole = make_dataset()
    shutil.copytree(whole.uri, tmp_path / "set")
    columns_of(Dataset(str(tmp_path / "set"), cached=True))
    for path in (tmp_path / "set").glob("*/**/*.parquet"):
        path.unlink()
    assert same(columns_of(Dataset(str(tmp_path / "set"), cached=True)), columns_of(whole))


def test_a_file_cut_off_in_the_cache_is_made_again(make_dataset, cache):
    whole = make_dataset()
    columns_of(Dataset(whole.uri, cached=True))
    broken = sorted(cache.glob("flat-1/*/*/values.npy"))
    broken[0].write_bytes(broken[0].read_bytes()[:-1])
    broken[1].write_bytes(b"")
    broken[2].unlink()
    assert same(columns_of(Dataset(whole.uri, cached=True)), columns_of(whole))


def _open_all(uri):
    return len(columns_of(Dataset(uri, cached=True)))


def test_several_processes_make_one_cache(make_dataset, cache):
    whole = make_dataset()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_open_all, [whole.uri] * 6))) == 1
    assert same(columns_of(Dataset(whole.uri, cached=True)), columns_of(whole))
    assert not list(cache.rglob(".*"))  # nothing half-made is left


def test_small_sets_stay_out_of_the_cache(make_dataset, cache, monkeypatch):
    columns_of(Dataset(make_dataset().uri))
    assert not cache.exists()
    monkeypatch.setattr(dataset_module, "CACHE_FROM", 10)
    columns_of(Dataset(make_dataset().uri))
    assert cache.exists()
