"""A damaged file of a run is noticed, or harms nothing: refused by name, made anew, or the same end as without the damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_runs import events, settings, train_here, what_lasts

from dist_teracon.cli import main
from dist_teracon.errors import TeraconError
from dist_teracon.train import phase as phase_module
from dist_teracon.train.verify import verify


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    path.write_bytes(bytes(content))


def garbage(path: Path) -> None:
    path.write_bytes(b"\x93\x00no file of this program\xff" * 9)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut": cut, "flipped": flip, "gone": Path.unlink, "garbage": garbage}


@pytest.fixture(scope="module")
def config(small: str) -> dict[str, Any]:
    stage = {"learning_rate": 0.01, "batch": 32, "epochs": 3, "ema_decay": 0.5}
    return settings(small, tasks=("next", "likes"), first=stage, second=stage, checkpoint_every={"minutes": None, "steps": 4})


@pytest.fixture(scope="module")
def runs(alone: None, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undisturbed run, and one that was killed in its second stage, with two checkpoints in it."""
    folder = tmp_path_factory.mktemp("damage")
    whole, killed = train_here(config, folder / "whole"), folder / "killed"
    real, taken = phase_module.train_step, []

    def dying(engine: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        taken.append(len(method.learned) == 2)
        if sum(taken) == 14:
            raise Killed
        return real(engine, method, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(phase_module, "train_step", dying)
        train_here(config, killed)
    return whole, killed


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock")


# What nothing follows from: times, and what is made anew from the rest.
HARMLESS = ("timing.json", "results.json", "baselines.json", "report.html", ".dist-teracon")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_noticed_or_harmless(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    whole, killed = runs
    names = [name for name in files_of(killed) if not name.endswith(HARMLESS)]
    kinds: dict[str, str] = {}  # one file of each kind: of eight shards' files the first
    for name in names:
        kinds.setdefault("/".join(part for part in name.split("/") if "shard-" not in part) + Path(name).suffix, name)
    wrong = []
    for name in kinds.values():
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(killed, run)
        DAMAGES[damage](run / name)
        try:
            found = [problem for _, problem in verify(str(run)) if problem]
        except TeraconError as error:
            found = [str(error)]
        try:
            train_here(config, run)
        except TeraconError as error:
            if Path(name).name not in str(error) and Path(name).parent.name not in str(error):
                wrong.append((name, f"refused, but not by name: {error}"))
            continue
        if what_lasts(run) != what_lasts(whole):
            wrong.append((name, "passed, and the run ended otherwise"))
        elif not found and damage != "gone" and not name.endswith(".jsonl"):
            wrong.append((name, "verify did not notice"))
    assert wrong == []


def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = runs
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    before, newest = sorted((run / "stages/02-likes/progress").glob("phase-*"))
    flip(newest / "engine.safetensors")
    said: list[str] = []
    monkeypatch.setattr("dist_teracon.console.Console.log", lambda _self, text: said.append(text))
    train_here(config, run)
    assert what_lasts(run) == what_lasts(whole)
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert f"{newest}/engine.safetensors: the file was damaged" in warning and "the checkpoint before it is used" in warning
    assert before.name != newest.name


def test_a_finished_stage_whose_state_is_gone_is_not_trained_again_in_silence(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "stages/01-next/state.json").unlink()
    with pytest.raises(TeraconError, match=r"01-next/state\.json: is missing, though later stages are there"):
        train_here(config, run)
    assert len(events(run, "stage")) == 2


def test_a_stage_that_is_gone_from_before_one_under_way_is_not_trained_again_in_silence(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The stage under way began from its weights: made anew, they may be others."""
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    shutil.rmtree(run / "stages/01-next")
    with pytest.raises(TeraconError, match=r"01-next/state\.json: is missing, though later stages are there; .* and those after it"):
        train_here(config, run)
    shutil.rmtree(run / "stages/02-likes")
    train_here(config, run)
    assert what_lasts(run) == what_lasts(runs[0])


@pytest.mark.parametrize("name", ["stages/01-next/timing.json", "timing.json", "baselines.json"])
def test_damage_of_what_no_result_depends_on_stops_nothing(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    garbage(run / name)
    train_here(config, run)
    assert what_lasts(run) == what_lasts(runs[0])
    assert (run / "baselines.json").read_bytes() == (runs[0] / "baselines.json").read_bytes()


def test_results_that_are_older_than_the_stages_are_written_again_where_a_run_stops_early(
    alone: None, config: dict[str, Any], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = train_here(config, tmp_path / "run", until_stage=1)
    written = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    train_here(config, run, until_stage=1)
    assert (run / "results.json").read_bytes() == written


def test_any_change_of_a_runs_configuration_is_noticed_and_one_without_a_checksum_is_whole(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    written = config.read_text()
    config.write_text(written.replace("log_every: ", "log_every: 1"))  # a field of which no result depends
    assert config.read_text() != written
    assert [name for name, problem in verify(str(tmp_path / "run")) if problem] == [str(config)]
    config.write_text(written[: written.index("# sha256")])
    assert [name for name, problem in verify(str(tmp_path / "run")) if problem] == []


def test_verify_on_the_command_line(runs: tuple[Path, Path], small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(runs[0]), small]) == 0
    assert " 0 damaged" in capsys.readouterr().out
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    flip(run / "stages/01-next/model.safetensors")
    assert main(["verify", str(run)]) == 1
    assert "model.safetensors: the file was damaged or changed since it was written" in capsys.readouterr().out
    shutil.copytree(small, tmp_path / "set")
    cut(next((tmp_path / "set").rglob("users/*.parquet")))
    assert main(["verify", str(tmp_path / "set")]) == 1
    assert main(["verify", str(tmp_path)]) == 2
