"""The batch on which a run came to a value that is not finite, kept as safetensors; `dist-teracon replay` reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dist_teracon.atomic import atomic_write
from dist_teracon.data.batches import Examples, PackedBatch, Retention
from dist_teracon.data.schema import folder_of
from dist_teracon.errors import DataError, RunError

FOLDER = "failures"
_ARRAYS = ("values", "row_offsets", "task_of_row", "dropout_key", "times", "types", "user_features", "moments")
_NUMBERS = ("positions", "epoch", "step", "steps", "num_micro_batches")


@dataclass(frozen=True)
class Failure:
    """Where a run stopped.

    Attributes:
        stage, task: The stage, from 1, and the task that it learns.
        phase, phase_name: The phase, from 0, and its name.
        step: The optimiser step of the phase, from 1.
        rank, world_size: Whose share of the batch this is.
        terms: What was not finite: terms of the loss, or names of values.
        problem: In words.
    """

    stage: int
    task: str
    phase: int
    phase_name: str
    step: int
    rank: int
    world_size: int
    terms: tuple[str, ...]
    problem: str

    @property
    def file(self) -> str:
        """Its path in the run's folder."""
        rank = f"-rank-{self.rank}" if self.world_size > 1 else ""
        return f"{FOLDER}/{self.stage:02d}-{folder_of(self.task)}-phase-{self.phase}-step-{self.step:08d}{rank}.safetensors"


def save_failure(run: Path, failure: Failure, batch: PackedBatch) -> str:
    """Keep a batch in a run's folder; returns the file's path in it.

    Raises:
        OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {name: value for name in _ARRAYS if (value := getattr(batch, name)) is not None}
    about: dict[str, Any] = {name: getattr(batch, name) for name in _NUMBERS}
    for kind, parts in (("examples", batch.examples), ("retention", batch.retention)):
        about[kind] = [{"task": part.task, "total": part.total} for part in parts]
    for number, examples in enumerate(batch.examples):
        tensors |= {f"examples.{number}.index": examples.index, f"examples.{number}.labels": examples.labels}
    for number, retained in enumerate(batch.retention):
        tensors |= {f"retention.{number}.index": retained.index, f"retention.{number}.targets": retained.targets}
    content = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        {"failure": json.dumps(asdict(failure)), "batch": json.dumps(about)},
    )
    (run / FOLDER).mkdir(exist_ok=True)
    with atomic_write(run / failure.file) as file:
        file.write(content)
    return failure.file


def load_failure(path: Path) -> tuple[Failure, PackedBatch]:
    """Read what `save_failure` wrote.

    Raises:
        RunError: the file is missing, damaged, or another one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values, about = json.loads(metadata["failure"]), json.loads(metadata["batch"])
        failure = Failure(**{**values, "terms": tuple(values["terms"])})
        fields: dict[str, Any] = {**{name: tensors.get(name) for name in _ARRAYS}, **{name: about[name] for name in _NUMBERS}}
        batch = PackedBatch(
            **fields,
            examples=tuple(
                Examples(part["task"], tensors[f"examples.{number}.index"], tensors[f"examples.{number}.labels"], part["total"])
                for number, part in enumerate(about["examples"])
            ),
            retention=tuple(
                Retention(part["task"], tensors[f"retention.{number}.index"], tensors[f"retention.{number}.targets"], part["total"])
                for number, part in enumerate(about["retention"])
            ),
        )
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such file; a run that stops at a value that is not finite names its file") from None
    except (OSError, safetensors.SafetensorError, DataError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is no batch that a run has kept, or is damaged ({error})") from None
    return failure, batch
