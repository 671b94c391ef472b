"""One row's next position in a stack of causal dilated convolutions, by NumPy: products of a vector with matrices.

For a single vector torch's products and LayerNorm are mostly preparation; NumPy's products take half of the time, and with the mean's
subtraction in the weights LayerNorm is a length and two multiplications.

Legend: C channels, K convolutions, k taps, P positions kept (`conv_step`), n parts of a matrix's columns.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float32]

# OpenBLAS, which NumPy brings along, computes a product of a vector with a matrix of fewer numbers in the calling thread.
_ONE_THREAD = 9216


class RowStepper:
    """Adds one position to one row of one view, as `ConvolutionStepper.step` does, to rounding.

    Args:
        present: Matrices of the present position's tap, [K, C_in, C_out].
        past: Those of the taps before it, [K, (k − 1)·C_in, C_out].
        bias: [K, C].
        scale, shift: Of LayerNorm, with the view's mask in them, [K, C].
        reads: Where each convolution's earlier taps lie among the positions kept, [K·(k − 1)].
        moves: Which of positions kept and new inputs, the convolutions' one behind another, are kept, [P].
        eps: Of LayerNorm.
    """

    def __init__(
        self, present: Tensor, past: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, reads: Tensor, moves: Tensor, *, eps: float
    ) -> None:
        self._convolutions, self._channels = bias.shape
        # LayerNorm takes the mean off what a convolution gives, which is linear: W − W·1·1ᵀ/C gives it without its mean
        self._present = [parts[0] if len(parts) == 1 else parts for parts in _in_parts(_centred(present))]
        self._past = _in_parts(_centred(past))
        self._bias = _centred(bias)
        # over the length instead of the deviation, which is its √C-th part
        self._scale = list(_numbers(scale.double() * sqrt(self._channels)))
        self._shift, self._eps = list(_numbers(shift)), eps * self._channels
        self._reads, self._moves = reads.numpy(), moves.numpy()

    def step(self, x_C: Float, kept_PC: Float) -> tuple[Float, Float]:
        """Return the new position's output [C], and what the next one needs [P, C]; both are new arrays."""
        x, K, C = x_C, self._convolutions, self._channels
        before = np.matmul(kept_PC[self._reads].reshape(K, 1, 1, -1), self._past).reshape(K, C)
        before += self._bias
        inputs, outputs = np.empty((K, C), np.float32), np.empty((K, C), np.float32)
        for k in range(0, K, 2):
            inputs[k] = x
            self._convolved(x, before[k], k, out=inputs[k + 1])
            self._convolved(inputs[k + 1], before[k + 1], k + 1, out=outputs[k])
            x = np.add(x, outputs[k], out=outputs[k + 1])
        return x, np.concatenate([kept_PC, inputs])[self._moves]

    def _convolved(self, h: Float, before: Float, k: int, *, out: Float) -> None:
        u = np.matmul(h, self._present[k]).reshape(-1)
        u += before
        np.multiply(u, self._scale[k], out=out)
        out *= 1 / sqrt(u.dot(u) + self._eps)
        out += self._shift[k]
        np.maximum(out, 0, out=out)


def _centred(values: Tensor) -> Float:
    """Return rows less their means."""
    wide = values.double()
    return _numbers(wide - wide.mean(-1, keepdim=True))


def _numbers(values: Tensor) -> Float:
    return np.ascontiguousarray(values.float().numpy())


def _in_parts(matrices: Float) -> Float:
    """Return matrices [K, I, C] cut into parts of columns that one thread multiplies, [K, n, I, C / n]."""
    K, inputs, C = matrices.shape
    parts = next((n for n in range(1, C) if C % n == 0 and inputs * (C // n) < _ONE_THREAD), C)
    return np.ascontiguousarray(matrices.reshape(K, inputs, parts, C // parts).transpose(0, 2, 1, 3))
