"""From the logs of a platform of your own to vectors and top-10 lists: `python examples/own_data.py FOLDER`.

The platform is made up: a video service logs what users watch and like, and asks some of them for their age. Put your own files in the
place of `write_logs`; the rest stays as it is. On two CPU cores it takes a minute.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

import dist_teracon
from dist_teracon.config_io import make_config
from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.recipe import parse_recipe

TOPICS = ("cooking", "football", "music", "travel")
VIDEOS = [f"{topic}-{number}" for topic in TOPICS for number in range(40)]

# Which events are a user's history, and which tasks are learned on it, in this order.
RECIPE = {
    "name": "videos",
    "history": {"events": {"type": "watch"}, "length": 50, "minimum": 3},
    "tasks": {
        "likes": {"kind": "item", "events": {"type": "like"}, "targets": 3},
        "age": {"kind": "profile", "bins": [18, 30, 45, 60]},
    },
    "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
}

# Small and short, for a try; what is not given here has its default (docs/training.md).
CONFIG = {
    "model": {"channels": 32, "backbone": {"name": "nextitnet", "dilations": [1, 2, 4]}},
    "evaluate": {"metrics": ["ndcg@10", "hr@10", "accuracy"]},
    "train": {name: {"epochs": 3, "patience": 2, "probe_steps": 20} for name in ("first", "second", "later")},
}


def write_logs(folder: Path, *, users: int) -> None:
    """Write `events.csv` (who watched or liked what, and when) and `users.csv` (ages, not of all users)."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "events.csv").open("w", newline="") as events, (folder / "users.csv").open("w", newline="") as people:
        event, person = csv.writer(events), csv.writer(people)
        event.writerow(("user", "item", "type", "timestamp"))
        person.writerow(("user", "age"))
        for number in range(users):
            user, favourite = f"viewer-{number}", draw.choice(TOPICS)
            at = 1_767_225_600 + draw.randrange(30 * 86_400)
            for _ in range(draw.randint(4, 30)):
                topic = favourite if draw.random() < 0.7 else draw.choice(TOPICS)
                video = f"{topic}-{min(39, int(draw.expovariate(0.1)))}"
                at += draw.randrange(60, 7200)
                event.writerow((user, video, "watch", at))
                if topic == favourite and draw.random() < 0.3:
                    event.writerow((user, video, "like", at + 30))
            if draw.random() < 0.6:
                person.writerow((user, {"cooking": 38, "football": 24, "music": 17, "travel": 52}[favourite] + draw.randint(-6, 6)))


def main(folder: Path, *, users: int = 3000) -> None:
    """Prepare, train, and use what was learned."""
    write_logs(folder / "logs", users=users)
    prepare("events", str(folder / "logs"), str(folder / "data"), recipe=parse_recipe(RECIPE))
    results = dist_teracon.train_tasks(make_config({"dataset": str(folder / "data"), **CONFIG}, where="CONFIG"), folder / "run")
    for task, score in zip(results["tasks"], results["scores"][-1], strict=True):
        print(f"{task}: {score:.3f} on test users")

    # From here on the run's folder is enough.
    model = dist_teracon.from_pretrained(folder / "run")

    # A user who was not there when the model was trained: the ids of what they watched, oldest first.
    visitor = ["football-3", "football-7", "music-1", "football-0"]
    print(f"one vector for all services: {model.encode([visitor])[0][:4].round(2)} … of {model.encode([visitor]).shape[1]} numbers")
    print("to watch next:", ", ".join(model.predict([visitor], "next", exclude_seen=True).labels[0]))
    for label, probability in next(iter(model.predict([visitor], "age", normalise=True))):
        print(f"age {label}: {probability:.0%}")

    # All users at once, from their logs: top-10 lists, and vectors for other services.
    top = model.predict(folder / "logs", "likes", top=10).to_arrow()
    print(f"top-10 lists of {len(top)} users, as {top['user'][0]}: {', '.join(top['labels'][0].as_py()[:3])}, …")
    histories = model.histories(folder / "logs")
    vectors = model.encode(histories)
    print(f"vectors of {len(vectors)} users, float32 {vectors.shape}; the first is {histories.users[0]}'s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "own-data"))
