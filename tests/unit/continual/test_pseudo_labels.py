"""Pools of users, the store of pseudo-labels and the stream of replayed rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_teracon.continual.pseudo_labels import write_pseudo_labels
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.continual.replayed_users import SMALL_TASK, PastPool, pool_of_users, pool_share
from dist_teracon.continual.target_store import hash_of_weights, open_store, read_shard
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.schema import Split
from dist_teracon.errors import RunError

SHARDS, WIDTH = 8, 3
MASKS = {"next": 2, "age": 0}


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(users=80)


def pool_of(dataset, share=1.0, *, task="likes", past="next", seed=0):
    return pool_of_users(dataset, task, past, seed=seed, share=share)


class Teacher:
    """Answers with numbers that follow from a row's items, and keeps count of the rows it was asked about."""

    def __init__(self):
        self.rows, self.passes = 0, []

    def __call__(self, batch, parts):
        assert batch.positions == "last" and all(count for _, count in parts)
        # rows lie task by task, each under its own mask; a task's name and its mask are part of the answer
        assert batch.task_of_row.tolist() == [MASKS[task] for task, count in parts for _ in range(count)]
        self.rows += batch.rows
        self.passes.append(([task for task, _ in parts], batch.values.tolist()))
        told = answers(batch.values.tolist(), batch.row_offsets.tolist())
        return [part + 1000 * (task != "next") for (task, _), part in zip(parts, told.split([count for _, count in parts]), strict=True)]


def answers(values, offsets):
    rows = [values[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]  # noqa: RUF007
    return torch.tensor([[sum(row), len(row), row[-1]] for row in rows], dtype=torch.float32).view(-1, WIDTH)


def write(dataset, pool, folder, *, shards=None, **options):
    teacher = Teacher()
    numbers = range(dataset.info.shards) if shards is None else shards
    pools = [PastPool("next", MASKS["next"], pool)]
    for path in write_pseudo_labels(teacher, dataset, pools, folder=folder, shards=numbers, batch=3, **options):
        assert path.exists()
    return teacher.rows


def opened(folder, pool, shards=range(SHARDS)):
    return open_store(folder, PastPool("next", MASKS["next"], pool), shards, WIDTH)


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in (folder / "next").iterdir()}


def size(pool):
    return sum(len(rows) for rows in pool)


# -- pools


def test_a_whole_pool_is_the_tasks_training_users(dataset):
    for rows, shard in zip(pool_of(dataset), range(SHARDS), strict=True):
        assert sorted(rows.tolist()) == dataset.labels("likes", shard).of(Split.TRAIN).users.tolist()


@given(shares=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)))
def test_a_smaller_pool_is_the_beginning_of_a_larger_one(dataset, shares):
    small, large = (pool_of(dataset, share) for share in sorted(shares))
    for few, more in zip(small, large, strict=True):
        assert few.tolist() == more[: len(few)].tolist()


