"""A method, a backbone, a source, a metric and a kernels' backend: one file and one registry line each, with nothing else touched.

Their files are those of `tests/helpers`; docs/extending.md shows them.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_metric
from kernel_problems import LENGTHS, problem
from small_runs import HELPERS, UNTRAINED, events, results, settings, small_tables, train_here, weights

from dist_teracon import cli, continual, models
from dist_teracon.continual import registry as methods
from dist_teracon.data import sources
from dist_teracon.data.batches import PackedBatch
from dist_teracon.data.prepare.pipeline import write_dataset
from dist_teracon.data.prepare.versions import append
from dist_teracon.data.schema import SplitRule
from dist_teracon.data.sources.registry import SOURCES
from dist_teracon.errors import ConfigError
from dist_teracon.evaluate.metrics import METRICS, by_rank
from dist_teracon.kernels import masked_dilated_conv_stack as kernels
from dist_teracon.models import backbone as backbones
from dist_teracon.train.add_task import AddedTask
from dist_teracon.train.restore import restore_method

ITEMS = "backbone.item_embedding.weight"
RULE = SplitRule(train=0.6, validation=0.2, test=0.2)
SHIPPED_METHODS, SHIPPED_BACKBONES = tuple(methods.METHODS), tuple(backbones.BACKBONES)


@pytest.fixture(autouse=True, scope="module")
def registry_lines() -> Iterator[None]:
    """The registry lines, the toys' files being found as if they lay where files of their kind lie; undone at the end."""
    # first: what is imported within the patch would be registered in it alone, and not again afterwards
    for name in SHIPPED_METHODS:
        methods.method_class(name)
    for module in backbones.BACKBONES.values():
        importlib.import_module(f"dist_teracon.models.{module}")
    with pytest.MonkeyPatch.context() as patch:
        for package in (continual, models, sources, kernels):
            patch.setattr(package, "__path__", [*package.__path__, str(HELPERS)])
        for registry in (methods, backbones):
            patch.setattr(registry, "_registered", dict(registry._registered))
        patch.setitem(methods.METHODS, "anchored", "toy_anchored")
        patch.setitem(backbones.BACKBONES, "bag", "toy_backbone")
        patch.setitem(SOURCES, "jsonl", "toy_source:FORMAT")
        patch.setitem(METRICS, "sure-hit", by_rank(toy_metric.sure_hit, over="examples"))
        patch.setitem(kernels.BACKENDS, "exact", "toy_kernels")
        yield
    for name in [name for name in sys.modules if name.startswith("dist_teracon.") and ".toy_" in name]:
        del sys.modules[name]


def on_bag(dataset: str, **options: Any) -> dict[str, Any]:
    """Return a small run's configuration on the toy backbone."""
    values = settings(dataset, **options)
    values["model"] = {**values["model"], "backbone": {"name": "bag", "layers": 3}, "pooling": "last"}
    return values


