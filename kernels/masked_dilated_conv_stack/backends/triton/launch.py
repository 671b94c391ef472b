"""Launches of compiled Triton kernels by address, without Triton's look at every argument of every launch.

Triton finds the machine code of a launch by the types, alignments and constants of all its arguments, and a kernel that works on rows of
a tensor is given a slice: together some 50 µs of Python a launch, more than the GPU needs for a small batch. Here the first launch of a
kind goes through Triton, which compiles, and later ones pass the addresses to what was compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Buffer:
    """A contiguous tensor, its rows (first dimension) addressed without slicing it."""

    __slots__ = ("address", "device", "dtype", "pitch", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.dtype, self.device, self.address = tensor, tensor.dtype, tensor.get_device(), tensor.data_ptr()
        self.pitch = tensor.stride(0) * tensor.element_size()


# a buffer from a row on
Span = tuple[Buffer, int]


class Launcher:
    """Launches one Triton function, whose arguments are pointers, then numbers, then constants.

    Of two launches with the same key (`_key`) Triton would find the same machine code; `tests/kernels/test_triton_launch.py` holds it
    against Triton's own.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        # in Triton's interpreter a function has no parameters, and nothing is compiled; on AMD the size of the memory matters too
        parameters = () if torch.version.hip else getattr(function, "params", ())
        self._aligned = [not p.do_not_specialize_on_alignment for p in parameters if not p.is_constexpr]
        self._specialised = [not p.do_not_specialize for p in parameters if not p.is_constexpr]
        self._constants = [p.name for p in parameters if p.is_constexpr]

    def __call__(
        self, grid: tuple[int, int, int], spans: Sequence[Span], numbers: Sequence[float], constants: Mapping[str, Any], stream: int
    ) -> None:
        """Launch.

        Args:
            grid: Programs.
            spans: The pointer arguments, of one device.
            numbers: The other run-time arguments, none beyond int32.
            constants: Compile-time arguments, and Triton's options; the same names in the same order at every launch.
            stream: From `current_stream`.
        """
        addresses = [buffer.address + row * buffer.pitch for buffer, row in spans]
        key = self._key(spans, addresses, numbers, constants)
        if key is not None and (found := self._compiled.get(key)) is not None:
            kernel, values = found
            kernel[grid](*addresses, *numbers, *values, stream=stream)
            return
        kernel = self._function[grid](*(buffer.tensor[row:] for buffer, row in spans), *numbers, **constants)
        if key is not None:
            self._compiled[key] = kernel, tuple(constants[name] for name in self._constants)

    def _key(
        self, spans: Sequence[Span], addresses: Sequence[int], numbers: Sequence[float], constants: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        """Return all that decides which machine code runs; None where Triton should find out.

        Triton distinguishes addresses by whether they are multiples of 16: here all are, or there is no key. Of numbers it distinguishes 1
        and multiples of 16: here each value has a key of its own.
        """
        if not self._aligned:
            return None
        pointers = len(spans)
        for address, aligned in zip(addresses, self._aligned[:pointers], strict=True):
            if aligned and address % 16:
                return None
        values = tuple(number for number, special in zip(numbers, self._specialised[pointers:], strict=True) if special)
        return spans[0][0].device, tuple(buffer.dtype for buffer, _ in spans), values, tuple(constants.values())


def current_stream(tensor: Tensor) -> int:
    """Return the handle of the current stream of a tensor's GPU; 0 on a CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
