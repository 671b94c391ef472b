"""From a folder of logs that nobody has prepared to a trained model: `init`, `prepare`, `inspect`, `train`, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_logs import write_logs

from dist_teracon.cli import main

# The smallest training there is.
TINY = ("model.channels=8", "model.backbone.dilations=[1]", "model.item_init=uniform", "train.max_steps=2", "train.second.probe_steps=0")


@pytest.mark.parametrize(("kind", "encoding", "second"), [("types", "cp949", "purchase"), ("times", "utf-8", "later")])
def test_from_logs_to_a_model(
    kind: str, encoding: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path / "raw", kind=kind, encoding=encoding, users=120)
    assert main(["init", "raw"]) == 0
    commands = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  dist-teracon ")]
    assert [command[0] for command in commands] == ["prepare", "inspect", "train"]
    prepare, inspect, train = commands
    assert main(prepare) == 0
    capsys.readouterr()
    assert main(inspect) == 0
    shown = capsys.readouterr().out
    assert "oldest first:" in shown
    assert "겨울 코트" in shown
    assert f"\n  {second}, " in shown
    settings = [part for setting in (f"tasks=[next, {second}]", *TINY) for part in ("--set", setting)]
    assert main([*train, *settings, "--no-report"]) == 0
    results = json.loads((tmp_path / train[train.index("--run") + 1] / "results.json").read_text())
    assert results["tasks"] == ["next", second]
    assert len(results["scores"]) == 2
