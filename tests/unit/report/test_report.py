"""The report of a run: what is read, what is printed, what the page shows."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_teracon.errors import DataError, RunError, TeraconError
from dist_teracon.report.figures import make_figures
from dist_teracon.report.html import render, write_report
from dist_teracon.report.run_data import read_run
from dist_teracon.report.summary import headline, standard_error
from dist_teracon.report.table import print_scores, score_rows
from dist_teracon.report.values import count_text, percent_text, score_text, seconds_text

TASKS = (
    ("next", "next", 1682),
    ("star4", "item", 1412),
    ("star5", "item", 1170),
    ("age", "profile", 7),
    ("gender", "profile", 2),
    ("occupation", "profile", 21),
)
ALONE = (0.0446, 0.0304, 0.0568, 0.4475, 0.7301, 0.2076)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def make_run(
    folder: Path, *, stages: int = 6, seed: int = 0, names: tuple[str, ...] | None = None, extras: bool = True, method: str = "teracon"
) -> Path:
    """Write a plausible run folder; `extras` adds baselines, single-task scores, the data set, timing and the log."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    tasks = names or tuple(name for name, _, _ in TASKS)
    metrics = ["accuracy" if kind == "profile" else "mrr@5" for _, kind, _ in TASKS]
    learned = [score * (1 + rng.uniform(-0.04, 0.3)) for score in ALONE]
    scores = [[learned[i] * (1 + (j - i) * rng.uniform(-0.02, 0.012)) for i in range(j + 1)] for j in range(stages)]
    last = scores[-1]
    results: dict[str, Any] = {
        "format_version": 1,
        "method": method,
        "seed": seed,
        "tasks": list(tasks),
        "metrics": metrics,
        "scores": scores,
        "single_task": list(ALONE) if extras else None,
        "fwt": [100 * (learned[i] / ALONE[i] - 1) if 0 < i < stages else None for i in range(6)] if extras else None,
        "fwt_absolute": [learned[i] - ALONE[i] if 0 < i < stages else None for i in range(6)] if extras else None,
        "bwt": [100 * (last[i] / learned[i] - 1) if i < stages - 1 else None for i in range(6)],
        "bwt_absolute": [last[i] - learned[i] if i < stages - 1 else None for i in range(6)],
        "test_examples": [141, 612, 548, 141, 141, 141],
        "unseen_targets": [3, 17, 12, 0, 0, 0],
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(_CONFIG.format(seed=seed, method=method))
    if extras:
        (folder / "dataset.json").write_text(json.dumps(_dataset(tasks)))
        (folder / "baselines.json").write_text(json.dumps(_BASELINES))
        (folder / "timing.json").write_text(json.dumps(_timing(tasks, stages, rng)))
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in _events(tasks, stages, rng)))
    return folder


_METRICS = [["accuracy" if kind == "profile" else "mrr@5"] for _, kind, _ in TASKS]
_CONFIG = """
dataset: data/ml-100k
seed: {seed}
method: {{name: {method}, alpha: 0.7, retention: {{scale: full, pool: auto}}, relation_init: extend}}
model: {{backbone: nextitnet, channels: 64, dilations: [1, 4, 1, 4]}}
train: {{epochs: 30, patience: 5, batch: 256, rates: {{next: 0.001, later: 0.0001}}, clip: null}}
evaluate: {{max_users: 5000, with_single_task: true}}
"""
_BASELINES: dict[str, list[Any]] = {
    "popularity": [0.0215, 0.0219, 0.0477, None, None, None],
    "majority": [None, None, None, 0.3404, 0.7092, 0.1986],
    "svd_logistic_regression": [None, None, None]
    + [
        {"score": score, "dimensions": dimensions, "validation_score": score + 0.0123}
        for score, dimensions in ((0.4255, 64), (0.7731, 32), (0.2198, 16))
    ],
}


