"""Adam and AdamW without torch's compiler in memory.

torch keeps its compiler from tracing optimisers, and imports all of it to say so: `torch._dynamo`, some eight hundred modules, as many
seconds of every process's start as torch itself. Nothing that is stepped here is compiled. The names below are torch's own affairs: where a
version has other ones the compiler is imported as before, and a test says so.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch.optim import Adam, AdamW, Optimizer

A = TypeVar("A", bound=Adam)

# What torch calls of an optimiser through a wrapper that asks the compiler not to look.
_WRAPPED = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")

# Adam's own step, which is AdamW's too, below its wrappers: for hooks and profiler, and for gradients of the step itself.
adam_step = torch.no_grad()(inspect.unwrap(Adam.step))


def make_adam(kind: type[A], parameters: Iterable[Any], **settings: Any) -> A:
    """Return an optimiser that is made, and takes torch's own steps, without the compiler.

    Args:
        kind: `Adam`, `AdamW`, or a class of them whose own step calls `adam_step`.
        parameters, settings: As it takes them.
    """
    if "torch._dynamo" in sys.modules:  # something else has it: then it may be wanted, and costs nothing more
        return kind(parameters, **settings)
    for name in _WRAPPED:
        function = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if function is not None:
            function.__dict__.setdefault("__dynamo_disable", function)
    optimizer = kind(parameters, **settings)
    if kind in (Adam, AdamW):
        optimizer.step = MethodType(Optimizer.profile_hook_step(adam_step), optimizer)  # type: ignore[method-assign]
    return optimizer
