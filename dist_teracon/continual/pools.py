"""The pools of users that a stage replays for its past tasks, and the streams that batches draw from them (docs/method.md, Retention)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dist_teracon.continual.method import StageContext
from dist_teracon.continual.replay import ReplayStream
from dist_teracon.continual.replayed_users import PastPool, pool_of_users, pool_share
from dist_teracon.continual.target_store import Store
from dist_teracon.data.batch_plan import own_shards
from dist_teracon.data.schema import Split
from dist_teracon.errors import ConfigError
from dist_teracon.models.heads import Head
from dist_teracon.runtime import Runtime

# Rows a shard that the variance of a task's pseudo-labels is taken of.
_VARIANCE_ROWS = 256


@dataclass(frozen=True)
class OpenPools:
    """The pools of a stage's past tasks.

    Attributes:
        context: The stage's.
        task: The new task.
        seed: Of the pools and of the order of streams.
        share: Share of the new task's training users that a pool holds.
        pools: One a past task, with the rows of own shards.
        shards: The shards that this rank owns.
        sizes: Of each pool: rows of every shard.
        began: When they were opened, on the monotonic clock.
    """

    context: StageContext
    task: str
    seed: int
    share: float
    pools: list[PastPool]
    shards: range
    sizes: dict[str, list[int]]
    began: float

    def streams(self, stores: Mapping[str, Store]) -> dict[str, ReplayStream]:
        """Return a stream a past task, with stored targets where there are any."""
        return {
            pool.task: ReplayStream(
                self.context.dataset, pool.rows, stores.get(pool.task), key=f"replay:{self.task}:{pool.task}", seed=self.seed,
                shards=self.shards, sizes=self.sizes[pool.task], task=pool.task, moment=pool.moment,
            )
            for pool in self.pools
        }  # fmt: skip

    def log_passes(self, variances: Mapping[str, float]) -> None:
        """Write an event a past task; the seconds of the passes are divided by rows."""
        seconds, rows = time.monotonic() - self.began, {task: sum(sizes) for task, sizes in self.sizes.items()}
        for task, count in rows.items():
            facts = {"rows": count, "share": self.share, "seconds": seconds * count / max(1, sum(rows.values()))}
            if task in variances:
                facts["variance"] = variances[task]
            self.context.event("pseudo_labels", past=task, **facts)


def open_pools(
    context: StageContext, learned: Sequence[str], *, seed: int, setting: float | str, largest_rate: float, batch: int, minimum: int
) -> OpenPools:
    """Choose the users to replay.

    Args:
        context: The stage's.
        learned: All tasks in their order, the new one last: its row of the mask table is a past task's place.
        seed: Of the pools.
        setting: `pool`.
        largest_rate: The largest share of a batch that one past task's rows are by ρ.
        batch: Examples a step.
        minimum: Least rows of a past task a step.

    Raises:
        ConfigError: the pools are empty.
    """
    dataset, runtime, task, began = context.dataset, context.runtime, learned[-1], time.monotonic()
    shards = own_shards(dataset.info.shards, runtime.rank, runtime.world_size)
    users = dataset.info.task(task).users
    share = pool_share(setting, users=users, largest_rate=largest_rate, batch=batch, minimum=minimum, max_steps=context.max_steps)
    moment = None if dataset.moments is None else dataset.moments.of(dataset.info.task(task), Split.TRAIN)
    pools = [
        PastPool(past, place, pool_of_users(dataset, task, past, seed=seed, share=share, shards=shards), moment)
        for place, past in enumerate(learned[:-1])
    ]
    gathered = runtime.gather({pool.task: [len(rows) for rows in pool.rows] for pool in pools})
    sizes = {pool.task: [sum(rank[pool.task][shard] for rank in gathered) for shard in range(dataset.info.shards)] for pool in pools}
    for past, of_shard in sizes.items():
        if not sum(of_shard):
            raise ConfigError(
                f"method.retention.pool: a share of {share:g} of the {users} users of task '{task}' holds nobody, and "
                f"'{past}' would be forgotten; take a larger share, or auto"
            )
    return OpenPools(context, task, seed, share, pools, shards, sizes, began)


def variances_of(stores: Mapping[str, Store], heads: Mapping[str, Head | None], runtime: Runtime) -> dict[str, float]:
    """Return the mean square of each past task's pseudo-logits about their row's mean, of some rows a shard.

    It is the same at any number of processes.

    Args:
        stores: Targets by past task.
        heads: The frozen head that makes logits of them; None where they are logits.
        runtime: Among whom the sums are added.
    """
    return {task: _variance(store, heads[task], runtime) for task, store in stores.items()}


def _variance(store: Store, head: Head | None, runtime: Runtime) -> float:
    parts = []
    for shard, made in store.shards.items():
        logits = torch.from_numpy(made[:_VARIANCE_ROWS].astype("float32"))
        if head is not None:
            logits = head(logits.to(head.weight.device, head.weight.dtype)).detach()
        centred = logits.double() - logits.double().mean(1, keepdim=True)
        parts.append((shard, float(centred.square().sum()), centred.numel()))
    sums = sorted(entry for of_rank in runtime.gather(parts) for entry in of_rank)
    return max(sum(entry[1] for entry in sums) / max(1, sum(entry[2] for entry in sums)), torch.finfo(torch.float32).tiny)