def _dataset(tasks: tuple[str, ...]) -> dict[str, Any]:
    kinds = zip(tasks, TASKS, strict=True)
    return {
        "name": "ml-100k",
        "users": 943,
        "items": 1684,
        "events": 26571,
        "length_limit": 30,
        "shards": 8,
        "split": {"by": "users", "seed": 7, "train": 0.8, "validation": 0.05, "test": 0.15, "folds": 1, "fold": 0},
        "tasks": [
            {"name": name, "kind": kind, "labels": labels, "users": 930 - i, "examples": [754 - i, 47, 141]}
            for i, (name, (_, kind, labels)) in enumerate(kinds)
        ],
        "files": {"users/shard-00000.parquet": {"rows": 943, "bytes": 123456, "sha256": "ab" * 32}},
        "source": {"format": "recbole", "recipe": "ml-100k"},
        "notes": {"rejected_rows": {"bad number": 2}, "users_without_history": 11, "equal_sequences": 0},
        "parent": None,
        "format_version": 1,
    }


def _timing(tasks: tuple[str, ...], stages: int, rng: random.Random) -> dict[str, Any]:
    entries = []
    for stage in range(1, stages + 1):
        training, labels, evaluation = 20 + 30 * rng.random(), 1.5 * (stage - 1), 2.0 + stage
        parts = {"training_seconds": training, "pseudo_label_seconds": labels, "evaluation_seconds": evaluation}
        entries.append({"stage": stage, "task": tasks[stage - 1], "seconds": training + labels + evaluation + 1.1, **parts, "epochs": 9})
    versions = {"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19.8"}
    return {"stages": entries, "machine": {"cpu": "x86_64 8-core", "cores": 2, "world_size": 1, "versions": versions}}


def _events(tasks: tuple[str, ...], stages: int, rng: random.Random) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = [
        {"event": "run", "method": "teracon", "seed": 0, "tasks": list(tasks), "metrics": _METRICS, "world_size": 1}
    ]
    for stage in range(1, stages + 1):
        task, past = tasks[stage - 1], tasks[: stage - 1]
        log.append({"event": "stage", "stage": stage, "task": task})
        log += [{"event": "pseudo_labels", "stage": stage, "task": task, "past": name, "rows": 1640, "seconds": 0.4} for name in past]
        epochs = 6 + rng.randrange(8)
        for epoch in range(epochs + 1):
            rates = {name: 0.012 + 0.01 * k + 0.03 * math.exp(-epoch / 4) + 0.001 * rng.random() for k, name in enumerate(past)}
            loss = {f"class/{task}": 2.1 * math.exp(-epoch / 5) + 0.9} if epoch else {}
            loss |= {f"retention/{name}": 0.004 * (k + 1) * (1 - math.exp(-epoch / 3)) for k, name in enumerate(past)} if epoch else {}
            score = ALONE[stage - 1] * (0.35 + 0.7 * (1 - math.exp(-epoch / 3))) * (1 + 0.03 * rng.random())
            place = {"stage": stage, "task": task, "phase": "train", "epoch": epoch}
            if epoch:
                for step in range(10):
                    number = 10 * (epoch - 1) + step
                    log.append({"event": "step", **place, "step": number, "loss": loss, "scale": 3.1, "rho": rates, "rows": {}})
            metric = "mrr@5" if stage < 4 else "accuracy"
            log.append({"event": "epoch", **place, "loss": loss, "validation": score, "metric": metric, "best": epoch >= epochs - 2})
        known = tasks[:stage]
        similarity = [[1.0 if i == j else 0.62 + 0.3 * abs(math.sin(3 * (i + j) + i * j)) for i in range(stage)] for j in range(stage)]
        histograms = {
            name: [400 * math.exp(-b / 2) + 900 * math.exp(-(19 - b) / (2 + k)) for b in range(20)] for k, name in enumerate(known)
        }
        log.append({"event": "masks", "stage": stage, "tasks": list(known), "similarity": similarity, "histograms": histograms})
        log.append({"event": "scores", "stage": stage, "task": task, "scores": {}, "seconds": 2.0})
    return [{**event, "time": 1_790_000_000 + k} for k, event in enumerate(log)]


