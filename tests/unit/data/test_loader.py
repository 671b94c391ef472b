"""Which rows stand in which batch: every training example once an epoch, whatever shards, ranks and batch sizes there are."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_teracon.data.batch_plan import WHOLE_SHUFFLE, BatchPlan, own_shards, share_rows, shuffled_rows
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import TrainingLoader, evaluation_batches
from dist_teracon.data.schema import Split

SHARDS = 8
worlds = st.integers(1, 5)


def loaders(dataset, names, world, *, batch=16, seed=3, mask_index=0):
    tasks = [dataset.info.task(name) for name in names]
    return [
        TrainingLoader(dataset, tasks, mask_index=mask_index, batch=batch, seed=seed, rank=rank, world_size=world) for rank in range(world)
    ]


def read_rows(packed):
    ends = packed.row_offsets.tolist()
    return [tuple(packed.values[a:b].tolist()) for a, b in itertools.pairwise(ends)]


def examples_of(packed, part=0):
    """(row's items, label) of every example of a batch whose rows are read at their last position."""
    rows, given = read_rows(packed), packed.examples[part]
    return [(rows[place], label) for place, label in zip(given.index.tolist(), given.labels.tolist(), strict=True)]


def expected(dataset, name, split=Split.TRAIN):
    """(sequence, label) of every example of a split, straight from the shards."""
    found = []
    for number in range(dataset.info.shards):
        shard, labels = dataset.shard(number), dataset.labels(name, number)
        for row, user in enumerate(labels.users):
            sequence = tuple(shard.values[shard.offsets[user] : shard.offsets[user + 1]].tolist())
            for place in range(labels.offsets[row], labels.offsets[row + 1]):
                if labels.split[place] == split:
                    found.append((sequence, int(labels.values[place])))
    return Counter(found)


@settings(max_examples=40)
@given(sizes=st.lists(st.lists(st.integers(1, 5), max_size=40), min_size=1, max_size=9), batch=st.integers(1, 60), epoch=st.integers(1, 3))
def test_a_plan_takes_every_row_once_and_its_batches_are_of_one_size(sizes, batch, epoch):
    weights = [np.array(size, dtype=np.int64) for size in sizes]
    plan = BatchPlan(weights, batch=batch, seed=0, epoch=epoch)
    total = sum(int(weight.sum()) for weight in weights)
    assert plan.steps == max(1, -(-total // batch))
    for shard, weight in enumerate(weights):
        taken = np.concatenate([plan.rows(step, shard) for step in range(plan.steps)])
        assert sorted(taken.tolist()) == list(range(len(weight)))
    totals = plan.totals(weights)
    assert totals.tolist() == [sum(int(weight[plan.rows(step, s)].sum()) for s, weight in enumerate(weights)) for step in range(plan.steps)]
    # a cut of a shard lies less than one user (of 5 at most) and one staggered example from where it should
    assert np.abs(totals - total / plan.steps).max() <= 5 * len(weights)


@pytest.mark.parametrize("batch", [64, 256])
def test_batches_are_close_to_the_size_asked_for(batch):
    generator = np.random.default_rng(0)
    weights = [generator.integers(1, 6, int(size)) for size in generator.integers(300, 900, 8)]
    plan = BatchPlan(weights, batch=batch, seed=0, epoch=1)
    totals = plan.totals(weights)
    assert abs(totals.mean() / batch - 1) < 0.05
    assert np.abs(totals - batch).max() <= 0.25 * batch


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 11])
def test_every_shard_has_one_owner(world):
    owners = [shard for rank in range(world) for shard in own_shards(SHARDS, rank, world)]
    assert sorted(owners) == list(range(SHARDS))


@settings(max_examples=25)
@given(world=worlds, batch=st.integers(1, 70), epoch=st.integers(1, 4), data=st.integers(0, 2))
def test_every_label_once_an_epoch_and_global_batches_the_same_at_any_world_size(make_dataset, world, batch, epoch, data):
    dataset = make_dataset(seed=data)
    single = list(loaders(dataset, ["likes"], 1, batch=batch)[0].epoch(epoch))
    assert sum((Counter(examples_of(packed)) for packed in single), Counter()) == expected(dataset, "likes")
    for alone, *shares in zip(single, *(loader.epoch(epoch) for loader in loaders(dataset, ["likes"], world, batch=batch)), strict=True):
        assert sum((Counter(examples_of(share)) for share in shares), Counter()) == Counter(examples_of(alone))
        assert {(share.step, share.steps, share.positions, share.examples[0].total) for share in shares} == {
            (alone.step, alone.steps, "last", sum(share.examples[0].labels.shape[0] for share in shares))
        }


@settings(max_examples=15)
@given(world=worlds, batch=st.integers(1, 30), unseen=st.sampled_from([0.0, 0.3, 0.8]))
def test_next_item_rows(make_dataset, world, batch, unseen):
    """Inputs are all items but the last, targets what follows each, unseen items (index 1) never."""
    dataset = make_dataset(unseen=unseen, users=90)
    rows, pairs = Counter(), Counter()
    for shares in zip(*(loader.epoch(1) for loader in loaders(dataset, ["next"], world, batch=batch)), strict=True):
        for packed in shares:
            rows.update(read_rows(packed))
            given, values = packed.examples[0], packed.values
            pairs.update(zip(values[given.index].tolist(), given.labels.tolist(), strict=True))
            assert packed.positions == "all"
            assert packed.examples[0].total == sum(share.examples[0].labels.shape[0] for share in shares)
    sequences = [sequence for (sequence, _), count in expected(dataset, "next").items() for _ in range(count)]
    assert rows == Counter(sequence[:-1] for sequence in sequences)
    following = [(a, b - 2) for sequence in sequences for a, b in itertools.pairwise(sequence) if b >= 2]
    assert pairs == Counter(following)
    counted = np.bincount([label for _, label in following], minlength=dataset.info.task("next").labels)
    assert dataset.train_counts("next").tolist() == counted.tolist()


def test_jointly_learned_tasks_share_their_users(make_dataset):
    dataset = make_dataset(users=80)
    parts = [Counter(), Counter()]
    for shares in zip(*(loader.epoch(2) for loader in loaders(dataset, ["likes", "age"], 3)), strict=True):
        for packed in shares:
            for part, counter in enumerate(parts):
                counter.update(examples_of(packed, part))
                assert packed.examples[part].total == sum(share.examples[part].labels.shape[0] for share in shares)
    assert parts == [expected(dataset, "likes"), expected(dataset, "age")]


@pytest.mark.parametrize("names", [["next"], ["likes"], ["likes", "age"]])
def test_an_epoch_is_taken_up_in_the_middle(make_dataset, names):
    dataset = make_dataset(users=90)
    (loader,) = loaders(dataset, names, 1, batch=8)
    batches = loader.epoch(2)
    before = list(itertools.islice(batches, 4))
    assert batches.state_dict() == {"epoch": 2, "step": 4}  # what was made ahead counts as not yet read
    state = batches.state_dict()
    (again,) = loaders(dataset, names, 1, batch=8)
    after = list(again.epoch(state["epoch"], first=state["step"]))
    assert [contents(packed) for packed in [*before, *after]] == [contents(packed) for packed in loader.epoch(2)]


def contents(packed):
    parts = [(part.index.tolist(), part.labels.tolist(), part.total) for part in packed.examples]
    return packed.step, packed.steps, packed.values.tolist(), packed.row_offsets.tolist(), parts


class Exchange:
    """Ranks as threads that tell one another what they know, as processes do through a collective."""

    def __init__(self, world):
        self.told, self.barrier = [None] * world, threading.Barrier(world, timeout=30)

    def of(self, rank):
        def gather(value):
            self.told[rank] = value
            self.barrier.wait()
            everything = list(self.told)
            self.barrier.wait()
            return everything

        return gather


@pytest.mark.parametrize("names", [["next"], ["likes"], ["likes", "age"]])
def test_a_rank_opens_its_own_shards_alone(make_dataset, tmp_path, names):
    """Every rank's data set lacks the files of all other shards; the ranks' counts come from one another."""
    whole, world = make_dataset(users=90), 3
    exchange = Exchange(world)

    def work(rank):
        folder = tmp_path / str(rank)
        shutil.copytree(whole.uri, folder)
        for path in folder.glob("*/**/shard-*.parquet"):
            if int(path.stem.removeprefix("shard-")) not in own_shards(SHARDS, rank, world):
                path.unlink()
        dataset, gather = Dataset(str(folder)), exchange.of(rank)
        tasks = [dataset.info.task(name) for name in names]
        loader = TrainingLoader(dataset, tasks, mask_index=0, batch=16, seed=3, rank=rank, world_size=world, gather=gather)
        scored = evaluated_here(dataset, names[0], rank, world, max_users=9, gather=gather)
        return [contents(packed) for packed in loader.epoch(1)], scored

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(work, range(world)))
    for rank, loader in enumerate(loaders(whole, names, world)):
        assert found[rank] == (
            [contents(packed) for packed in loader.epoch(1)],
            evaluated_here(whole, names[0], rank, world, max_users=9),
        )


