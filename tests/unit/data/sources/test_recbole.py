"""ML-100K's recipe on generated data of its shape, against a plain reading of the rule."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe, read_recipe
from dist_teracon.data.schema import read_dataset_info
from dist_teracon.errors import ConfigError, DataError

RECIPES = Path(__file__).parents[4] / "configs" / "recipes"
ML_100K = str(RECIPES / "ml-100k.yaml")


def ratings_of(raw: Path) -> dict[str, list[tuple[float, int, str, float]]]:
    """Return each user's (time, position in the file, item, rating), in time order."""
    rows: dict[str, list[tuple[float, int, str, float]]] = {}
    for position, line in enumerate((raw / "ml.inter").read_text().splitlines()[1:]):
        user, item, rating, time = line.split("\t")
        rows.setdefault(user, []).append((float(time), position, item, float(rating)))
    return {user: sorted(events) for user, events in rows.items()}


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())).hexdigest()


@pytest.fixture
def made(atomic: Path, tmp_path: Path) -> Path:
    prepare("recbole", str(atomic), str(tmp_path / "out"), recipe=ML_100K)
    return tmp_path / "out"


def test_histories_are_the_last_thirty_low_ratings_in_time_then_file_order(atomic, made, read):
    low = {user: [item for _, _, item, rating in rows if rating <= 3] for user, rows in ratings_of(atomic).items()}
    assert read(made).sequences == {user: items[-30:] for user, items in low.items() if len(items) >= 3}


def test_item_labels_are_five_of_the_movies_with_that_rating(atomic, made, read):
    back = read(made)
    for task, star in (("star4", 4), ("star5", 5)):
        for user, rows in ratings_of(atomic).items():
            rated = [item for _, _, item, rating in rows if rating == star]
            drawn = [label for label, _ in back.labels[task].get(user, [])]
            assert len(set(drawn)) == len(drawn) == min(5, len(rated))
            assert set(drawn) <= set(rated)


def test_profiles_are_the_users_attributes(atomic, made, read):
    back = read(made)
    for user, pairs in back.labels["age"].items():
        edges = [18, 25, 35, 45, 50, 56]
        names = ["<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
        assert pairs[0][0] == names[int(np.searchsorted(edges, 10 + int(user) % 55, side="right"))]
    assert {user: pairs[0][0] for user, pairs in back.labels["gender"].items()} == {user: "MF"[int(user) % 2] for user in back.sequences}
    assert [task["labels"] for task in back.info["tasks"]][3:] == [7, 2, 4]


def test_the_first_task_predicts_the_last_item(made, read):
    back = read(made)
    assert {user: pairs[0][0] for user, pairs in back.labels["next"].items()} == {user: items[-1] for user, items in back.sequences.items()}


def test_a_user_has_one_split_in_all_tasks_and_quotas_are_exact(made, read):
    back = read(made)
    splits: dict[str, set[int]] = {}
    for users in back.labels.values():
        for user, pairs in users.items():
            splits.setdefault(user, set()).update(split for _, split in pairs)
    assert all(len(own) == 1 for own in splits.values())
    assert np.bincount([own.pop() for own in splits.values()]).tolist() == [64, 4, 12]


def test_splits_by_row_cut_each_task_by_its_examples(atomic, tmp_path, read):
    info = prepare("recbole", str(atomic), str(tmp_path / "rows"), recipe=ML_100K, split="rows")
    for task in info.tasks:
        count = sum(task.examples)
        assert task.examples[2] == round(count * 0.15)
        assert task.examples[1] == round(count * 0.2) - round(count * 0.15)
    mixed = [user for user, pairs in read(tmp_path / "rows").labels["star4"].items() if len({split for _, split in pairs}) > 1]
    assert mixed  # rows of one user lie in several parts


def test_equal_input_gives_equal_bytes_and_another_seed_another_draw(atomic, made, tmp_path, read):
    prepare("recbole", str(atomic), str(tmp_path / "again"), recipe=ML_100K)
    assert digest(tmp_path / "again") == digest(made)
    other = read_recipe(ML_100K).model_copy(update={"seed": 1})
    prepare("recbole", str(atomic), str(tmp_path / "other"), recipe=other)
    assert read(tmp_path / "other").sequences == read(made).sequences
    assert read(tmp_path / "other").labels != read(made).labels


def test_the_order_of_the_users_in_the_file_does_not_matter(atomic, made, tmp_path, read):
    lines = (atomic / "ml.inter").read_text().splitlines()
    (atomic / "ml.inter").write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: line.split("\t")[0])]) + "\n")
    prepare("recbole", str(atomic), str(tmp_path / "sorted"), recipe=ML_100K)
    assert read(tmp_path / "sorted").labels["star4"] == read(made).labels["star4"]


