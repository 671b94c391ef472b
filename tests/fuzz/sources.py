"""Feed damaged inputs to every format of raw data: a clear error or the data set that a slow reader makes of them, nothing else.

    python tests/fuzz/sources.py --inputs 20000 [--seed 0] [--format sequence-csv]

Formats of events are held against `oracle.py`, which reads a row at a time: each user's items in their order, labels, rejected lines.
The formats of sequences are counted: every row is kept or reported. An input that raises something else, takes long or comes out
otherwise is kept below `--keep` and named; the program then ends with 1.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dist_teracon.data.prepare.pipeline import prepare
from dist_teracon.data.raw import bad_rows, delimited
from dist_teracon.data.recipe import Recipe, parse_recipe
from dist_teracon.data.schema import FIRST_ITEM, ITEM_INPUTS_FILE, DatasetInfo, input_file
from dist_teracon.errors import TeraconError

sys.path.insert(0, str(Path(__file__).parent))
import oracle

SLOW_S = 30
# Of events that are a minute long.
DATES = {"validation_from": 10**9 + 20, "test_from": 10**9 + 40, "test_periods": [10**9 + 50]}
_WAITS_S = 1200
_MEMORY = Path("/dev/shm")  # folders on a disk take as long to make and remove as all else
_PIECES = (
    b"", b",", b",,", b"0", b"0,", b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b'"', b"\t", b"-1", b"1e99", b"nan",
    b"inf", b"2147483648", b"99999999999999999999", b"x", b"::", b"|", b" ", "é".encode(), b"0x1F", b"007", b"1.5", b"2020-13-01", b"'",
    b'""', b'"a\nb"', b'",', b',"', b"\xc2\xa0", b"\xe3\x80\x80", b"1.0", b".0", b"NaN", b"+5", b"1e9", b"0.000000001", b" UTC", b"+09:00",
    b"Z", b"2020-09-14T12:26:40", b"2020-02-30", b"1600000000.123456789", b"\n\n", b'\n"',
)  # fmt: skip

Files = dict[str, bytes]
Reported = dict[str, set[int]]
Lost = Callable[[DatasetInfo, Files, Reported], str | None]


def no_check(_info: DatasetInfo, _files: Files, _reported: Reported) -> str | None:
    """Count nothing; the oracle checks more."""
    return None


@dataclass(frozen=True)
class Target:
    """A format with well-formed files, and a check that no row was lost."""

    format: str
    files: Files
    recipe: Recipe | None
    lost: Lost


def rows_of(content: bytes, name: str = "") -> int:
    """Return how many lines of a text are not blank."""
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    return len(texts_of(content))


def texts_of(content: bytes, *, without: set[int] = frozenset()) -> list[str]:
    """Return a text's lines that are not blank, and not among those left out by number."""
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", errors="replace")
    return [text for number, line in enumerate(lines, 1) if (text := line.rstrip("\r\n")) and number not in without]


def sequence_target(draw: np.random.Generator, format: str = "sequence-csv") -> Target:
    """Return files of rows: a first task, an item task, a profile, one of them compressed."""
    names = {
        "sequence-csv": ("task1_history.csv", "task2_bought.csv.gz", "task3_age.csv"),
        "ttl": ("original_desen_pretrain.csv", "original_desen_finetune_click_nouserID.csv.gz", "original_desen_age.csv"),
    }[format]
    rows = [
        ",".join(map(str, np.concatenate((np.zeros(draw.integers(4), int), draw.integers(1, 40, draw.integers(2, 8)))))) for _ in range(60)
    ]
    first = "".join(f"{row}\n" for row in rows)
    second = "".join(f"{row},,{draw.integers(9)},{draw.integers(200)}\n" for row in rows)
    third = "".join(f"{row},,{draw.integers(3)}\n" for row in rows)
    files = {names[0]: first.encode(), names[1]: gzip.compress(second.encode(), mtime=0), names[2]: third.encode()}

    def lost(info: DatasetInfo, files: Files, reported: Reported) -> str | None:
        # the first task takes the users of two items or more
        rows = [text for text in texts_of(files[names[0]], without=reported[names[0]]) if re.search(r"[1-9]\d*,[1-9]", text)]
        if len(rows) != info.tasks[0].users:
            return f"{names[0]}: {len(rows)} rows of two items or more that are not rejected, {info.tasks[0].users} kept"
        for task, name in zip(info.tasks[1:], names[1:], strict=True):
            if (count := rows_of(files[name], name)) != task.users + len(reported[name]):
                return f"{name}: {count} rows, {task.users} kept, {len(reported[name])} rejected"
        return None

    return Target(format, files, None, lost)