def test_a_pool_has_about_its_share_and_depends_on_tasks_and_seed(make_dataset):
    dataset = make_dataset(users=2000)
    everyone = size(pool_of(dataset))
    assert 0.25 < size(pool_of(dataset, 0.3)) / everyone < 0.35
    pools = [np.concatenate(pool_of(dataset, 0.3, **other)).tolist() for other in ({}, {"past": "age"}, {"task": "age"}, {"seed": 1})]
    assert len({tuple(pool) for pool in pools}) == 4
    assert np.concatenate(pool_of(dataset, 0.3)).tolist() == pools[0]


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ({"setting": 0.25, "users": 10**7, "max_steps": 1}, 0.25),
        ({"setting": "auto", "users": SMALL_TASK}, 1.0),
        ({"setting": "auto", "users": SMALL_TASK + 1}, 0.2),
        ({"setting": "auto", "users": 10**6, "largest_rate": 0.9}, 1.0),
        # 10 steps draw at most 4 · 0.05 · 100 rows each
        ({"setting": "auto", "users": 50_000, "max_steps": 10}, 200 / 50_000),
        ({"setting": "auto", "users": 50, "max_steps": 1}, 1.0),
        ({"setting": "auto", "users": 1000, "max_steps": 1}, 0.1),
        # a floor of 64 rows of 256 draws a quarter of the users in an epoch, whatever ρ is
        ({"setting": "auto", "users": 10**6, "largest_rate": 0.0025, "batch": 256, "minimum": 64}, 0.25),
        ({"setting": "auto", "users": 10**6, "largest_rate": 0.1, "batch": 256, "minimum": 64}, 0.4),
        ({"setting": "auto", "users": 10**6, "largest_rate": 0.0025, "batch": 32, "minimum": 64}, 1.0),
        ({"setting": "auto", "users": 50_000, "largest_rate": 0.0025, "batch": 256, "minimum": 64, "max_steps": 10}, 640 / 50_000),
    ],
)
def test_share_of_a_pool(arguments, share):
    given = {"largest_rate": 0.05, "batch": 100, "minimum": 1, "max_steps": None, **arguments}
    assert pool_share(given.pop("setting"), **given) == pytest.approx(share)


# -- the store


def test_the_store_of_another_teacher_is_made_anew_with_a_warning(dataset, tmp_path):
    pool, said = pool_of(dataset), []
    assert write(dataset, pool, tmp_path, teacher="one") == size(pool)
    assert write(dataset, pool, tmp_path, teacher="one", log=said.append) == 0 and said == []
    assert write(dataset, pool, tmp_path, teacher="other", log=said.append) == size(pool)
    assert len(said) == SHARDS and all("another teacher has made it; these pseudo-labels are made anew" in line for line in said)
    assert write(dataset, pool, tmp_path, teacher="other") == 0


def test_the_hash_of_weights_is_of_names_types_shapes_and_every_bit():
    weights = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3], dtype=torch.int64)}
    known = hash_of_weights(weights)
    assert hash_of_weights(dict(reversed(weights.items()))) == known
    others = [
        {**weights, "a": weights["a"].T}, {**weights, "a": weights["a"].double()}, {"c": weights["a"], "b": weights["b"]},
        {**weights, "a": torch.nextafter(weights["a"], torch.tensor(9.0))},
    ]  # fmt: skip
    assert len({known, *(hash_of_weights(other) for other in others)}) == 5


def test_store_holds_the_teachers_answers_row_by_row(dataset, tmp_path):
    pool = pool_of(dataset)
    assert write(dataset, pool, tmp_path) == size(pool)
    for shard, rows in enumerate(pool):
        kept, targets = read_shard(tmp_path / "next" / f"shard-{shard:05d}.arrow")
        data = dataset.shard(shard)
        wanted = [data.values[data.offsets[row] : data.offsets[row + 1]].tolist() for row in rows]
        assert kept.tolist() == rows.tolist()
        assert targets.tolist() == [[sum(row), len(row), row[-1]] for row in wanted]