class Balanced(HTMLParser):
    """Checks that every element is closed in its turn, and collects ids, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text.append(data)


def parse(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "ml-100k")


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    out = write_report([run_folder], run_folder / "report.html")
    assert out == run_folder / "report.html"
    return out.read_text(encoding="utf-8")


def test_page_holds_every_number(page: str, run_folder: Path) -> None:
    text = " ".join(parse(page).text)
    results = json.loads((run_folder / "results.json").read_text())
    numbers = [score_text(value) for row in results["scores"] for value in row] + [score_text(value) for value in results["single_task"]]
    numbers += [percent_text(value) for name in ("fwt", "bwt") for value in results[name] if value is not None]
    for name in ("popularity", "majority"):
        numbers += [score_text(value) for value in _BASELINES[name] if isinstance(value, float)]
    numbers += [score_text(entry["score"]) for entry in _BASELINES["svd_logistic_regression"] if isinstance(entry, dict)]
    numbers += [score_text(entry["validation_score"]) for entry in _BASELINES["svd_logistic_regression"] if isinstance(entry, dict)]
    numbers += [count_text(value) for value in (*results["test_examples"], *results["unseen_targets"], 26571, 5000)]
    numbers += [seconds_text(stage["seconds"]) for stage in json.loads((run_folder / "timing.json").read_text())["stages"]]
    assert [number for number in numbers if number not in text] == []
    for words in ("method.retention.pool", "80 % training", "by user", "bad number", "2.13.0", "2026-09-21", "model.dilations"):
        assert words in text


def test_page_is_balanced_and_ids_are_unique(page: str) -> None:
    parser = parse(page)
    assert parser.tags.count("svg") > 20
    assert len(set(parser.ids)) == len(parser.ids)
    assert parser.tags.count("style") == 1


def test_page_loads_nothing(page: str) -> None:
    parser = parse(page)
    assert re.findall(r"(?:https?:)?//[\w.]", page) == []
    assert {link for link in parser.links if not link.startswith("#")} == set()
    assert {"script", "link", "img", "iframe", "object", "embed"}.isdisjoint(parser.tags)
    assert "@import" not in page
    referred = {unescape(name) for name in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", page)}
    assert referred <= set(parser.ids)


def test_all_figures_are_drawn_and_equal_runs_give_equal_pages(run_folder: Path, page: str) -> None:
    figures = make_figures(read_run(run_folder))
    names = ["retained", "transfer", "final", "learning", "loss", "rho", "retention", "similarity", "histograms", "seconds"]
    assert list(figures) == names
    assert [len(figure.panels) for figure in figures.values()] == [1, 1, 6, 6, 6, 5, 5, 1, 6, 1]
    assert render([read_run(run_folder)]) == page


def test_colours_all_come_from_the_style_sheet(run_folder: Path) -> None:
    svg = "".join(panel.svg for figure in make_figures(read_run(run_folder)).values() for panel in figure.panels)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert "var(--ink)" in svg


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&b", '"><img src=x onerror=1>', "$x^2$", "_hidden", "쇼핑 대분류", "[red]x[/red]"]
)
def test_a_strange_task_name_is_text(tmp_path: Path, name: str) -> None:
    run = read_run(make_run(tmp_path / "run", stages=2, names=("next", name, "star5", "age", "gender", "occupation")))
    parser = parse(render([run]))
    assert {"script", "img"}.isdisjoint(parser.tags)
    assert any(name in text for text in parser.text)
    assert name in printed(run)
    assert name in printed(run, terminal=True)


def test_an_unfinished_run_without_extras(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=1, extras=False))
    text = " ".join(parse(render([run])).text)
    assert "Unfinished: teracon has learned 1 of 6 tasks" in text
    assert not run.finished
    assert score_text(run.scores[0][0]) in text
    assert [row.name for row in score_rows(run)] == ["after next"]
    assert "after next" in printed(run)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event":"run","method":"teracon","seed":3,"tasks":["next","age"],"time":1}\n{"event":"st')
    run = read_run(folder)
    assert (run.tasks, run.seed, run.scores, run.events.unreadable) == (("next", "age"), 3, (), 0)
    parse(render([run]))
    assert "No task has a score yet" in printed(run)


def test_results_of_the_learned_tasks_alone_take_the_planned_ones_from_the_log(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=2)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "tasks": results["tasks"][:2], "metrics": results["metrics"][:2]}))
    run = read_run(folder)
    assert run.tasks == tuple(name for name, _, _ in TASKS)
    assert run.metrics[3] == "accuracy"
    assert "2 of 6 tasks" in headline(run)


def test_each_task_evaluated_once_as_by_single_task_training(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", extras=False, method="sinmo")
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["scores"] = [[None] * j + row[j:] for j, row in enumerate(results["scores"])]
    path.write_text(json.dumps({**results, "bwt": [None] * 6, "bwt_absolute": [None] * 6}))
    run = read_run(folder)
    assert run.finished
    assert run.final == run.learned == tuple(row[-1] for row in results["scores"])
    parse(render([run]))


def test_log_lines_written_twice_or_broken(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", stages=2)
    epoch = {"event": "epoch", "stage": 1, "phase": "train", "epoch": 1, "loss": {"class/next": 7.5}, "validation": None, "metric": "mrr@5"}
    with (folder / "events.jsonl").open("a") as file:
        file.write("not json\n" + json.dumps(epoch) + "\n" + '{"event": "epo')
    events = read_run(folder).events
    assert events.unreadable == 1
    again = [entry for entry in events.epochs_of(1) if entry.epoch == 1]
    assert [entry.loss for entry in again] == [{"class/next": 7.5}]
    assert "1 lines could not be read" in render([read_run(folder)])


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    out = write_report(folders, tmp_path / "both.html")
    text = " ".join(parse(out.read_text(encoding="utf-8")).text)
    assert "Runs side by side" in text
    for folder in folders:
        run = read_run(folder)
        assert folder.name in text
        assert all(score_text(score) in text for score in run.final)
    assert "do not compare" not in text


def test_runs_of_other_data_are_not_called_comparable(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / f"run-{k}", seed=k) for k in range(2))
    dataset = json.loads((second / "dataset.json").read_text())
    (second / "dataset.json").write_text(json.dumps({**dataset, "events": 1}))
    page = render([read_run(first), read_run(second)])
    assert "do not compare" in page
    assert 'class="best"' not in page


def test_headline_counts_what_the_numbers_say(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results |= {"fwt": [None, 10.0, -2.0, 0.0, 4.0, 6.0], "bwt": [-1.0, 2.0, -7.5, 0.0, 0.0, None]}
    results["scores"][-1] = [0.03, 0.03, 0.05, 0.4255, 0.8, 0.3]
    path.write_text(json.dumps(results))
    said = headline(read_run(folder))
    assert said == (
        "teracon learned 6 tasks on ml-100k: 3 of 5 later tasks scored above the same task learned alone (median FWT +4.0\u00a0%), "
        "2 of 5 earlier tasks lost score by the end (most: star5, BWT −7.5\u00a0%), and 5 of 6 tasks end above every baseline (not age)."
    )


def test_odd_values_neither_stop_the_page_nor_become_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    zeros = {"tasks": ["a", "b"], "metrics": ["mrr@5", None], "scores": [[0.0], [0.0, None], [math.nan, 0]], "single_task": [0.0, "x"]}
    (folder / "results.json").write_text(json.dumps({**zeros, "fwt": [None, None], "bwt": [None], "test_examples": [0, -1]}))
    (folder / "timing.json").write_text('{"stages": [{"stage": 1, "task": "a", "seconds": 0.0}, {"seconds": null}, 7]}')
    events = [
        {"event": "stage", "stage": "one"},
        {"event": "stage", "stage": 1, "task": "a"},
        {"event": "step", "stage": 1, "step": 0, "rho": {"a": None, "b": 0.0}},
        {"event": "epoch", "stage": 1, "epoch": 0, "loss": {"class/a": math.inf, "retention/b": 0.0}, "validation": math.nan},
        {"event": "epoch", "stage": 9, "epoch": 5, "loss": {"class/z": 1.0}, "validation": 0.5, "best": True},
        {"event": "masks", "stage": 1, "tasks": ["a", "b"], "similarity": [[1, 0.5], [None]], "histograms": {"a": [], "z": [0, 3]}},
        {"event": "pseudo_labels", "stage": 1, "past": "a"},
        {"event": "unknown"},
        [1],
    ]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    run = read_run(folder)
    page = render([run, run])
    parse(page)
    assert re.findall(r"\b(?:nan|inf)\b", page) == []
    assert "nan" not in printed(run)


def test_many_tasks_with_long_names(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    names = [f"a rather long name of the task number {k}" for k in range(20)]
    scores = [[0.1 + 0.01 * k for k in range(j + 1)] for j in range(20)]
    results = {"tasks": names, "metrics": ["mrr@5"] * 20, "scores": scores, "bwt": [0.0] * 19 + [None]}
    (folder / "results.json").write_text(json.dumps(results))
    text = " ".join(parse(render([read_run(folder)])).text)
    assert all(name in text for name in names)


def test_standard_error_of_an_accuracy() -> None:
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(0.5, 0) is None
    assert standard_error(None, 10) is None


def printed(run: Any, *, terminal: bool = False) -> str:
    buffer = io.StringIO()
    print_scores(run, Console(file=buffer, force_terminal=terminal, width=160, color_system="truecolor" if terminal else None))
    return re.sub(r"\x1b\[[0-9;]*m", "", buffer.getvalue())


def test_printed_table_is_plain_off_a_terminal(run_folder: Path) -> None:
    run = read_run(run_folder)
    plain = printed(run)
    assert all(sign.isascii() for sign in plain)
    lines = plain.splitlines()
    head = next(k for k, line in enumerate(lines) if "star4 (mrr@5)" in line)
    names = [row.name for row in score_rows(run)]
    assert [line[: len(name)] for line, name in zip(lines[head + 1 :], names, strict=False)] == names
    assert len({len(line) for line in lines[head : head + len(names) + 1] if line.strip()}) <= 2 + len(run.tasks)
    assert names[-8:] == ["learned alone", "FWT", "FWT, absolute", "BWT", "BWT, absolute", "popularity", "majority", "SVD + LR"]
    for row in score_rows(run):
        assert all(cell.replace("−", "-").replace("–", "-").replace("\u00a0", " ") in plain for cell in row.cells)


def test_printed_table_on_a_terminal_holds_the_same_numbers(run_folder: Path) -> None:
    run = read_run(run_folder)
    table = printed(run, terminal=True)
    assert all(cell in table for row in score_rows(run) for cell in row.cells)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=1, names=("a\x1b[2Jb", "b", "c", "d", "e", "f")))
    assert "\x1b" not in printed(run)
    assert "a?[2Jb" in printed(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(RunError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="no run folder given"):
        write_report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "baselines.json").write_text('{"popularity": [')
    with pytest.raises(DataError, match=r"baselines\.json: not valid JSON"):
        read_run(folder)
    (folder / "baselines.json").unlink()
    (folder / "results.json").write_text('{"format_version": 2}')
    with pytest.raises(RunError, match="format version 2"):
        read_run(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="not valid YAML"):
        read_run(folder)


@pytest.mark.parametrize("library", ["matplotlib.style", "jinja2"])
def test_a_missing_library_is_named(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TeraconError, match=r"pip install 'dist-teracon\[report\]'"):
        write_report([run_folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_table_needs_no_heavy_library() -> None:
    code = "import sys, dist_teracon.report.table; print([m for m in ('matplotlib', 'jinja2', 'torch', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_pyplot_and_the_users_settings_stay_untouched(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other libraries load it

    def settings() -> dict[str, Any]:
        return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}  # to read that one loads pyplot

    before = settings()
    make_figures(read_run(run_folder))
    assert "matplotlib.pyplot" not in sys.modules
    assert settings() == before