def evaluated_here(dataset, name, rank, world, **options):
    batches = evaluation_batches(
        dataset, dataset.info.task(name), Split.TRAIN, mask_index=0, batch=4, rank=rank, world_size=world, seed=0, **options
    )
    return [contents(packed) for packed in batches]


@settings(max_examples=20)
@given(rows=st.integers(WHOLE_SHUFFLE - 2, 4 * WHOLE_SHUFFLE), seed=st.integers(0, 5))
def test_rows_of_a_large_shard_are_shuffled_in_blocks(rows, seed):
    order = shuffled_rows(rows, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(rows))
    if rows > WHOLE_SHUFFLE:
        # a window of 1,024 rows comes from few places, and yet neighbours on disk are no neighbours in time
        window = np.unique(order[:1024] // 64)
        assert len(window) <= 17
        assert np.mean(np.abs(np.diff(order[:1024])) == 1) < 0.05
        assert not np.array_equal(order, shuffled_rows(rows, np.random.default_rng(seed + 1)))


def test_a_small_shard_is_shuffled_row_by_row():
    assert shuffled_rows(300, np.random.default_rng(4)).tolist() == np.random.default_rng(4).permutation(300).tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_large_shards_give_every_row_once_at_any_world_size(world):
    weights = [np.random.default_rng(shard).integers(1, 5, 9000 + shard) for shard in range(4)]
    whole = BatchPlan(weights, batch=777, seed=1, epoch=3)
    seen = []
    for rank in range(world):
        own = own_shards(4, rank, world)
        plan = BatchPlan(weights, batch=777, seed=1, epoch=3, own=own)
        assert plan.totals(weights).tolist() == whole.totals(weights).tolist()
        for shard in own:
            rows = [plan.rows(step, shard) for step in range(plan.steps)]
            assert all(np.array_equal(part, whole.rows(step, shard)) for step, part in enumerate(rows))
            seen += [(shard, row) for part in rows for row in part.tolist()]
    assert sorted(seen) == [(shard, row) for shard in range(4) for row in range(9000 + shard)]
    assert np.abs(whole.totals(weights) / 777 - 1).max() < 0.05


def test_a_next_item_task_stands_alone(make_dataset):
    with pytest.raises(ValueError, match="cannot be joined"):
        loaders(make_dataset(), ["next", "age"], 1)


def test_order_depends_on_seed_and_epoch_alone(make_dataset):
    dataset = make_dataset(users=80)

    def order(seed, epoch):
        (loader,) = loaders(dataset, ["likes"], 1, seed=seed)
        list(loader.epoch(7))  # what was read before is of no account
        return [examples_of(packed) for packed in loader.epoch(epoch)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_rows_carry_their_mask_index_and_a_rank_without_shards_takes_part(make_dataset):
    dataset = make_dataset(users=50, shards=2)
    shares = list(zip(*(loader.epoch(1) for loader in loaders(dataset, ["likes"], 3, mask_index=2)), strict=True))
    assert all(share[2].rows == 0 and share[2].examples[0].labels.shape == (0,) for share in shares)
    assert all(share[2].examples[0].total > 0 for share in shares)
    assert {mask_index for share in shares for packed in share for mask_index in packed.task_of_row.tolist()} == {2}


def test_ranks_of_a_machine_without_shards_take_part(make_dataset):
    dataset = make_dataset(users=50, shards=2)
    loader = TrainingLoader(
        dataset, [dataset.info.task("likes")], mask_index=0, batch=16, seed=3, rank=3, world_size=4, shared_by=[2, 3], dropout_keys=True
    )
    batches = list(loader.epoch(1))
    assert batches
    assert all(batch.rows == 0 and batch.examples[0].total > 0 for batch in batches)


def evaluated(dataset, name, split, world, **settings):
    arguments = {"mask_index": 0, "batch": 5, "max_users": None, "seed": 0, **settings}
    task, found, users = dataset.info.task(name), Counter(), 0
    for rank in range(world):
        for packed in evaluation_batches(dataset, task, split, rank=rank, world_size=world, **arguments):
            assert packed.rows <= arguments["batch"]
            found.update(examples_of(packed))
            users += packed.rows
    return found, users


@settings(max_examples=25)
@given(world=worlds, batch=st.integers(1, 30), split=st.sampled_from(Split), name=st.sampled_from(["next", "likes", "age"]))
def test_evaluation_covers_a_split_exactly_once(make_dataset, world, batch, split, name):
    dataset = make_dataset(users=80)
    found, _ = evaluated(dataset, name, split, world, batch=batch)
    wanted = expected(dataset, name, split)
    if name == "next":
        assert all(sequence[-1] - 2 == label for sequence, label in wanted)
        wanted = sum((Counter({(sequence[:-1], label): count}) for (sequence, label), count in wanted.items()), Counter())
    assert found == wanted


@settings(max_examples=25)
@given(world=worlds, most=st.integers(1, 40), fewer=st.integers(1, 40), group=st.sampled_from([1, 4]))
def test_fewer_users_are_the_same_at_any_world_size_exact_in_number_and_nested(make_dataset, world, most, fewer, group):
    dataset = make_dataset(users=90, group=group)
    most, fewer = max(most, fewer), min(most, fewer)
    _, everyone = evaluated(dataset, "likes", Split.TRAIN, 1)
    large, users = evaluated(dataset, "likes", Split.TRAIN, 1, max_users=most)
    assert users == min(most, everyone)
    assert evaluated(dataset, "likes", Split.TRAIN, world, max_users=most, batch=3) == (large, users)
    assert evaluated(dataset, "likes", Split.TRAIN, world, max_users=fewer)[0] <= large


def test_fewer_users_depend_on_the_seed(make_dataset):
    dataset = make_dataset(users=90)
    one, other = (evaluated(dataset, "likes", Split.TRAIN, 1, max_users=10, seed=seed)[0] for seed in (0, 1))
    assert one != other


# -- rows shared by work


def test_rows_move_only_as_far_as_evenness_asks():
    work, owner = np.array([4, 10, 10, 10, 10, 4]), np.array([1, 0, 0, 0, 0, 1])
    # of 48 a share is 24: two rows of 10 stay, the other two go
    assert share_rows(work, owner, 2).tolist() == [1, 0, 0, 1, 1, 1]
    even = np.array([7, 7, 7, 7])
    assert share_rows(even, np.array([0, 1, 0, 1]), 2).tolist() == [0, 1, 0, 1]
    assert share_rows(np.array([5, 3]), np.array([2, 2]), 3).tolist() in ([0, 1], [1, 0])
    assert share_rows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 3).tolist() == []


@given(work=st.lists(st.integers(1, 100), max_size=60), ranks=st.integers(1, 6), seed=st.integers(0, 99))
def test_shared_work_is_even_but_for_less_than_a_row(work, ranks, seed):
    work = np.array(work, dtype=np.int64)
    owner = np.random.default_rng(seed).integers(0, ranks, work.shape[0])
    rank_of = share_rows(work, owner, ranks)
    loads = np.bincount(rank_of, weights=work, minlength=ranks)
    assert ((rank_of >= 0) & (rank_of < ranks)).all()
    assert loads.max() <= work.sum() / ranks + work.max(initial=0) + 1
    kept = np.bincount(owner, weights=work, minlength=ranks)
    assert loads.max() <= max(kept.max(), work.sum() / ranks + work.max(initial=0) + 1)


@pytest.mark.parametrize("names", [("next",), ("likes", "age")])
@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0, 2], [1, 3]]])
def test_ranks_that_share_rows_take_the_same_global_batches_more_evenly(make_dataset, names, groups):
    dataset = make_dataset(users=300)
    tasks, world = [dataset.info.task(name) for name in names], sum(map(len, groups))
    alone = loaders(dataset, names, 1)[0]
    apart = loaders(dataset, names, world)
    shared = [
        TrainingLoader(
            dataset, tasks, mask_index=0, batch=16, seed=3, rank=rank, world_size=world, dropout_keys=True,
            shared_by=next(group for group in groups if rank in group),
        )
        for rank in range(world)
    ]  # fmt: skip
    spread = {"apart": 0, "shared": 0}
    for whole, *parts in zip(alone.epoch(1), *(loader.epoch(1) for loader in (*apart, *shared)), strict=True):
        before, after = parts[:world], parts[world:]
        assert Counter(row for part in after for row in read_rows(part)) == Counter(read_rows(whole))
        for place in range(len(names)):
            if names != ("next",):
                assert Counter(e for part in after for e in examples_of(part, place)) == Counter(examples_of(whole, place))
            assert {part.examples[place].total for part in after} == {whole.examples[place].total}
        for name, of_ranks in (("apart", before), ("shared", after)):
            spread[name] += max(part.values.shape[0] for part in of_ranks)
        assert all(part.dropout_key.shape[0] == part.rows for part in after)
    assert spread["shared"] < spread["apart"]
