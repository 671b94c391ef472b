"""A task's encoder and head on padded rows, in plain operations of dynamic batch and length: what `torch.export` takes.

Rows begin at the left and are filled up behind their end with any item. Backbones say in `transform_padded` what they compute there.
What `encode` does with items before a model reads them, the program does too: indices that the model does not know, as −1 for a name that
`index` does not find, are the unseen item, and where the recipe fills histories up, rows are filled up in front.

Legend: B rows (users), L positions, C channels, W numbers of a representation, Y labels, K masked layers.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dist_teracon.config.model import Pooling
from dist_teracon.data import ragged
from dist_teracon.data.schema import FIRST_ITEM, UNSEEN_ITEM
from dist_teracon.errors import ConfigError, RunError
from dist_teracon.inference.model import PretrainedModel
from dist_teracon.inference.out_folder import write_file
from dist_teracon.models.backbone import Backbone, columns_read

# Largest difference from `encode` with which a program is written.
TOLERANCE = 1e-5


class PaddedModel(nn.Module):
    """`(items int64 [B, L], lengths int64 [B]) -> (vectors [B, W], logits [B, Y])` of one task.

    Args:
        backbone, mask_KC, weight, bias: Of the task.
        known: Items that the model knows, reserved ones included; other indices are read as the unseen item.
        limit: Positions of a row at most.
        filled: The item that fills histories up in front, and to which length; None where they are not filled up.
    """

    def __init__(
        self, backbone: Backbone, mask_KC: Tensor | None, weight: Tensor, bias: Tensor, *,
        known: int, limit: int, filled: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.pooling = backbone, backbone.pooling
        self.known, self.filled = known, filled
        self.register_buffer("mask", mask_KC)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("within", torch.ones(limit, dtype=torch.bool))
        self.mask: Tensor | None
        self.weight: Tensor
        self.bias: Tensor
        self.within: Tensor

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors and logits."""
        items = torch.where((items < FIRST_ITEM) | (items >= self.known), UNSEEN_ITEM, items)
        if self.filled is not None:
            padding, length = self.filled
            place = torch.arange(length, device=items.device) - (length - lengths[:, None])
            items = torch.where(place < 0, padding, items.gather(1, place.clamp(min=0)))
            lengths = torch.full_like(lengths, length)
        places = torch.arange(items.shape[1], device=items.device)
        # a longer row is no place of `within`: ONNX knows no largest size of an input, and would compute something else than `encode`
        inside = ((places < lengths[:, None]) & self.within[places])[:, :, None]
        x_BLC = nn.functional.embedding(items, self.backbone.item_embedding.weight)
        if self.backbone.item_features is not None:
            x_BLC = x_BLC + self.backbone.item_features(items)
        x_BLC = x_BLC * inside
        hidden = self.backbone.transform_padded(x_BLC, lengths, self.mask)
        vectors = _pooled(hidden, x_BLC, lengths, self.pooling)
        if self.backbone.history_features is not None:
            vectors = torch.cat([vectors, self.backbone.history_features.padded(items, lengths)], dim=1)
        return vectors, nn.functional.linear(vectors, self.weight, self.bias)


