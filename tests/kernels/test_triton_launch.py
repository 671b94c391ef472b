"""Launches past Triton's own look at the arguments: never with machine code that Triton would not have chosen."""

from __future__ import annotations

import itertools

import pytest
import torch

from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.backward import backward_stage, sum_tiles
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.forward import forward_stage
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.launch import Buffer, Launcher
from dist_teracon.kernels.masked_dilated_conv_stack.backends.triton.weights import weight_gradient

# run-time arguments: pointers, numbers
KERNELS = {forward_stage: (15, 5), backward_stage: (16, 5), sum_tiles: (3, 2), weight_gradient: (6, 1)}


@pytest.mark.parametrize("function", KERNELS, ids=lambda function: function.__name__)
def test_launches_of_one_key_are_one_to_triton(function):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    bind = create_function_from_signature(function.signature, function.params, make_backend(GPUTarget("cuda", 90, 32)))
    launcher = Launcher(function)
    pointers, numbers = KERNELS[function]
    assert len([p for p in function.params if not p.is_constexpr]) == pointers + numbers
    names = [p.name for p in function.params if p.is_constexpr]
    generator = torch.Generator().manual_seed(0)
    memory = {dtype: torch.empty(64, 8, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.int32)}  # a row: 32, 16, 32 bytes
    chosen: dict[object, object] = {}
    repeated = ordinary = 0

    def draw(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    for _ in range(3000):
        # mostly the same, so that keys meet again
        spans = [(Buffer(memory[draw([torch.float32] * 30 + [torch.bfloat16])]), int(draw(range(60)))) for _ in range(pointers)]
        spans = [(draw([buffer] * 60 + [Buffer(buffer.tensor.view(-1)[1:].view(-1)[:, None])]), row) for buffer, row in spans]
        values = [draw([0, 1, 7, 16, 32]) if number < 4 or numbers < 5 else 1e-8 for number in range(numbers)]
        constants = {name: draw([64] * 40 + [True]) for name in names} | {"num_warps": draw([4, 8])}
        tensors = [buffer.tensor[row:] for buffer, row in spans]
        addresses = [buffer.address + row * buffer.pitch for buffer, row in spans]
        assert addresses == [tensor.data_ptr() for tensor in tensors]
        _, specialization, options = bind(*tensors, *values, **constants)
        key = launcher._key(spans, addresses, values, constants)
        if key is None:
            ordinary += 1
            continue
        found = (tuple(specialization), str(options))
        repeated += key in chosen
        assert chosen.setdefault(key, found) == found
    assert repeated > 100 and ordinary > 100


class Recorder:
    """Stands for a Triton function and for what it compiled to: neither launches without a GPU."""

    def __init__(self, params=(), compiled=None):
        self.params, self.compiled, self.launches = params, compiled, []

    def __getitem__(self, grid):
        def launch(*args, **named):
            self.launches.append((grid, args, named))
            return self.compiled

        return launch


def test_second_launch_goes_by_address_to_what_the_first_compiled():
    compiled = Recorder()
    function = Recorder(weight_gradient.params, compiled)
    launcher = Launcher(function)
    names = [p.name for p in weight_gradient.params if p.is_constexpr]
    constants = dict(zip(names, itertools.count(64))) | {"num_warps": 8}
    tensors = [torch.empty(8, 16) for _ in range(6)]
    for row in (0, 2):
        launcher((3, 2, 1), [(Buffer(tensor), row) for tensor in tensors], (16,), constants, 5)
    assert [len(recorder.launches) for recorder in (function, compiled)] == [1, 1]
    grid, args, named = compiled.launches[0]
    assert (grid, named) == ((3, 2, 1), {"stream": 5})
    assert args == (*(tensor[2:].data_ptr() for tensor in tensors), 16, *(constants[name] for name in names))
    launcher((3, 2, 1), [(Buffer(tensor), 0) for tensor in tensors], (16,), constants | {"num_warps": 4}, 5)
    assert len(function.launches) == 2