def test_checksums_rows_and_bytes_of_every_file_are_told(made):
    info = read_dataset_info(str(made))
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert set(info.files) == files - {"dataset.json"}
    for path, entry in info.files.items():
        content = (made / path).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_second_run_does_nothing_and_says_so(atomic, made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    said: list[str] = []
    info = prepare("recbole", str(atomic), str(made), recipe=ML_100K, log=said.append)
    assert info == read_dataset_info(str(made))
    assert len(said) == 1
    assert "nothing to do" in said[0]
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_another_input_or_option_does_not_overwrite(atomic, made):
    before = digest(made)
    with pytest.raises(DataError, match="differs in: split"):
        prepare("recbole", str(atomic), str(made), recipe=ML_100K, split="rows")
    (atomic / "ml.inter").write_text((atomic / "ml.inter").read_text().replace("\t3\t", "\t2\t"))
    with pytest.raises(DataError, match="differs in: files"):
        prepare("recbole", str(atomic), str(made), recipe=ML_100K)
    assert digest(made) == before


def test_a_damaged_data_set_is_not_taken_for_whole(atomic, made):
    (made / "users" / "shard-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"shard-00003\.parquet: is missing or changed"):
        prepare("recbole", str(atomic), str(made), recipe=ML_100K)


def test_a_folder_of_something_else_is_left_alone(atomic, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is no data set"):
        prepare("recbole", str(atomic), str(tmp_path / "out"), recipe=ML_100K)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_folds_put_each_user_into_the_test_window_once(atomic, tmp_path, read):
    tested: list[str] = []
    base = {"history": {"events": {"value": "<= 3"}, "length": 30, "minimum": 3}, "tasks": {"gender": {"kind": "profile"}}}
    for fold in range(3):
        recipe = parse_recipe({**base, "split": {"folds": 3, "fold": fold}})
        info = prepare("recbole", str(atomic), str(tmp_path / f"fold{fold}"), recipe=recipe)
        assert info.split.test == pytest.approx(1 / 3)
        assert info.split.train == pytest.approx(1 - 1 / 3 - 0.05)
        tested += [user for user, pairs in read(tmp_path / f"fold{fold}").labels["gender"].items() if pairs[0][1] == 2]
    assert sorted(tested) == sorted(str(user) for user in range(1, 81))


def test_a_data_set_goes_to_a_store_as_to_a_disk(atomic, made):
    import fsspec

    info = prepare("recbole", str(atomic), "memory://sets/ml", recipe=ML_100K)
    assert info == read_dataset_info("memory://sets/ml") == read_dataset_info(str(made))
    for path in info.files:
        with fsspec.open(f"memory://sets/ml/{path}", "rb") as file:
            assert file.read() == (made / path).read_bytes()


def test_shard_counts_change_only_where_rows_lie(atomic, made, tmp_path, read):
    info = prepare("recbole", str(atomic), str(tmp_path / "three"), recipe=ML_100K, shards=3)
    assert info.shards == 3
    assert read(tmp_path / "three").labels == read(made).labels
    with pytest.raises(ConfigError, match="--shards"):
        prepare("recbole", str(atomic), str(tmp_path / "none"), recipe=ML_100K, shards=0)


def test_nothing_of_the_machine_is_written(made, tmp_path):
    assert str(tmp_path) not in (made / "dataset.json").read_text()
    assert json.loads((made / "dataset.json").read_text())["source"]["format"] == "recbole"


def movielens_100k(raw: Path, out: Path) -> Path:
    """Turn atomic files into 100k's own files."""
    out.mkdir()
    strip = [line.split("\t") for line in (raw / "ml.inter").read_text().splitlines()[1:]]
    (out / "u.data").write_text("".join("\t".join(row) + "\n" for row in strip))
    users = [line.split("\t") for line in (raw / "ml.user").read_text().splitlines()[1:]]
    (out / "u.user").write_text("".join("|".join(row) + "\n" for row in users))
    flags = "|".join("1" if genre in (5, 8) else "0" for genre in range(19))
    items = [line.split("\t") for line in (raw / "ml.item").read_text().splitlines()[1:]]
    (out / "u.item").write_bytes("".join(f"{row[0]}|Café {row[0]} (1994)|01-Jan-1994||http|{flags}\n" for row in items).encode("latin-1"))
    return out


def movielens_1m(raw: Path, out: Path) -> Path:
    """Turn atomic files into 1m's own files."""
    out.mkdir()
    strip = [line.split("\t") for line in (raw / "ml.inter").read_text().splitlines()[1:]]
    (out / "ratings.dat").write_text("".join("::".join(row) + "\n" for row in strip))
    users = [line.split("\t") for line in (raw / "ml.user").read_text().splitlines()[1:]]
    (out / "users.dat").write_text("".join("::".join((row[0], row[2], row[1], row[3], row[4])) + "\n" for row in users))
    (out / "movies.dat").write_bytes("".join(f"{item}::Café: {item} (1994)::Comedy|Drama\n" for item in range(1, 61)).encode("latin-1"))
    return out


@pytest.mark.parametrize("release", [movielens_100k, movielens_1m])
def test_movielens_as_downloaded_is_the_same_data(atomic, made, tmp_path, read, release):
    prepare("movielens", str(release(atomic, tmp_path / "release")), str(tmp_path / "ml"), recipe=ML_100K)
    assert read(tmp_path / "ml").labels == read(made).labels
    assert read(tmp_path / "ml").sequences == read(made).sequences


def test_movielens_csv_has_no_users_but_genres(atomic, made, tmp_path, read):
    (tmp_path / "ml-25m").mkdir()
    rows = [line.split("\t") for line in (atomic / "ml.inter").read_text().splitlines()[1:]]
    (tmp_path / "ml-25m" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in rows))
    movies = [f'{item},"Film, The ""{item}""",{"Drama|War" if item % 2 else "Comedy"}\n' for item in range(1, 61)]
    (tmp_path / "ml-25m" / "movies.csv").write_text("movieId,title,genres\n" + "".join(movies))
    with pytest.raises(ConfigError, match=r"tasks\.age\.attribute: the source has no attributes of users"):
        prepare("movielens", str(tmp_path / "ml-25m"), str(tmp_path / "bad"), recipe=ML_100K)
    recipe = parse_recipe({
        "history": {"events": {"value": "<= 3"}, "length": 30, "minimum": 3},
        "tasks": {"genre": {"kind": "item", "events": {"value": ">= 4"}, "label": "genres"}},
    })  # fmt: skip
    prepare("movielens", str(tmp_path / "ml-25m"), str(tmp_path / "out25"), recipe=recipe)
    assert read(tmp_path / "out25").sequences == read(made).sequences
    liked = {user: {int(item) % 2 for _, _, item, rating in rows if rating >= 4} for user, rows in ratings_of(atomic).items()}
    for user, pairs in read(tmp_path / "out25").labels["genre"].items():
        assert {label for label, _ in pairs} == {"Drama|War" if odd else "Comedy" for odd in liked[user]}


def test_heavy_libraries_stay_out():
    import subprocess
    import sys

    heavy = "('torch', 'ray', 'deepspeed', 'triton', 'rich')"
    code = f"import sys, dist_teracon.data.prepare.pipeline; print([m for m in {heavy} if m in sys.modules])"
    assert importlib.util.find_spec("dist_teracon") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