def _pooled(hidden_BC: Tensor, x_BLC: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "last":
        return hidden_BC
    mean = x_BLC.sum(dim=1) / lengths[:, None].to(x_BLC.dtype)
    mean = nn.functional.layer_norm(mean, mean.shape[1:], eps=1e-8)
    return hidden_BC + mean if pooling == "mean" else torch.cat([hidden_BC, mean], dim=1)


def padded_model(model: PretrainedModel, task: str) -> PaddedModel:
    """Return a task's encoder and head on padded rows.

    Raises:
        ConfigError: an unknown task, or a method or backbone that cannot be written so.
    """
    model.task(task)
    method = model.method
    if not method.masks_alone:
        raise ConfigError(f"export-model: method '{method.name}' computes with weights or modules of its own a task, which is not exported")
    network = method.network_of(task)
    if network is None:
        raise ConfigError(f"export-model: method '{method.name}' has no network to export")
    if model.event_columns:
        features = ", ".join(model.config.model.event_features or model.event_columns)
        field = next(iter(columns_read(model.config.model).values()))
        raise ConfigError(f"export-model: the model reads {features} of events ({field}), and an exported program items alone")
    if network.backbone.user_features is not None:
        features = ", ".join(feature.name for feature in model.inputs.user)
        raise ConfigError(f"export-model: the model reads {features} of users (model.input_features), and an exported program items alone")
    with torch.no_grad():
        masks = method.masks()
    head = method.head(task)
    mask = None if masks is None else masks[method.mask_index(task)].detach().clone()
    limit = model.info.length_limit
    filled = None if model.reader.padding is None else (model.reader.padding, limit)
    program = PaddedModel(
        network.backbone, mask, head.weight.detach(), head.bias.detach(), known=model.num_items, limit=limit, filled=filled
    )
    return program.eval().requires_grad_(False)


def export_model(model: PretrainedModel, out: str, task: str) -> float:
    """Write a task's encoder and head as a `torch.export` program (`.pt2`) or as ONNX (`.onnx`), once it is seen to equal `encode`.

    The program takes `items` int64 [B, L], item indices with rows that begin at the left, of as many positions as `length_limit` of its
    metadata at most (it refuses longer rows), and `lengths` int64 [B]; it returns vectors [B, W] and logits [B, Y]. Item and label
    indices are those of `model.items` and `model.labels(task)`; its `metadata` extra file holds run, stage and task; of ONNX the model's
    metadata have it under `dist_teracon`.

    Returns:
        The largest difference from `encode` that was seen.

    Raises:
        ConfigError: an unknown task, a method or backbone that cannot be written so, or packages for ONNX are not installed.
        RunError: the program's vectors are not those of `encode`.
        DataError: `out` is there already.
    """
    as_onnx = out.lower().endswith(".onnx")
    if as_onnx and (lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]):
        raise ConfigError(f"export-model {out}: needs {', '.join(lacking)}, not installed here: pip install 'dist-teracon[onnx]'")
    module = padded_model(model, task)
    items, lengths = _examples(model, rows=4, length=min(12, model.info.length_limit))
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=max(2, model.info.length_limit))
    shapes = {"items": {0: batch, 1: length}, "lengths": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(module, (items, lengths), dynamic_shapes=shapes)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / ("model.onnx" if as_onnx else "model.pt2"))
        loaded = _write_onnx(program, path, _metadata(model, task)) if as_onnx else _write_program(program, path, _metadata(model, task))
        for rows, longest in ((1, 1), (3, model.info.length_limit), (17, max(1, model.info.length_limit // 2))):
            worst = max(worst, _difference(model, loaded, task, rows, longest))
        if not worst <= TOLERANCE:
            raise RunError(f"export-model: the program's vectors differ from those of encode by {worst:.1e}, more than {TOLERANCE:g}")
        content = Path(path).read_bytes()
    write_file(out, lambda target: _write(target, content))
    return worst


Loaded = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _write_program(program: torch.export.ExportedProgram, path: str, metadata: str) -> Loaded:
    """Write a `torch.export` program, and return it as it is read back."""
    torch.export.save(program, path, extra_files={"metadata": metadata})
    return torch.export.load(path).module()


@contextmanager
def _silenced(*loggers: str) -> Iterator[None]:
    """Keep a library's warnings off the terminal: what it wrote is held against the model afterwards."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _write_onnx(program: torch.export.ExportedProgram, path: str, metadata: str) -> Loaded:
    """Write an ONNX model, and return it as onnxruntime runs it."""
    import onnx
    import onnxruntime

    with _silenced("torch.onnx", "onnxscript", "onnx_ir"):
        made = torch.onnx.export(
            program, (), input_names=["items", "lengths"], output_names=["vectors", "logits"], dynamo=True, verbose=False
        )  # fmt: skip
    assert made is not None
    made.save(path, external_data=False)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {"dist_teracon": metadata})
    onnx.save(written, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        vectors, logits = session.run(["vectors", "logits"], {"items": items.numpy(), "lengths": lengths.numpy()})
        return torch.from_numpy(vectors), torch.from_numpy(logits)

    return run


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _metadata(model: PretrainedModel, task: str) -> str:
    known = {"run": model.fingerprint, "stage": model.stage, "task": task, "length_limit": model.info.length_limit}
    return json.dumps({**known, "items": model.num_items, "labels": model.task(task).labels})


def _examples(model: PretrainedModel, *, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return random rows of item indices, unknown ones among them, of lengths from 1 to `length`, one of them the whole."""
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    items = torch.randint(-1, model.num_items + 1, (rows, length), generator=generator)
    padding = model.reader.padding
    return items if padding is None else items.masked_fill(items == padding, UNSEEN_ITEM), lengths


def _difference(model: PretrainedModel, program: Loaded, task: str, rows: int, length: int) -> float:
    """Return the largest difference between a program's outputs and the model's on random rows."""
    items, lengths = _examples(model, rows=rows, length=length)
    inside = torch.arange(length) < lengths[:, None]
    values = items[inside].numpy().astype(np.int32)
    read = model.reader.of_indices(np.where(values < FIRST_ITEM, np.int32(UNSEEN_ITEM), values), ragged.offsets_of(lengths.numpy()))
    vectors, logits = program(items, lengths)
    with torch.no_grad():
        expected = model.vectors(read.rows, task).cpu()
        scores = model.method.head(task)(expected)
    return max(float((vectors - expected).abs().max()), float((logits - scores).abs().max()))
