"""Every command of docs/using.md, run in the order in which it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dist_teracon.cli import main

PAGE = (Path(__file__).parents[3] / "docs" / "using.md").read_text(encoding="utf-8")
# those of the server run in tests/distributed/test_serve.py
COMMANDS = [command for command in re.findall(r"^dist-teracon (.+)$", PAGE, re.MULTILINE) if not command.startswith("serve ")]


def test_the_commands_run(shop, tmp_path, monkeypatch):
    from shop import prepare_shop

    assert [command.split()[0] for command in COMMANDS].count("drift") == 2
    assert {command.split()[0] for command in COMMANDS} == {"predict", "export", "export-model", "evaluate", "probe", "drift"}
    monkeypatch.chdir(tmp_path)
    for name, target in (("runs/shop", shop.run), ("logs", shop.events)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    prepare_shop(shop.events, tmp_path / "data" / "shop-2", name="shop-2")
    Path("churn.csv").write_text("user,label\n" + "".join(f"u{user:03d},{'stays' if user % 3 else 'leaves'}\n" for user in range(120)))
    for stage, name in (("2", "old"), ("3", "new")):
        assert main(["export", "runs/shop", f"exports/{name}", "--stage", stage, "--task", "next"]) == 0
    for command in COMMANDS:
        status = main(shlex.split(command))
        assert status == 0 or (status == 1 and "--max-drop" in command), command
    for written in ("top.parquet", "exports/shop/export.json", "exports/shop/labels_buys.parquet", "buys.pt2", "scores.json"):
        assert Path(written).exists(), written
