"""Every command of docs/using.md, run in the order in which it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from dist_teracon.cli import main

PAGE = (Path(__file__).parents[3] / "docs" / "using.md").read_text(encoding="utf-8")
# those of the server run in tests/distributed/test_serve.py, benchmarks in tests/benchmarks
COMMANDS = [command for command in re.findall(r"^dist-teracon (.+)$", PAGE, re.MULTILINE) if not command.startswith(("serve ", "bench "))]


def test_the_commands_run(shop, tmp_path, monkeypatch):
    from shop import prepare_shop
    from tiny_encoder import write_tiny_encoder

    assert [command.split()[0] for command in COMMANDS].count("drift") == 3
    assert {command.split()[0] for command in COMMANDS} == {
        "predict", "export", "export-model", "evaluate", "probe", "drift", "cold-start", "item-vectors",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    # a copy, as some commands note in the run what they found
    shutil.copytree(shop.run, tmp_path / "runs" / "shop")
    (tmp_path / "logs").symlink_to(shop.events)
    write_tiny_encoder(tmp_path / "encoders" / "klue-bert")
    Path("items.csv").write_text(
        "item,title\n" + "".join(f"p{item:02d},{'빨간 운동화' if item % 2 else 'red bag'}\n" for item in range(24))
    )
    prepare_shop(shop.events, tmp_path / "data" / "shop-2", name="shop-2")
    Path("churn.csv").write_text("user,label\n" + "".join(f"u{user:03d},{'stays' if user % 3 else 'leaves'}\n" for user in range(120)))
    for stage, name in (("2", "old"), ("3", "new")):
        assert main(["export", "runs/shop", f"exports/{name}", "--stage", stage, "--task", "next"]) == 0
    for command in COMMANDS:
        status = main(shlex.split(command))
        assert status == 0 or (status == 1 and "--max-drop" in command), command
    for written in (
        "top.parquet",
        "exports/shop/export.json",
        "exports/shop/labels_buys.parquet",
        "buys.pt2",
        "scores.json",
        "item-vectors/item-vectors.json",
    ):
        assert Path(written).exists(), written
