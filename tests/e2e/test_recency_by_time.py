"""`event_features: [recency]` on a split by time: when a run's rows are predicted, and that the future does not change its training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import results, settings, train_here

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


def trained(folder: Path, events: Events) -> Path:
    (folder / "raw").mkdir(parents=True)
    lines = [f"u{user:02d},i{item:02d},{time},{kind}\n" for user, item, time, kind in events]
    (folder / "raw" / "events.csv").write_text("user,item,timestamp,type\n" + "".join(lines))
    prepare("events", str(folder / "raw"), str(folder / "set"), recipe=parse_recipe(RECIPE), shards=2)
    once = {"epochs": 1, "batch": 32}
    config: dict[str, Any] = {**settings(str(folder / "set"), first=once, second=once), "tasks": None}
    config["model"]["event_features"] = ["recency"]
    return train_here(config, folder / "run")


def test_rows_are_predicted_when_their_labels_came_and_the_future_changes_no_weight(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: dict[tuple[str, Split], set[tuple[tuple[int, ...], int]]] = {}
    batches_of = scorer.evaluation_batches

    def watched(dataset: Any, task: Any, split: Split, **options: Any) -> Any:
        found, rows = batches_of(dataset, task, split, **options), scored.setdefault((task.name, split), set())
        for batch in found:
            bounds = pairwise(batch.row_offsets.tolist())
            rows.update((tuple(batch.times[low:high].tolist()), when) for (low, high), when in zip(bounds, batch.moments.tolist(), strict=True))
        return found

    events = made_events()
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "evaluation_batches", watched)
        run = trained(tmp_path / "one", events)
    views = {user: [time for of, _, time, kind in events if of == user and kind == "view"] for user in range(USERS)}
    bought = {user: [time for of, _, time, kind in events if of == user and kind == "buy"] for user in range(USERS)}
    for split, begin, end in ((Split.VALIDATION, T1, T2), (Split.TEST, T2, START + 101 * DAY)):
        nexts, buys = set(), set()
        for user, times in views.items():
            before = [time for time in times if time < begin]
            if first := [time for time in times if begin <= time < end][:1]:
                nexts.add((tuple([*before, *first][-LENGTH:-1]), first[0]))  # the next view, told when it happened
            if any(begin <= time < end for time in bought[user]):
                buys.add((tuple(before[-LENGTH:]), begin))  # what is bought from there on, told where the history ends
        assert scored["next", split] == nexts
        assert scored["buys", split] == buys
        assert min(len(nexts), len(buys)) > 20

    other = trained(tmp_path / "other", made_events(future=5))
    for stage in ("01-next", "02-buys"):
        one, two = ((folder / "stages" / stage / "model.safetensors").read_bytes() for folder in (run, other))
        assert one == two
    assert results(run)["scores"] != results(other)["scores"]