def test_the_documents_examples_are_the_files_that_are_tested_here() -> None:
    page = (HELPERS.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    files = [path.read_text(encoding="utf-8").rstrip() for path in sorted(HELPERS.glob("toy_*.py"))]
    assert len(shown) >= 4
    assert [code.splitlines()[0] for code in shown if not any(file.endswith(f"\n{code}") for file in files)] == []


# -- a backbone


def test_a_method_that_inserts_modules_refuses_a_backbone_without_a_place_for_them(alone: None, small: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.name: method 'peterrec' .* 'bag' has no place"):
        train_here(on_bag(small, method="peterrec", tasks=("next", "likes")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [method for method in SHIPPED_METHODS if method != "peterrec"])
def test_every_method_learns_on_a_new_backbone(alone: None, small: str, tmp_path: Path, method: str) -> None:
    run = train_here(on_bag(small, method=method, tasks=("next", "likes")), tmp_path / "run")
    assert [len(row) for row in results(run)["scores"]] == [1, 2]
    if method in UNTRAINED:
        return
    losses = [event["loss"]["class/next"] for event in events(run, "epoch") if event["stage"] == 1 and event["epoch"]]
    assert losses[1] < losses[0]
    assert "layers: 3" in (run / "config.yaml").read_text()
    restored = restore_method(run)
    assert all(torch.equal(value, weights(run, "02-likes")[name]) for name, value in restored.state_dict().items())
    batch = PackedBatch.from_sequences([[5, 9, 3], [4]], mask_index=restored.mask_index("likes"))
    assert restored.head("likes")(restored.encode(batch, "likes")).shape == (2, 12)


def first_stage(small: str, folder: Path, *, decay: float, sparse: str) -> dict[str, torch.Tensor]:
    """Return the weights of one stage with and without weight decay and sparse updates."""
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 2, "weight_decay": decay}
    values = on_bag(small, tasks=("next",), first=stage, sparse_updates=sparse)
    return weights(train_here(values, folder / f"{decay}-{sparse}"), "01-next")


def test_a_new_backbone_gets_weight_decay_and_sparse_updates(alone: None, small: str, tmp_path: Path) -> None:
    free, decayed, sparse = (
        first_stage(small, tmp_path, decay=decay, sparse=sparse) for decay, sparse in ((0.0, "off"), (0.5, "off"), (0.5, "on"))
    )
    for name in (ITEMS, "backbone.weight", "heads.next.weight"):
        assert decayed[name].norm() < free[name].norm(), name
    unread = 0  # no sequence holds the reserved item: its row starts as it is drawn, and a sparse update never sees it
    assert torch.equal(sparse[ITEMS][unread], free[ITEMS][unread])
    assert decayed[ITEMS][unread].norm() < free[ITEMS][unread].norm()
    assert not torch.equal(sparse[ITEMS][2:], free[ITEMS][2:])


def test_a_new_backbones_item_table_grows_with_new_items(alone: None, tmp_path: Path) -> None:
    old, added, new = (str(tmp_path / name) for name in ("old", "added", "new"))
    tables = small_tables()
    write_dataset(replace(tables, labels=tables.labels[:1]), old, RULE, shards=8)
    write_dataset(small_tables(users=220, items=47), added, RULE, shards=8)
    append(old, added, new)
    run = train_here({**on_bag(old), "tasks": None}, tmp_path / "run")
    before = weights(run, "02-likes")[ITEMS]
    train_here({**on_bag(new), "tasks": None}, run, added=AddedTask("gender", "neighbours", None))
    after = weights(run, "03-gender")[ITEMS]
    grown = json.loads((run / "stages" / "03-gender" / "state.json").read_text())["growth"]
    assert (grown["items_before"], grown["items"]) == (before.shape[0], after.shape[0])
    assert after.shape[0] > before.shape[0]
    assert grown["started"] > 0


# -- a method


@pytest.mark.parametrize("backbone", [*SHIPPED_BACKBONES, "bag"])
def test_a_new_method_learns_on_every_backbone(alone: None, small: str, tmp_path: Path, backbone: str) -> None:
    values = settings(small, method={"name": "anchored", "strength": 0.5}, tasks=("next", "likes", "age"))
    values["model"] = {**values["model"], "backbone": backbone}
    run = train_here(values, tmp_path / "run")
    assert [len(row) for row in results(run)["scores"]] == [1, 2, 3]
    assert "strength: 0.5" in (run / "config.yaml").read_text()
    terms = [set(event["loss"]) for event in events(run, "step")]
    assert terms[0] == {"class/next"}
    assert terms[-1] == {"class/age", "anchor"}
    assert restore_method(run, stage=2).learned == ["next", "likes"]


def test_a_new_methods_setting_has_its_effect(alone: None, small: str, tmp_path: Path) -> None:
    """The pull keeps the layers' matrices near the stage before."""
    moved = []
    for strength in (0.0, 5.0):
        values = on_bag(small, method={"name": "anchored", "strength": strength}, tasks=("next", "likes"))
        run = train_here(values, tmp_path / f"{strength}")
        moved.append((weights(run, "02-likes")["backbone.weight"] - weights(run, "01-next")["backbone.weight"]).norm())
    assert moved[1] < moved[0]


# -- a source


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder of events as JSON lines, in two files and with one line that is none."""
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = [json.dumps({"user": f"u{user}", "item": f"i{(user + 3 * n) % 11}", "time": n}) for user in range(60) for n in range(8)]
    (folder / "events-2.jsonl").write_text("\n".join(lines[:200]) + "\n")
    (folder / "events-10.jsonl").write_text("\n".join([*lines[200:], '{"user": "u1"}']) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        "history: {events: {until: 1970-01-01T00:00:06}}\ntasks: {later: {kind: item, events: {from: 1970-01-01T00:00:06}}}\n"
    )
    return folder


def test_a_new_source_is_prepared_from_the_command_line_and_trained_on(
    alone: None, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    command = ["prepare", "jsonl", str(raw), str(out), "--recipe", str(tmp_path / "recipe.yaml"), "--max-bad-rows", "0.01"]
    assert cli.main(command) == 0
    info = json.loads((out / "dataset.json").read_text())
    assert (info["users"], info["events"], info["source"]["format"]) == (60, 60 * 6, "jsonl")
    assert [task["name"] for task in info["tasks"]] == ["next", "later"]
    assert json.loads((out / "rejected.jsonl").read_text())["line"] == 281
    assert cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert len(results(train_here(settings(str(out), tasks=("next", "later")), tmp_path / "run"))["scores"]) == 2


def test_a_new_sources_malformed_lines_stop_the_command_and_name_their_place(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", "jsonl", str(raw), str(tmp_path / "set"), "--recipe", str(tmp_path / "recipe.yaml")]) == 2
    assert "events-10.jsonl:281" in capsys.readouterr().err


def test_a_new_source_stands_in_the_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["prepare", "--help"])
    assert "jsonl" in capsys.readouterr().out


# -- a metric


def test_a_new_metric_stands_beside_the_others_and_can_select(alone: None, small: str, tmp_path: Path) -> None:
    values = settings(small, tasks=("next", "likes", "age"))
    names = ["sure-hit@3", "hr@3", "accuracy"]
    run = train_here({**values, "evaluate": {"metrics": names}}, tmp_path / "run")
    found = results(run)
    assert found["metrics"] == ["sure-hit@3", "sure-hit@3", "accuracy"]
    for sure, expected in zip(found["scores_by_metric"]["sure-hit@3"], found["scores_by_metric"]["hr@3"], strict=True):
        assert all(0 < low <= high for low, high in zip(sure[:2], expected[:2], strict=False))
    assert found["scores_by_metric"]["sure-hit@3"][2][2] is None  # a profile task does not have it
    assert {event["metric"] for event in events(run, "epoch") if event["stage"] == 2} == {"sure-hit@3"}
    report = cli.main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert report == 0
    assert "sure-hit@3" in (tmp_path / "page.html").read_text(encoding="utf-8")


# -- a kernels' backend


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_new_backend_is_chosen_by_name(positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, row_offsets, tasks, parameters, masks = problem(LENGTHS["many"])
    layout = kernels.build_layout(row_offsets, tasks, dilations=(1, 4), kernel_size=3, positions=positions)
    monkeypatch.setenv("DIST_TERACON_KERNELS", "exact")
    single = kernels.StackParameters(*(part.float() for part in parameters))
    found = kernels.masked_dilated_conv_stack(x.float(), layout, single, masks.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), kernels.reference.stack(x, layout, parameters, masks, eps=1e-8), rtol=1e-4, atol=1e-4)