def _events(draw: np.random.Generator, separator: str, count: int = 120) -> str:
    columns = (draw.integers(1, 25, count), draw.integers(1, 20, count), draw.integers(1, 6, count), draw.integers(10**8, 10**9, count))
    return "".join(separator.join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def targets(seed: int) -> list[Target]:
    """Return every format with well-formed files."""
    draw = np.random.default_rng(seed)
    every = {"length": 10**6}
    people = [(user, 10 + user % 50, "MF"[user % 2]) for user in range(1, 25)]
    # so few users have no validation example by luck, unless that part is large
    parts = {"split": {"train": 0.5, "validation": 0.25, "test": 0.25}}
    profile = parse_recipe({"history": every, "tasks": {"gender": {"kind": "profile"}}, **parts})
    # the attribute is the task's label and an input of others
    fed = parse_recipe({"history": every, "inputs": {"user": ["gender"]}, "tasks": {"gender": {"kind": "profile"}}, **parts})
    plain = parse_recipe({"history": every, **parts})
    last = parse_recipe({"history": every, "inputs": {"item": ["shelf"]}, "split": {"by": "last"}})
    timed = parse_recipe({"history": {**every, "keep": ["time", "type"]}, "split": {"by": "time", **DATES}})
    atomic = {
        "x.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + _events(draw, "\t")).encode(),
        "x.user": ("user_id:token\tage:token\tgender:token\n" + "".join("\t".join(map(str, row)) + "\n" for row in people)).encode(),
    }
    hundred = {
        "u.data": _events(draw, "\t").encode(),
        "u.user": "".join(f"{user}|{age}|{gender}|artist|5{user:04}\n" for user, age, gender in people).encode(),
    }
    csv = {
        "events.csv": ("user,item,value,timestamp\n" + _events(draw, ",")).encode(),
        "users.csv": ("user,age,gender\n" + "".join(",".join(map(str, row)) + "\n" for row in people)).encode(),
    }
    shown = "".join(f"{draw.integers(1, 25)},{draw.integers(1, 20)},1,0,{n % 2},0,{n % 4},3,{n % 3},{n % 5}\n" for n in range(120))
    tenrec = {"QK-video.csv": b"user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age\n" + shown.encode()}
    clicks = parse_recipe({"history": {**every, "events": {"type": "click"}}, "tasks": {"gender": {"kind": "profile"}}, **parts})

    return [
        Target("tenrec", tenrec, clicks, no_check),
        sequence_target(draw),
        sequence_target(draw, "ttl"),
        Target("recbole", atomic, profile, no_check),
        Target("movielens", hundred, fed, no_check),
        Target("events", csv, fed, no_check),
        Target("events", {"events.csv": csv["events.csv"]}, plain, no_check),
        Target("events", {"events.csv": _quoted(draw), "users.csv": csv["users.csv"]}, profile, no_check),
        # items' attributes as inputs and by leaving out the last items; and by time, of which every row is judged
        Target("events", {"events.csv": csv["events.csv"], "items.csv": _shelves(draw)}, last, no_check),
        Target("events", {"events.csv": _typed(draw)}, timed, no_check),
        Target("events", {"events.csv": _typed(draw)}, parse_recipe({"history": {**every, "keep": ["time", "type"]}, **parts}), no_check),
    ]


def _shelves(draw: np.random.Generator) -> bytes:
    """Return items with an attribute; some have none, and some no row."""
    return ("item,shelf\n" + "".join(f"{item},{('a', 'b', '', '1.0')[int(draw.integers(4))]}\n" for item in range(1, 16))).encode()


def _typed(draw: np.random.Generator, count: int = 120) -> bytes:
    """Return events whose times and types are kept; some have no type."""
    rows = ["user,item,type,timestamp"]
    for _ in range(count):
        kind = ("view", "buy", "1", "", "2.0")[int(draw.integers(5))]
        time = f"{draw.integers(10**9, 10**9 + 60)}{('', '.5', '.999999999')[int(draw.integers(3))]}"
        rows.append(f"{draw.integers(1, 25)},{draw.integers(1, 20)},{kind},{time}")
    return ("\n".join(rows) + "\n").encode()


def _quoted(draw: np.random.Generator, count: int = 120) -> bytes:
    """Return events in which cells are quoted, some over several lines, and times are dates of every form."""
    rows = ["user,item,title,timestamp"]
    for _ in range(count):
        moment = datetime.fromtimestamp(int(draw.integers(10**9, 10**9 + 40)), UTC)
        form = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S.5+00", "%Y-%m-%dT%H:%M:%S.25+09:00")
        title = ('"a ""b"", c"', '"two\nlines"', '"7,8\n1,2,x,1000000000"', "plain", '""')[int(draw.integers(5))]
        user, item = int(draw.integers(1, 25)), int(draw.integers(1, 20))
        rows.append(f'"{user}",{item},{title},{moment.strftime(form[int(draw.integers(5))])}')
    return ("\n".join(rows) + "\n").encode()


def mutate(content: bytes, draw: np.random.Generator) -> bytes:
    """Damage a file's bytes in one to four places."""
    for _ in range(int(draw.integers(1, 5))):
        at, size = int(draw.integers(len(content) + 1)), int(draw.integers(1, 9))
        piece = _PIECES[int(draw.integers(len(_PIECES)))]
        lines = content.splitlines(keepends=True)
        kind = int(draw.integers(9))
        if kind == 0:
            content = content[:at] + piece + content[at:]
        elif kind == 1:
            content = content[:at] + piece + content[at + size :]
        elif kind == 2:
            content = content[:at] + bytes(draw.integers(0, 256, size, dtype=np.uint8)) + content[at + size :]
        elif kind == 3 and draw.random() < 0.3:
            content = content[:at]
        elif kind == 4 and lines:
            lines.insert(int(draw.integers(len(lines) + 1)), lines[int(draw.integers(len(lines)))])
            content = b"".join(lines)
        elif kind == 5 and len(lines) > 1:
            del lines[int(draw.integers(len(lines)))]
            content = b"".join(lines)
        elif kind == 6:
            content = content.replace(b"\n", (b"\r\n", b"\r", b"\n\n", b"\n \n")[int(draw.integers(4))])
        elif kind == 7:
            content = b"\xef\xbb\xbf" + content
        else:
            content = content.removesuffix(b"\n")
    return content


class _TooSlowError(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise _TooSlowError


def run_one(target: Target, files: Files, folder: Path, *, block: int = 1 << 20) -> tuple[str, str | None]:
    """Prepare damaged files, so many bytes at once; returns how it ended, and what is wrong with that, if anything."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    for name, content in files.items():
        (folder / "raw" / name).write_bytes(content)
    # of processor time: on a busy machine nothing is slow that would not be on a quiet one
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, SLOW_S)
    # and one that waits for ever takes no processor time
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(_WAITS_S)
    try:
        raw, out = str(folder / "raw"), str(folder / "out")
        info = prepare(target.format, raw, out, recipe=target.recipe, max_bad_rows=0.9, shards=1, block=block)
    except TeraconError as error:
        left = sorted(path.name for path in folder.iterdir())
        said = None if str(error).strip() else "an error without words"
        return "refused", said if left == ["raw"] else f"left behind: {left}"
    except _TooSlowError:
        return "slow", f"no end after {SLOW_S} s of processor time, or {_WAITS_S} s in all"
    except Exception as error:
        return "broken", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    reported: Reported = defaultdict(set)
    rejected = folder / "out" / "rejected.jsonl"
    lines = rejected.read_text(encoding="utf-8").splitlines() if rejected.exists() else []
    for row in map(json.loads, lines):
        reported[row["file"]].add(row["line"])
    if sum(map(len, reported.values())) != sum(info.notes["malformed_rows"].values()):
        return "kept", "rejected.jsonl and the counts differ"
    return judged(target, files, folder / "out", info, reported)


def judged(target: Target, files: Files, out: Path, info: DatasetInfo, reported: Reported) -> tuple[str, str | None]:
    """Return whether a data set could be judged, and what is wrong with it."""
    if target.format in ("sequence-csv", "ttl"):
        return "kept", target.lost(info, files, reported)
    try:
        want = oracle.expected(target.format, files)
        return "kept", difference(oracle.rows_by_time(want, DATES) if info.split.by == "time" else want, out, info, reported)
    except oracle.GiveUpError:
        return "kept, not judged", None


def difference(want: oracle.Expected, out: Path, info: DatasetInfo, reported: Reported) -> str | None:
    """Return how a data set differs from what the oracle reads, None where it does not."""
    for name, lines in want.rejected.items():
        if lines != reported[name]:
            return f"{name}: rejected lines {sorted(lines ^ reported[name])[:5]} differ (oracle {len(lines)}, reader {len(reported[name])})"
    items = {row["index"]: row["item"] for row in pq.read_table(out / "vocab" / "items.parquet").to_pylist()}
    users = pq.read_table(out / "users" / "shard-00000.parquet").to_pylist()
    got = {row["user_id"]: [items[index] for index in row["sequence"]] for row in users}
    if got != want.sequences:
        user = next(user for user in sorted(got.keys() | want.sequences) if got.get(user) != want.sequences.get(user))
        return f"user {user!r}: oracle {want.sequences.get(user)}, reader {got.get(user)}"
    if want.columns is not None and info.history.names == ("times", "types"):
        types = {row["index"]: row["type"] for row in pq.read_table(out / "vocab" / "_types.parquet").to_pylist()}
        beside = {row["user_id"]: (row["times"], [types[number] for number in row["types"]]) for row in users}
        if beside != want.columns:
            user = next(user for user in sorted(beside) if beside[user] != want.columns.get(user))
            return f"times and types of user {user!r}: oracle {want.columns.get(user)}, reader {beside[user]}"
    for feature in info.inputs.user:
        values = {row["index"]: row["value"] for row in pq.read_table(out / input_file(feature.name)).to_pylist()}
        known = {row["user_id"]: values[row[f"input.{feature.name}"]] for row in users if row[f"input.{feature.name}"]}
        if known != want.genders:
            user = next(user for user in sorted(known.keys() | want.genders) if known.get(user) != want.genders.get(user))
            return f"{feature.name} of user {user!r}: oracle {want.genders.get(user)!r}, reader {known.get(user)!r}"
    for task in info.tasks[1:]:
        names = {row["index"]: row["label"] for row in pq.read_table(out / "vocab" / f"{task.name}.parquet").to_pylist()}
        rows = pq.read_table(out / "tasks" / task.name / "shard-00000.parquet").to_pylist()
        labels = {users[row["row"]]["user_id"]: names[row["labels"][0]] for row in rows}
        if labels != want.genders:
            user = next(user for user in sorted(labels.keys() | want.genders) if labels.get(user) != want.genders.get(user))
            return f"label of user {user!r}: oracle {want.genders.get(user)!r}, reader {labels.get(user)!r}"
    return _other_labels(want, out, info, items, users) or _other_shelves(want, out, info, items)


def _other_labels(want: oracle.Expected, out: Path, info: DatasetInfo, items: dict[int, Any], users: list[dict[str, Any]]) -> str | None:
    """Return how the first task's labels under a split by `last` differ."""
    if info.split.by != "last":
        return None
    found = {}
    for row in pq.read_table(out / "tasks" / "next" / "shard-00000.parquet").to_pylist():
        names = [items[label + FIRST_ITEM] for label in row["labels"]]
        found[users[row["row"]]["user_id"]] = list(zip(names, row["split"], strict=True))
    expected = oracle.last_labels(want.sequences)
    user = next((user for user in sorted(found.keys() | expected) if found.get(user) != expected.get(user)), None)
    return None if user is None else f"last items of user {user!r}: oracle {expected.get(user)}, reader {found.get(user)}"


def _other_shelves(want: oracle.Expected, out: Path, info: DatasetInfo, items: dict[int, Any]) -> str | None:
    """Return how the items' attribute differs that is an input."""
    if not info.inputs.item:
        return None
    values = {row["index"]: row["value"] for row in pq.read_table(out / input_file("shelf")).to_pylist()}
    numbers = pq.read_table(out / ITEM_INPUTS_FILE).to_pylist()
    found = {items[row["index"]]: values[row["input.shelf"]] for row in numbers if row["input.shelf"]}
    expected = {item: value for item, value in want.shelves.items() if item in items.values()}
    item = next((item for item in sorted(found.keys() | expected) if found.get(item) != expected.get(item)), None)
    return None if item is None else f"shelf of item {item!r}: oracle {expected.get(item)!r}, reader {found.get(item)!r}"


def fuzz(inputs: int, *, seed: int, formats: set[str] | None = None, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Run so many damaged inputs over all formats; returns how they ended and what was found wrong."""
    chosen = [target for target in targets(seed) if formats is None or target.format in formats]
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    bad_rows._SAMPLES = sys.maxsize  # every rejected row is reported, so that they can be counted
    delimited._LEAST_BLOCK = 64  # so that rows lie across blocks
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as name:
        for target in chosen:
            end, problem = run_one(target, target.files, Path(name) / "case")
            if end != "kept" or problem is not None:
                wrong.append(f"undamaged files of seed {seed}, {target.format}: {problem or end}")
        for number in range(inputs):
            draw = np.random.default_rng([seed, number])
            target = chosen[number % len(chosen)]
            damaged = sorted(target.files)[int(draw.integers(len(target.files)))]
            content = target.files[damaged]
            if damaged.endswith(".gz") and draw.random() < 0.7:
                content = gzip.compress(mutate(gzip.decompress(content), draw), mtime=0)
            else:
                content = mutate(content, draw)
            files = {**target.files, damaged: content}
            if number and number % 1000 == 0:
                print(f"{number} of {inputs} inputs, {len(wrong)} wrong", file=sys.stderr, flush=True)
            end, problem = run_one(target, files, Path(name) / "case", block=(64, 700, 1 << 20)[int(draw.integers(3))])
            ends[f"{target.format}: {end}"] += 1
            if problem is not None:
                wrong.append(f"input {number} of seed {seed}, {target.format}, {damaged}: {problem}")
                if keep is not None:
                    for path, text in files.items():
                        (keep / str(number)).mkdir(parents=True, exist_ok=True)
                        (keep / str(number) / path).write_bytes(text)
    return ends, wrong


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", help="this format alone; several times for several")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "dist-teracon-fuzz", help="where failing inputs go")
    options = parser.parse_args()
    began = time.monotonic()
    ends, wrong = fuzz(options.inputs, seed=options.seed, formats=set(options.format) if options.format else None, keep=options.keep)
    for end, count in sorted(ends.items()):
        print(f"{count:7} {end}")
    print(f"{options.inputs} inputs in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
