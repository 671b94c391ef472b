"""A damaged file of a data set is noticed by name: by whoever reads it, and by `dist-teracon verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import write_small

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.errors import TeraconError


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(len(content) * place)] ^= 0x10
        path.write_bytes(bytes(content))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": flip(0.75),
    "flipped at the begin": flip(0.02),
    "gone": Path.unlink,
    "garbage": lambda path: path.write_bytes(b"\x93\x00no file of this program\xff" * 9),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def read_all(folder: Path) -> None:
    """Read every file of a data set, as training does."""
    dataset = Dataset(str(folder), cached=False)
    for task in dataset.info.tasks:
        dataset.vocabulary("items" if task.predicts_next else task.name)
        for shard in range(dataset.info.shards):
            dataset.shard(shard)
            dataset.labels(task.name, shard)


def unnoticed(whole: Path, work: Path, names: list[str], damage: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Damage one file after another; returns which passed, or were not named."""
    wrong = []
    for name in names:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        DAMAGES[damage](work / name)
        try:
            read_all(work)
            wrong.append((name, "was read"))
        except TeraconError as error:
            if name not in str(error):
                wrong.append((name, f"is not named: {error}"))
        status = main(["verify", str(work)])
        told = capsys.readouterr()
        if status not in (1, 2) or name not in told.out + told.err:
            wrong.append((name, f"verify: {status}, {told.out}{told.err}"))
    return wrong


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file_when_damaged_is_named(tmp_path, capsys, damage):
    whole = Path(write_small(tmp_path / "whole", shards=2))
    names = ["dataset.json", *json.loads((whole / "dataset.json").read_text())["files"]]
    kinds = {name.rpartition("/shard-")[0] or name: name for name in names}
    assert len(kinds) == 1 + 4 + 1 + 4
    assert unnoticed(whole, tmp_path / "set", list(kinds.values()), damage, capsys) == []
    assert main(["verify", str(whole)]) == 0


@pytest.mark.slow
def test_every_byte_of_the_description_counts(tmp_path):
    """Each byte of `dataset.json` flipped, one after another: refused, or the same description."""
    whole = Path(write_small(tmp_path / "whole", shards=2))
    content, info = (whole / "dataset.json").read_bytes(), Dataset(str(whole)).info
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (whole / "dataset.json").write_bytes(bytes(damaged))
        try:
            assert Dataset(str(whole)).info == info
        except TeraconError as error:
            assert "dataset.json" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_when_damaged_is_named(tmp_path, capsys, damage):
    whole = Path(write_small(tmp_path / "whole"))
    names = list(json.loads((whole / "dataset.json").read_text())["files"])
    assert unnoticed(whole, tmp_path / "set", names, damage, capsys) == []
