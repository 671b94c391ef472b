"""The package as it is installed from a wheel, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"dist_teracon": "dist_teracon", **{name: f"dist_teracon/{name}" for name in ("kernels", "launch", "configs")}}


def shipped() -> set[str]:
    """Return where an installation has the repository's files, relative to site-packages."""
    return {
        f"{installed}/{path.relative_to(ROOT / folder)}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_every_folder_is_a_declared_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted({str(Path(name).parent).replace("/", ".") for name in shipped()})


@pytest.mark.slow
def test_a_wheel_holds_every_file_and_trains_outside_of_the_checkout(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"DIST_TERACON_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(*command: str | Path) -> str:
        done = subprocess.run([str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(source)
    assert shipped() <= set(zipfile.ZipFile(wheel).namelist())

    run(sys.executable, "-m", "venv", "--without-pip", "fresh")
    python = tmp_path / "fresh/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    # the dependencies are those of this environment; a path file in them, as of an editable installation, is not read
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    assert run(python, "-c", "import dist_teracon; print(dist_teracon.__file__)").startswith(str(packages))
    small = ["dataset=synthetic:six-tasks-v1?users=200", "tasks=[next, profile-2]", "train.first.epochs=1", "train.second.epochs=1"]
    options = [part for setting in small for part in ("--set", setting)]
    table = run(tmp_path / "fresh/bin/dist-teracon", "train", "configs/demo.yaml", "--run", "demo", *options)
    assert "profile-2" in table
    assert "</html>" in (tmp_path / "demo/report.html").read_text(encoding="utf-8")
