"""`export --cluster`: Ray's workers write the same bytes as one process, and go on with what is there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_teracon.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Ray of two cores, once for all tests."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", object_store_memory=150 << 20)
    yield
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("ray")
def test_the_same_bytes_and_the_same_way_to_go_on(tmp_path, monkeypatch, capsys):
    import torch
    from shop import make_shop_run, prepare_shop, write_events

    from dist_teracon.inference import sources

    events = write_events(tmp_path / "events")
    data = prepare_shop(events, tmp_path / "data")
    make_shop_run(data, tmp_path / "run")
    monkeypatch.setattr(sources, "USERS_A_PART", 50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    monkeypatch.chdir(tmp_path)
    try:
        for name, more in (("data", ["--task", "shared", "--task", "buys"]), ("events", ["--data", "events", "--format", "npy"])):
            assert main(["export", "run", f"{name}-here", *more]) == 0
            assert main(["export", "run", f"{name}-there", *more, "--cluster"]) == 0
            assert contents(Path(f"{name}-there")) == contents(Path(f"{name}-here"))
    finally:
        torch.set_num_threads(threads)
    # what was stopped on one machine goes on there: a part that is written is not written again
    from dist_teracon.inference.out_folder import OutFolder

    with monkeypatch.context() as patch:
        patch.setattr(OutFolder, "finish", lambda self, manifest: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["export", "run", "rest", "--task", "shared", "--task", "buys"]) == 130
    kept = Path("rest/users/part-00000.parquet")
    before = kept.stat().st_mtime_ns
    Path("rest/.progress/part-00001.json").unlink()
    Path("rest/users/part-00001.parquet").unlink()
    assert main(["export", "run", "rest", "--task", "shared", "--task", "buys", "--cluster"]) == 0
    assert kept.stat().st_mtime_ns == before
    assert contents(Path("rest")) == contents(Path("data-here"))
    capsys.readouterr()
    # a worker's mistake is one message
    shutil.copytree("run", "other")
    Path("data").rename("moved")
    assert main(["export", "other", "lost", "--cluster"]) == 2
    assert capsys.readouterr().err.count("error:") == 1
