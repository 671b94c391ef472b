"""`doctor`: what it says of this machine, and of machines that lack something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_teracon.cli import main
from dist_teracon.launch import machine
from dist_teracon.launch.doctor import Finding, check
from dist_teracon.launch.wheel import program_wheel

GB = 1 << 30


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What this machine has."""
    return machine.survey()


def found(facts: dict[str, Any], **changes: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in check({**facts, **changes})}


def without(facts: dict[str, Any], **versions: str | None) -> dict[str, str]:
    """Return this machine's libraries with other versions, or without those of None."""
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    return {name: version for name, version in {**facts["libraries"], **names}.items() if version}


def test_this_machine_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for part in (
        "this machine:",
        "torch ",
        "deepspeed ",
        "kernels ",
        "/dev/shm",
        "open files",
        "s3fs",
        "nothing that is needed is missing",
    ):
        assert part in said


def test_what_was_found_can_be_read_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["this machine"]
    assert {entry["status"] for entry in found} <= {"ok", "note"}
    assert all(set(entry) == {"name", "status", "found", "mend"} for entry in found)


def test_where_no_library_is_at_all_it_says_so(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(program_wheel())!r}); from dist_teracon.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    for name in ("torch", "deepspeed", "ray", "numpy", "pyarrow", "fsspec", "safetensors", "pydantic"):
        assert re.search(rf"^✗ {name} +not there\n +-> pip install '{name}>=", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("needed thing(s) missing\n")


@pytest.mark.parametrize(
    ("versions", "name", "mend"),
    [
        ({"torch": "2.10.1+cpu"}, "torch", "pip install 'torch>=2.11'"),
        ({"deepspeed": None}, "deepspeed", "pip install 'deepspeed>=0.19.8'"),
        ({"ray": "2.59.9"}, "ray", "pip install 'ray>=2.60'"),
        ({"dist_teracon": None}, "dist_teracon", "install it, or let launch.submit bring it"),
    ],
)
def test_a_library_that_is_missing_or_too_old_is_needed(facts: dict[str, Any], versions: dict[str, str], name: str, mend: str) -> None:
    finding = found(facts, libraries=without(facts, **versions))[name]
    assert finding.status == "missing"
    assert mend in finding.mend


def test_an_extra_that_is_missing_is_a_note_with_how_to_get_it(facts: dict[str, Any]) -> None:
    finding = found(facts, libraries=without(facts, s3fs=None))["s3fs"]
    assert (finding.status, finding.mend) == ("note", "pip install 'dist-teracon[s3]'")


def test_a_gpu_that_torch_cannot_use_is_something_missing(facts: dict[str, Any]) -> None:
    torch = {"version": "2.13.0+cpu", "cuda": "", "hip": "", "gpus": [], "collectives": ["gloo"], "bf16": False}
    finding = found(facts, nvidia_driver=True, torch=torch)["GPU"]
    assert finding.status == "missing"
    assert "torch is a build for CPUs" in finding.found
    assert found(facts, nvidia_driver=False, torch=torch)["GPU"].status == "note"


def test_a_gpus_kernels_need_triton_and_a_compiler(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIST_TERACON_KERNELS", raising=False)
    gpu = {"name": "H100", "memory": 80 * GB, "capability": "9.0"}
    torch = {"version": "2.13.0+cu130", "cuda": "13.0", "hip": "", "gpus": [gpu], "collectives": ["gloo", "nccl"], "bf16": True}
    on_gpu = {"nvidia_driver": True, "torch": torch}
    whole = found(facts, **on_gpu, compiler="cc", libraries=without(facts, triton="3.6.0"))
    assert whole["GPU"].found == "1: H100, 80 GB, capability 9.0; CUDA 13.0"
    assert (whole["kernels"].status, whole["kernels"].found) == ("ok", "triton 3.6.0 (default on a GPU)")
    assert found(facts, **on_gpu, compiler="cc", libraries=without(facts, triton="3.5.1"))["kernels"].status == "missing"
    assert found(facts, **on_gpu, compiler="", libraries=without(facts, triton="3.6.0"))["kernels"].mend == "install gcc"


def test_little_disk_memory_and_files_are_noted(facts: dict[str, Any]) -> None:
    small = found(facts, disk_free=GB, shared_memory=64 << 20, open_files=1024)
    assert [small[name].status for name in ("disk", "/dev/shm", "open files")] == ["note"] * 3
    assert "ulimit -n 65536" in small["open files"].mend
    large = found(facts, disk_free=90 * GB, shared_memory=8 * GB, open_files=-1)
    assert [large[name].status for name in ("disk", "/dev/shm", "open files")] == ["ok"] * 3


def test_a_backend_of_the_kernels_that_cannot_run_is_named(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_TERACON_KERNELS", "trition")
    finding = found(facts)["kernels"]
    assert finding.status == "missing"
    assert "did you mean 'triton'?" in finding.mend
