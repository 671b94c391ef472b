"""`event_features: [recency]` on a split by time: when rows are predicted, and that the future changes no training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import settings, train_here

from dist_teracon.data.dataset import Dataset
from dist_teracon.data.loader import TrainingLoader
from dist_teracon.data.moments import Moments
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe
from dist_teracon.data.schema import Split
from dist_teracon.evaluate import scorer

DAY, START, USERS, LENGTH = 86_400, 1_600_000_000, 40, 6
T0, T1, T2 = (START + day * DAY for day in (40, 60, 80))
RECIPE = {
    "history": {"events": {"type": "view"}, "length": LENGTH, "keep": ["time"]},
    "tasks": {"buys": {"kind": "item", "events": {"type": "buy"}}},
    "split": {"by": "time", "labels_from": T0, "validation_from": T1, "test_from": T2},
}
# user, item, time, type; no two users have an event at the same second
Events = list[tuple[int, int, int, str]]


def made_events(*, future: int = 0) -> Events:
    """Events of 100 days; with `future` those from T1 on are of other items and some hours later."""
    draw, rows = np.random.default_rng(0), []
    for user in range(USERS):
        for day in sorted(draw.choice(100, size=24, replace=False).tolist()):
            item, time = int(draw.integers(12)), START + day * DAY + user
            if time >= T1:
                item, time = (item + future) % 12, time + 3600 * future
            rows.append((user, item, time, ("view", "buy")[day % 3 == 0]))
    return rows


def prepared(folder: Path, events: Events) -> str:
    (folder / "raw").mkdir(parents=True)
    lines = [f"u{user:02d},i{item:02d},{time},{kind}\n" for user, item, time, kind in events]
    (folder / "raw" / "events.csv").write_text("user,item,timestamp,type\n" + "".join(lines))
    prepare("events", str(folder / "raw"), str(folder / "set"), recipe=parse_recipe(RECIPE), shards=2)
    return str(folder / "set")


def times_and_moments(batches: Any) -> set[tuple[tuple[int, ...], int]]:
    """Return of each row the times of its events, and when it is predicted."""
    rows = set()
    for batch in batches:
        bounds = pairwise(batch.row_offsets.tolist())
        rows.update((tuple(batch.times[low:high].tolist()), when) for (low, high), when in zip(bounds, batch.moments.tolist(), strict=True))
    return rows


def test_a_run_predicts_its_rows_when_their_labels_came(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: dict[tuple[str, Split], set[tuple[tuple[int, ...], int]]] = {}
    batches_of = scorer.evaluation_batches

    def watched(dataset: Any, task: Any, split: Split, **options: Any) -> Any:
        found = batches_of(dataset, task, split, **options)
        scored.setdefault((task.name, split), set()).update(times_and_moments(found))
        return found

    events, once = made_events(), {"epochs": 1, "batch": 32}
    config: dict[str, Any] = {**settings(prepared(tmp_path, events), first=once, second=once, max_steps=1), "tasks": None}
    config["model"]["event_features"] = ["recency"]
    monkeypatch.setattr(scorer, "evaluation_batches", watched)
    train_here(config, tmp_path / "run")
    views = {user: [time for of, _, time, kind in events if of == user and kind == "view"] for user in range(USERS)}
    bought = {user: [time for of, _, time, kind in events if of == user and kind == "buy"] for user in range(USERS)}
    for split, begin, end in ((Split.VALIDATION, T1, T2), (Split.TEST, T2, START + 101 * DAY)):
        nexts, buys = set(), set()
        for user, times in views.items():
            before = [time for time in times if time < begin]
            if first := [time for time in times if begin <= time < end][:1]:
                nexts.add((tuple([*before, *first][-LENGTH:-1]), first[0]))  # the next view, predicted when it happened
            if any(begin <= time < end for time in bought[user]):
                buys.add((tuple(before[-LENGTH:]), begin))  # what is bought from there on, predicted where the history ends
        assert scored["next", split] == nexts
        assert scored["buys", split] == buys
        assert min(len(nexts), len(buys)) > 20


def test_what_happens_from_validation_on_changes_nothing_that_training_reads(tmp_path: Path) -> None:
    read = {}
    for future in (0, 5):
        dataset = Dataset(prepared(tmp_path / f"future-{future}", made_events(future=future)))
        dataset.read_columns(("times",))
        dataset.moments = Moments.of_dataset(dataset.info, dataset.last_event(range(2)))
        for task in dataset.info.tasks:
            loader = TrainingLoader(dataset, [task], mask_index=0, batch=32, seed=0, rank=0, world_size=1)
            read[task.name, future] = list(loader.epoch(1))
    for name, last in (("next", None), ("buys", T0)):
        assert len(read[name, 0]) == len(read[name, 5]) > 0
        for one, other in zip(read[name, 0], read[name, 5], strict=True):
            for field in ("values", "times", "row_offsets", "moments"):
                assert torch.equal(getattr(one, field), getattr(other, field)), (name, field)
            assert torch.equal(one.examples[0].labels, other.examples[0].labels)
            assert one.times.max() < T1
            assert bool((one.moments < T1).all()) if last is None else set(one.moments.tolist()) == {last}
