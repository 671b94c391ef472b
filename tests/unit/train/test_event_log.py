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


def written(path: Path) -> int:
    log = EventLog(path, writes=True, position=0)
    for number in range(3):
        log.write("step", number=number)
    size = log.commit()
    log.close()
    return size


def resumed(path: Path, position: int) -> tuple[list[str], list[object]]:
    """Go on at a position; returns what was said, and the events that can be read afterwards."""
    said: list[str] = []
    log = EventLog(path, writes=True, position=position, log=said.append)
    log.write("end")
    log.close()
    found = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
            found.append(event.get("number", event["event"]))
        except ValueError:
            found.append(None)
    return said, found


def test_a_log_that_is_whole_goes_on_silently(tmp_path: Path) -> None:
    assert resumed(tmp_path / "events.jsonl", written(tmp_path / "events.jsonl")) == ([], [0, 1, 2, "end"])


def test_a_log_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    position = written(path)
    path.unlink()
    (said,), found = resumed(path, position)
    assert said.startswith(f"warning: {path}: the log of events is gone")
    assert found == ["end"]


def test_a_log_that_was_cut_is_named_and_the_next_event_is_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    position = written(path)
    path.write_bytes(path.read_bytes()[: position - 10])
    (said,), found = resumed(path, position)
    assert f"10 of its {position} bytes are missing" in said
    assert found == [0, 1, None, "end"]


def test_lines_that_are_damaged_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    position = written(path)
    content = bytearray(path.read_bytes())
    content[1] = 0xFF
    path.write_bytes(content)
    (said,), found = resumed(path, position)
    assert "1 of its lines cannot be read" in said
    assert found == [None, 1, 2, "end"]
