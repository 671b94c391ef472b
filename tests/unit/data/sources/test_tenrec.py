"""Tenrec's public CSV against a plain reading of its rows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.errors import ConfigError, DataError

RECIPE = str(Path(__file__).parents[4] / "configs" / "recipes" / "tenrec.yaml")
HEAD = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age\n"


@pytest.fixture
def rows() -> list[tuple[int, ...]]:
    draw = np.random.default_rng(4)
    found = []
    for _ in range(3000):
        user, item = int(draw.integers(70)), int(draw.integers(40))
        flags = (draw.random(4) < (0.7, 0.05, 0.2, 0.2)).astype(int).tolist()
        found.append((user, item, *flags, item % 4, int(draw.integers(9)), 1 + user % 2, user % 7))
    return found


def write(folder: Path, rows: list[tuple[int, ...]], parts: int = 1) -> Path:
    folder.mkdir()
    size = -(-len(rows) // parts)
    for part in range(parts):
        text = "".join(",".join(map(str, row)) + "\n" for row in rows[part * size : (part + 1) * size])
        (folder / f"QK-video-{part}.csv").write_text(HEAD + text)
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_flags_are_events_and_profiles_attributes(tmp_path, rows, parts, read):
    info = prepare("tenrec", str(write(tmp_path / "raw", rows, parts)), str(tmp_path / "out"), recipe=RECIPE)
    assert [task.name for task in info.tasks] == ["clicks", "like", "share", "category", "age", "gender"]
    back = read(tmp_path / "out")
    clicked, liked = defaultdict(list), defaultdict(set)
    for user, item, click, _, like, *_ in rows:
        if click:
            clicked[str(user)].append(str(item))
        if like:
            liked[str(user)].add(str(item))
    assert back.sequences == {user: items[-100:] for user, items in clicked.items() if len(items) >= 3}
    for user, pairs in back.labels["like"].items():
        drawn = [label for label, _ in pairs]
        assert len(set(drawn)) == len(drawn) == min(5, len(liked[user]))
        assert set(drawn) <= liked[user]
    for user, pairs in back.labels["category"].items():
        assert {label for label, _ in pairs} == {str(int(item) % 4) for item in liked[user]}
    assert {user: pairs[0][0] for user, pairs in back.labels["age"].items()} == {user: str(int(user) % 7) for user in back.sequences}
    assert {user: pairs[0][0] for user, pairs in back.labels["gender"].items()} == {user: str(1 + int(user) % 2) for user in back.sequences}


def test_columns_that_are_not_tenrecs(tmp_path, rows):
    raw = write(tmp_path / "raw", rows)
    path = raw / "QK-video-0.csv"
    text = path.read_text()
    path.write_text(text.replace("user_id", "user"))
    with pytest.raises(DataError, match=r"QK-video-0\.csv:1: no column 'user_id'"):
        prepare("tenrec", str(raw), str(tmp_path / "out"), recipe=RECIPE)
    path.write_text(text.replace("click,follow,like,share", "a,b,c,d"))
    with pytest.raises(DataError, match="none of the columns click, follow"):
        prepare("tenrec", str(raw), str(tmp_path / "out"), recipe=RECIPE)
    path.unlink()
    with pytest.raises(DataError, match=r"no \*\.csv file there"):
        prepare("tenrec", str(raw), str(tmp_path / "out"), recipe=RECIPE)
    with pytest.raises(ConfigError, match="--recipe"):
        prepare("tenrec", str(raw), str(tmp_path / "out"))


def test_a_flag_that_is_no_number_is_a_malformed_row(tmp_path, rows):
    raw = write(tmp_path / "raw", rows)
    path = raw / "QK-video-0.csv"
    path.write_text(path.read_text() + "1,2,yes,0,0,0,1,1,1,1\n")
    with pytest.raises(DataError, match=r"1 × click is not a number, first at .*QK-video-0\.csv:3002: 'yes'"):
        prepare("tenrec", str(raw), str(tmp_path / "out"), recipe=RECIPE, max_bad_rows=0.0)
