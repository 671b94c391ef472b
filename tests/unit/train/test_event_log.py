"""The event log of a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

from dist_teracon.train.run_folder import EventLog


def test_a_checkpoint_before_the_first_new_event_notes_the_length_that_was_cut_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, writes=True, position=0)
    log.write("a")
    kept = log.commit()
    log.write("b")
    log.close()
    resumed = EventLog(path, writes=True, position=kept)
    assert resumed.commit() == kept
    resumed.write("c")
    resumed.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["a", "c"]
