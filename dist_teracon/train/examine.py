"""One training step, looked at from the inside: which module is the first to give a value that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dist_teracon.data.batches import PackedBatch
from dist_teracon.engine.contract import Engine

# What is called on modules beside `forward`: the backbone's and the network's own ways in.
_CALLS = ("encode", "transform", "transform_patched", "mask_table")
# Operations whose results are memory that nobody has written yet.
_UNWRITTEN = ("empty", "new_empty", "set_", "resize")


@dataclass
class Findings:
    """What a step gave.

    Attributes:
        parameters: Parameters that were not finite before the step.
        module: The first module whose result is not finite, with its class; and what kind of value it is. Where no module's result is
            it, as of heads within a loss, the one whose parameter the first operation reads.
        operation: The first operation in it whose result is not finite although what it read is.
        terms: The loss's terms.
        backward: The first module, going backward, whose result's gradient is not finite.
        gradients: Parameters whose gradients are not finite.
        after: Values that are not finite after the optimiser's step.
    """

    parameters: list[str] = field(default_factory=list)
    module: str = ""
    operation: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    backward: str = ""
    gradients: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether anything is not finite."""
        terms = [value for value in self.terms.values() if not torch.isfinite(torch.tensor(value))]
        return bool(self.parameters or self.module or terms or self.backward or self.gradients or self.after)


def examine_step(
    engine: Engine, module: nn.Module, batch: PackedBatch, *, device: torch.device, accumulation: int, scale: float
) -> Findings:
    """Take a step on a batch, and note what is not finite on the way.

    Args:
        engine, module: What is trained, and the module that the engine wraps.
        batch: With its replayed rows.
        device: Where the engine computes.
        accumulation: Micro-batches of a step.
        scale: What the loss is multiplied by before it is back-propagated.
    """
    found = Findings(parameters=[_named(name) for name, value in module.named_parameters() if not _finite(value)])
    for micro in batch.split(accumulation):
        operations = _Operations(module, found)
        with _watched(module, found), operations:
            total, terms = engine.loss(micro.to(device))
        found.module = found.module or operations.owner
        for name, term in terms.items():
            found.terms[name] = found.terms.get(name, 0.0) + float(term.detach())
        engine.backward(total * scale)
        found.gradients = [_named(name) for name, p in module.named_parameters() if p.grad is not None and not _finite(p.grad)]
        engine.step()
    found.after = [name.replace("/trained.", " ") for name, value in engine.state_dict().items() if not _finite(value)]
    return found


def _named(name: str) -> str:
    return name.removeprefix("trained.")


def _finite(value: Tensor) -> bool:
    value = value.coalesce().values() if value.is_sparse else value
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@contextmanager
def _watched(module: nn.Module, found: Findings) -> Iterator[None]:
    """Look at what every module gives, and later at the gradients of that."""
    undo: list[Callable[[], None]] = []

    def look(name: str, given: Any) -> None:
        for value in _tensors(given):
            if not value.is_floating_point():
                continue
            if not found.module and not _finite(value):
                found.module = f"{name}: {_kind(value)}"
            if value.requires_grad:
                value.register_hook(lambda gradient: _look_back(name, gradient, found))

    for path, part in module.named_modules():
        if not path:
            continue  # the loss as a whole
        name = f"{_named(path) if path != 'trained' else 'network'} ({type(part).__name__})"
        handle = part.register_forward_hook(lambda _part, _given, result, name=name: look(name, result))
        undo.append(handle.remove)
        for call in _CALLS:
            if callable(getattr(part, call, None)):
                undo.append(_wrap(part, call, f"{name}, {call}", look))
    try:
        yield
    finally:
        for step in undo:
            step()


def _wrap(part: nn.Module, call: str, name: str, look: Callable[[str, Any], None]) -> Callable[[], None]:
    real = getattr(part, call)

    @wraps(real)
    def looked_at(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        look(name, result)
        return result

    setattr(part, call, looked_at)
    return lambda: delattr(part, call)


def _look_back(name: str, gradient: Tensor, found: Findings) -> None:
    if not found.backward and not _finite(gradient):
        found.backward = f"{name}: {_kind(gradient)}"


def _kind(value: Tensor) -> str:
    nan, infinite = int(torch.isnan(value).sum()), int(torch.isinf(value).sum())
    parts = [f"{count} {word}" for count, word in ((nan, "NaN"), (infinite, "Inf")) if count]
    return f"{' and '.join(parts)} of {value.numel()} values"


class _Operations(TorchDispatchMode):
    """Notes the first operation that makes a value that is not finite of values that are."""

    def __init__(self, module: nn.Module, found: Findings) -> None:
        super().__init__()
        self._module, self._found = module, found
        self.owner = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if self._found.operation or any(word in name for word in _UNWRITTEN) or _aliases(func):
            return result
        given = [value for value in _tensors([*args, *(kwargs or {}).values()]) if value.is_floating_point()]
        if any(not _finite(value) for value in _tensors(result)) and all(_finite(value) for value in given):
            self._found.operation = name
            self.owner = self._owner_of(given, next(value for value in _tensors(result) if not _finite(value)))
        return result

    def _owner_of(self, given: list[Tensor], result: Tensor) -> str:
        """Return the module whose parameter is among what was read, also where a part of it was."""
        places = [value.data_ptr() for value in given if value.numel()]
        for path, part in self._module.named_modules():
            for value in part.parameters(recurse=False):
                begin = value.data_ptr()
                if any(begin <= place < begin + value.numel() * value.element_size() for place in places):
                    return f"{_named(path)} ({type(part).__name__}): {_kind(result)}"
        return ""


def _aliases(func: Any) -> bool:
    """Return whether an operation gives what it read, as a view or changed in place: its memory may not be written yet."""
    return any(given.alias_info is not None for given in func._schema.returns)