def test_a_shards_checksum_is_that_of_its_file(dataset, tmp_path):
    write(dataset, pool_of(dataset), tmp_path)
    for path in (tmp_path / "next").glob("*.arrow"):
        noted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert noted["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_second_run_writes_nothing_and_a_killed_one_goes_on(dataset, tmp_path):
    pool = pool_of(dataset)
    write(dataset, pool, tmp_path)
    before = contents(tmp_path)
    assert write(dataset, pool, tmp_path) == 0
    assert contents(tmp_path) == before
    (tmp_path / "next/shard-00003.arrow").unlink()
    assert write(dataset, pool, tmp_path) == len(pool[3])
    assert contents(tmp_path)["shard-00003.arrow"][0] == before["shard-00003.arrow"][0]


def test_a_larger_pool_extends_the_store_and_a_smaller_one_leaves_it(dataset, tmp_path):
    small, large = pool_of(dataset, 0.4), pool_of(dataset)
    write(dataset, small, tmp_path / "grown")
    assert write(dataset, large, tmp_path / "grown") == size(large) - size(small) > 0
    write(dataset, large, tmp_path / "fresh")
    grown = contents(tmp_path / "grown")
    assert {name: content for name, (content, _) in grown.items()} == {n: c for n, (c, _) in contents(tmp_path / "fresh").items()}
    assert write(dataset, small, tmp_path / "grown") == 0
    assert contents(tmp_path / "grown") == grown
    store = opened(tmp_path / "grown", small)
    assert [len(store.shards[shard]) for shard in range(SHARDS)] == [len(rows) for rows in small]


def test_another_pool_is_made_anew(dataset, tmp_path):
    write(dataset, pool_of(dataset, seed=1), tmp_path / "store")
    pool = pool_of(dataset)
    assert write(dataset, pool, tmp_path / "store") == size(pool)
    write(dataset, pool, tmp_path / "fresh")
    for shard in range(SHARDS):
        name = f"shard-{shard:05d}.arrow"
        assert (tmp_path / "store/next" / name).read_bytes() == (tmp_path / "fresh/next" / name).read_bytes()


def test_shards_without_rows_have_the_stores_width(dataset, tmp_path):
    pool = [rows[:0] if shard % 2 else rows for shard, rows in enumerate(pool_of(dataset))]
    write(dataset, pool, tmp_path)
    store = opened(tmp_path, pool)
    assert {store.shards[shard].shape[1] for shard in range(SHARDS)} == {WIDTH}
    full = pool_of(dataset)
    assert write(dataset, full, tmp_path) == size(full) - size(pool)


# -- several past tasks


def write_both(dataset, pools, folder, *, stop=None, batch=7):
    """Write two past tasks' labels, at most `stop` files; returns the teacher."""
    teacher = Teacher()
    named = [PastPool(task, MASKS[task], rows) for task, rows in zip(MASKS, pools, strict=True)]
    written = write_pseudo_labels(teacher, dataset, named, folder=folder, shards=range(SHARDS), batch=batch, teacher="t")
    for number, _ in enumerate(written, start=1):
        if number == stop:
            break
    written.close()
    return teacher


def two_pools(dataset, share):
    return [pool_of(dataset, share), pool_of(dataset, share, past="age")]


def test_rows_of_several_past_tasks_share_a_pass_and_each_has_its_own_targets(dataset, tmp_path):
    pools = two_pools(dataset, 1.0)
    teacher = write_both(dataset, pools, tmp_path)
    assert teacher.rows == sum(map(size, pools))
    assert ["next", "age"] in [tasks for tasks, _ in teacher.passes]  # the last rows of one and the first of the other
    full = [sum(len(rows[shard]) for rows in pools) for shard in range(SHARDS)]
    assert len(teacher.passes) == sum(-(-rows // 7) for rows in full)  # fuller than passes of their own
    for place, (task, rows) in enumerate(zip(MASKS, pools, strict=True)):
        for shard in range(SHARDS):
            kept, targets = read_shard(tmp_path / task / f"shard-{shard:05d}.arrow")
            data = dataset.shard(shard)
            wanted = [data.values[data.offsets[row] : data.offsets[row + 1]].tolist() for row in rows[shard]]
            assert kept.tolist() == rows[shard].tolist()
            assert targets.tolist() == [[sum(row) + 1000 * place, len(row) + 1000 * place, row[-1] + 1000 * place] for row in wanted]


@pytest.mark.parametrize("stop", range(1, 2 * SHARDS + 1, 3))
def test_a_pass_killed_between_two_files_is_made_again_with_the_same_rows_side_by_side(dataset, tmp_path, stop):
    """The first pass, and one that extends the pools: what stands together in a batch decides a number's last bits."""
    small, large = two_pools(dataset, 0.4), two_pools(dataset, 1.0)
    first, second = write_both(dataset, small, tmp_path / "whole"), write_both(dataset, large, tmp_path / "whole")
    assert second.rows == sum(map(size, large)) - first.rows
    for pools, whole in ((small, first), (large, second)):
        cut = write_both(dataset, pools, tmp_path / "cut", stop=stop)
        again = write_both(dataset, small, tmp_path / "cut")  # a stage that goes on opens the pools that it began with first
        rest = write_both(dataset, pools, tmp_path / "cut")
        batches = [*cut.passes, *again.passes, *rest.passes]
        assert [batch for batch in batches if batch not in whole.passes] == []
        assert [batch for batch in whole.passes if batch not in batches] == []
    assert not list((tmp_path / "cut").glob("*.json"))
    for task in MASKS:
        for shard in range(SHARDS):
            name = f"{task}/shard-{shard:05d}.arrow"
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_extension_notes_where_it_began(dataset, tmp_path):
    small, large = two_pools(dataset, 0.4), two_pools(dataset, 1.0)
    write_both(dataset, small, tmp_path)
    write_both(dataset, large, tmp_path, stop=1)  # one of two files of shard 0
    assert json.loads((tmp_path / "shard-00000.pass.json").read_text())["firsts"] == [len(pool[0]) for pool in small]
    teacher = write_both(dataset, large, tmp_path)
    missing = [sum(len(more[s]) - len(few[s]) for few, more in zip(small, large, strict=True)) for s in range(SHARDS)]
    assert teacher.rows == sum(missing)  # of shard 0 both tasks' rows again, though one file was there
    (tmp_path / "next/shard-00000.arrow").unlink()
    (tmp_path / "shard-00000.pass.json").write_text("{")
    assert write_both(dataset, large, tmp_path).rows == sum(len(pool[0]) for pool in large)


def test_a_store_in_fp16_holds_half_the_bytes_and_refuses_what_is_too_large(dataset, tmp_path):
    pool = pool_of(dataset)
    write(dataset, pool, tmp_path / "half", half=True)
    write(dataset, pool, tmp_path / "whole")
    half, whole = (opened(tmp_path / name, pool) for name in ("half", "whole"))
    for shard in range(SHARDS):
        assert half.shards[shard].dtype == np.float16
        assert np.array_equal(half.shards[shard], whole.shards[shard].astype(np.float16))
    assert write(dataset, pool, tmp_path / "half", half=True) == 0
    assert write(dataset, pool, tmp_path / "half") == size(pool)  # other numbers are made anew

    def huge(batch, parts):
        return [torch.full((count, WIDTH), 1e5) for _, count in parts]

    with pytest.raises(RunError, match=r"of 'next' are larger than fp16 holds .* set method\.retention\.store to fp32"):
        list(write_pseudo_labels(huge, dataset, [PastPool("next", 2, pool)], folder=tmp_path / "huge", shards=range(SHARDS), half=True))


# -- the stream


def streams(dataset, folder, pool, world, *, seed=0, key="replay", online=False):
    made = []
    for rank in range(world):
        shards = own_shards(SHARDS, rank, world)
        store = None if online else opened(folder, pool, shards)
        made.append(ReplayStream(dataset, pool, store, key=key, seed=seed, shards=shards, task="next"))
    return made


def draw(parts, count):
    """What all ranks draw together; checks each row's target."""
    drawn, totals = Counter(), set()
    for part in parts:
        rows, targets, total = part.draw(count)
        assert torch.equal(targets, answers(rows.values.tolist(), rows.offsets.tolist()))
        totals.add(total)
        bounds = rows.offsets.tolist()
        drawn.update(tuple(rows.values[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False))  # noqa: RUF007
    assert totals == {sum(drawn.values())}
    return drawn


@pytest.fixture(scope="module")
def store(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    pool = pool_of(dataset)
    write(dataset, pool, folder)
    return folder, pool


def sequences(dataset, pool):
    data = [dataset.shard(shard) for shard in range(SHARDS)]
    return Counter(
        tuple(d.values[d.offsets[row] : d.offsets[row + 1]].tolist()) for d, rows in zip(data, pool, strict=True) for row in rows
    )


@settings(max_examples=20)
@given(world=st.integers(1, 10), counts=st.lists(st.integers(1, 100), min_size=1, max_size=6), epoch=st.integers(1, 3))
def test_the_same_global_rows_at_any_world_size_with_their_own_targets(dataset, store, world, counts, epoch):
    """World sizes beyond the number of shards too: a rank without shards gets no rows, and targets of the store's width."""
    folder, pool = store
    alone, together = streams(dataset, folder, pool, 1), streams(dataset, folder, pool, world)
    for stream in [*alone, *together]:
        stream.begin_epoch(epoch)
    for count in counts:
        drawn = draw(together, count)
        assert drawn == draw(alone, count)
        assert sum(drawn.values()) == min(count, alone[0].size)


def test_each_row_once_a_pass_in_another_order_the_next(dataset, store):
    folder, pool = store
    (stream,) = streams(dataset, folder, pool, 1)
    everyone = sequences(dataset, pool)
    passes = []
    for _ in range(2):
        draws = [draw([stream], 1) for _ in range(stream.size)]
        assert sum(draws, Counter()) == everyone
        passes.append(draws)
    assert passes[0] != passes[1]
    assert draw([stream], 10**6) == everyone


def test_order_depends_on_key_seed_and_epoch_alone(dataset, store):
    folder, pool = store

    def first(epoch=1, **other):
        (stream,) = streams(dataset, folder, pool, 1, **other)
        draw([stream], 5)
        stream.begin_epoch(epoch)
        return draw([stream], 8)

    assert first() == first()
    assert all(first() != other for other in (first(epoch=2), first(seed=1), first(key="other")))


def test_an_online_teacher_has_no_targets(dataset, store):
    folder, pool = store
    (stream,) = streams(dataset, folder, pool, 1, online=True)
    rows, targets, total = stream.draw(7)
    assert (rows.rows, targets, total) == (7, None, 7)


@pytest.mark.parametrize("world", [1, 3, 11])
def test_a_rank_that_knows_its_own_pool_alone_draws_the_same(dataset, world):
    whole = pool_of(dataset, 0.6)
    sizes = [len(rows) for rows in whole]
    for rank in range(world):
        shards = own_shards(SHARDS, rank, world)
        own = pool_of_users(dataset, "likes", "next", seed=0, share=0.6, shards=shards)
        assert [len(rows) for shard, rows in enumerate(own) if shard not in shards] == [0] * (SHARDS - len(shards))
        ours = ReplayStream(dataset, own, None, key="k", seed=0, shards=shards, sizes=sizes, task="next")
        theirs = ReplayStream(dataset, whole, None, key="k", seed=0, shards=shards, task="next")
        for _ in range(5):
            (rows, _, count), (wanted, _, total) = ours.draw(17), theirs.draw(17)
            assert (rows.values.tolist(), rows.offsets.tolist(), count) == (wanted.values.tolist(), wanted.offsets.tolist(), total)


@pytest.mark.parametrize("kept", [0, 40, -9])
def test_a_damaged_store_is_told_with_what_to_do(dataset, tmp_path, kept):
    pool = pool_of(dataset)
    write(dataset, pool, tmp_path)
    path = tmp_path / "next/shard-00002.arrow"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"shard-00002.arrow: these pseudo-labels were damaged .*; remove the file"):
        opened(tmp_path, pool)
    path.unlink()
    write(dataset, pool, tmp_path)
    assert opened(tmp_path, pool).shards[2].shape == (len(pool[2]), WIDTH)
