"""What is put into a training process before it begins: it counts its operations by what the run is doing, and acts at one of them.

An operation is a call of the operating system on a file of the run (open, rename, link, remove, …, from Python's audit events, which come
before the call), an optimiser step, a scoring, or a request to the store.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a run is doing meanwhile: module, attribute, and the name that a report has for it.
ACTIVITIES = (
    ("dist_teracon.train.run", "open_on_all_ranks", "preparation"),
    ("dist_teracon.continual.teracon", "write_pseudo_labels", "pseudo-labels"),
    ("dist_teracon.train.phase", "PhaseTrainer._train_epoch", "training"),
    ("dist_teracon.train.phase", "score_task", "evaluation"),
    ("dist_teracon.train.stage_scores", "score_task", "evaluation"),
    ("dist_teracon.train.stage_folder", "StageFolder.save_checkpoint", "checkpoint"),
    ("dist_teracon.train.stage_folder", "StageFolder.finish", "end of a stage"),
    ("dist_teracon.store.commits", "Commits.commit", "upload"),
    ("dist_teracon.store.commits", "Commits.claim", "taking over"),
    ("dist_teracon.store.mirror", "restore_folder", "restore"),
)
# Calls that are operations themselves.
OPERATIONS = (
    ("dist_teracon.train.phase", "train_step"),
    ("dist_teracon.train.phase", "score_task"),
    ("dist_teracon.train.stage_scores", "score_task"),
    ("dist_teracon.store.objects", "Objects._pipe"),
    ("dist_teracon.store.objects", "Objects.upload"),
    ("dist_teracon.store.objects", "Objects.download"),
    ("dist_teracon.store.objects", "Objects.delete"),
)
_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"}
ELSEWHERE = "between"


class Operations:
    """Counts operations by activity.

    Args:
        roots: Folders whose files count.
        at: Activity and number of the operation to act before; None to count alone.
        action: What to do there.
    """

    def __init__(self, roots: tuple[str, ...], at: tuple[str, int] | None = None, action: Callable[[], None] = lambda: None) -> None:
        self.counts: Counter[str] = Counter()
        self._roots, self._at, self._action = roots, at, action
        self._local = threading.local()

    def install(self) -> None:
        """Put it into this process, for good."""
        for module, name in OPERATIONS:
            _wrap(module, name, self._counted)
        for module, name, activity in ACTIVITIES:
            _wrap(module, name, functools.partial(self._during, activity))
        sys.addaudithook(self._audit)

    def write(self, path: Path) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps(self.counts))

    def _tick(self) -> None:
        activity = self._stack()[-1]
        self.counts[activity] += 1
        if self._at == (activity, self.counts[activity]):
            self._action()

    def _stack(self) -> list[str]:
        if not hasattr(self._local, "stack"):
            self._local.stack = [ELSEWHERE]
        return self._local.stack  # type: ignore[no-any-return]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and isinstance(arguments[0], str | bytes | Path) and str(arguments[0]).startswith(self._roots):
            self._tick()

    @contextmanager
    def _doing(self, activity: str) -> Iterator[None]:
        self._stack().append(activity)
        try:
            yield
        finally:
            self._stack().pop()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*arguments: Any, **options: Any) -> Any:
            self._tick()
            return call(*arguments, **options)

        return counted

    def _during(self, activity: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def during(*arguments: Any, **options: Any) -> Any:
            with self._doing(activity):
                result = call(*arguments, **options)
            return self._each(activity, result) if isinstance(result, Iterator) else result

        return during

    def _each(self, activity: str, items: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self._doing(activity):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


def _wrap(module: str, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    owner: Any = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, wrapper(getattr(owner, last)))
