"""A dilated convolution of three taps over some rows' positions with a third fewer products, on a CPU.

Legend: N positions, C channels, P products (rows of matrices that are multiplied by one of the weight's C × C matrices).

It is the minimal filtering algorithm F(2, 3) (Winograd, Arithmetic Complexity of Computations, 1980, section V): for inputs
x₀ … x₃ at distance d from one another and taps g₀, g₁, g₂, the two outputs

    y₀ = x₀g₀ + x₁g₁ + x₂g₂ = m₁ + m₂ + m₃        m₁ = (x₀ − x₂)·g₀      m₂ = (x₁ + x₂)·(g₀ + g₁ + g₂)/2
    y₁ = x₁g₀ + x₂g₁ + x₃g₂ = m₂ − m₃ − m₄        m₄ = (x₁ − x₃)·g₂      m₃ = (x₂ − x₁)·(g₀ − g₁ + g₂)/2

take four products instead of six. An output without a partner takes a product for each tap that lies in its row, and none for the
others. All sums of rows are sums of table rows by index with signs, so `embedding_bag` does each in one pass, forward and backward.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Indices: TypeAlias = npt.NDArray[np.int64]
_logger = logging.getLogger(__name__)


# With few channels a product costs little more than moving its result: up to so many it is written where it belongs, which oneDNN's
# operator cannot.
_WRITTEN_IN_PLACE = 64


@functools.cache
def _linear(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """Return x, w -> x·wᵀ at the best rate: oneDNN's in fp32, which F.linear leaves to MKL (half as fast on some processors)."""
    if dtype != torch.float32:
        return F.linear
    try:  # a private operator: used only where it is there and right
        onednn = torch.ops.mkldnn._linear_pointwise
        x, w = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
        right = torch.equal(onednn(x, w, None, "none", [], ""), x @ w.t())
    except (AttributeError, RuntimeError):
        right = False
    if not right:
        _logger.info(
            "masked_dilated_conv_stack: torch %s has no oneDNN linear operator as known; fp32 products run by F.linear", torch.__version__
        )
        return F.linear
    return lambda x, w: onednn(x, w, None, "none", [], "")


@dataclass(frozen=True)
class Paired:
    """Two outputs of three taps from four products.

    Attributes:
        sizes: How many products each of the five matrices g₀, g₁, (g₀+g₁+g₂)/2, (g₀−g₁+g₂)/2, g₂ has, in the order in which they lie.
        reads: Inputs that a product's operand is the signed sum of, [P, 2].
        sums: Products that an output is the signed sum of, [N_out, 3].
        reads_back: Outputs whose gradients make a product's, [P, 2].
        sums_back: Operands whose gradients make an input's, [N_in, 4].
    """

    sizes: tuple[int, ...]
    reads: SignedRows
    sums: SignedRows
    reads_back: SignedRows
    sums_back: SignedRows

    @staticmethod
    def build(
        inputs: int,
        outputs: int,
        earlier: Indices,
        later: Indices,
        pair_inputs: Sequence[Indices],
        first_inside: npt.NDArray[np.bool_],
        singles: Sequence[tuple[Indices, Indices]],
    ) -> Paired:
        """Lay the products out.

        Args:
            inputs: N_in.
            outputs: N_out.
            earlier: Pairs' outputs y₀.
            later: Pairs' outputs y₁.
            pair_inputs: Pairs' inputs x₀ … x₃.
            first_inside: Whether x₀ lies in the row; where not, x₂ stands in its place and counts nothing.
            singles: For taps g₀, g₁, g₂ the outputs without a partner whose tap lies in the row, and the inputs that they read.
        """
        (w0, r0), (w1, r1), (w2, r2) = singles
        pairs, (q0, q1, q2) = len(later), (len(which) for which in (w0, w1, w2))
        sizes = (pairs + q0, q1, pairs, pairs, pairs + q2)
        starts = np.cumsum((0, *sizes))
        total = int(starts[-1])
        each = np.arange(pairs)
        m1, m2, m3, m4 = (starts[matrix] + each for matrix in (0, 2, 3, 4))
        x0, x1, x2, x3 = pair_inputs
        ones, minus = np.ones(total, dtype=np.float32), np.zeros(total, dtype=np.float32)
        ones[:pairs] = first_inside
        minus[m1], minus[m2], minus[m3], minus[m4] = -1, 1, -1, -1
        reads = _signed((np.concatenate([x0, r0, r1, x1, x2, x1, r2]), ones), (np.concatenate([x2, r0, r1, x2, x1, x3, r2]), minus))
        own, other = np.ones(total, dtype=np.float32), np.zeros(total, dtype=np.float32)
        own[m4] = -1
        other[m2], other[m3] = 1, -1
        reads_back = _signed(
            (np.concatenate([earlier, w0, w1, earlier, earlier, later, w2]), own),
            (np.concatenate([earlier, w0, w1, later, later, later, w2]), other),
        )
        of_tap = (starts[0] + pairs + np.arange(q0), starts[1] + np.arange(q1), starts[4] + pairs + np.arange(q2))
        sums = _scattered(
            outputs,
            [(earlier, m1, 1), (later, m4, -1), (w2, of_tap[2], 1)],
            [(earlier, m2, 1), (later, m2, 1), (w1, of_tap[1], 1)],
            [(earlier, m3, 1), (later, m3, -1), (w0, of_tap[0], 1)],
        )
        # what an input is to its own output comes first; the outputs d and 2d later read it in other columns than that
        sums_back = _scattered(
            inputs,
            [(x2, m1, -1), (x3, m4, -1), (r2, of_tap[2], 1)],
            [(x2, m2, 1), (x1, m2, 1), (r1, of_tap[1], 1)],
            [(x2, m3, 1), (x1, m3, -1)],
            [(x1, m4, 1), (x0[first_inside], m1[first_inside], 1), (r0, of_tap[0], 1)],
        )
        return Paired(sizes, reads, sums, reads_back, sums_back)

    @staticmethod
    def matrices(weight: Tensor) -> Tensor:
        """Return the weight [C_out, C_in, 3] as the products take it: [5, C_out, C_in]."""
        g0, g1, g2 = weight.permute(2, 0, 1).contiguous()
        outer = (g0 + g2).mul_(0.5)
        return torch.stack([g0, g1, outer + 0.5 * g1, outer - 0.5 * g1, g2])

    @staticmethod
    def weight_gradient(matrices: Tensor) -> Tensor:
        """Return the gradient [C_out, C_in, 3] for that of the matrices."""
        g0, g1, plus, minus, g2 = matrices
        outer = (plus + minus).mul_(0.5)
        return torch.stack([g0 + outer, (plus - minus).mul_(0.5).add_(g1), g2 + outer], dim=2)

    def run(self, x_NC: Tensor, matrices: Tensor) -> Tensor:
        """Convolve: [N_in, C] -> [N_out, C], without the bias."""
        return self.sums.of(self._products(self.reads.of(x_NC), matrices))

    def differentiate(self, dy_NC: Tensor, x_NC: Tensor, matrices: Tensor, into: Tensor | None, *, dx: bool) -> Tensor | None:
        """Add the matrices' gradient to `into`, and return the input's if wanted."""
        dproducts = self.reads_back.of(dy_NC)
        if into is not None:
            operands = self.reads.of(x_NC)
            for grad, dp, v in zip(into, dproducts.split(self.sizes), operands.split(self.sizes), strict=True):
                _add_product(grad, dp, v)
        return self.sums_back.of(self._products(dproducts, matrices.transpose(1, 2))) if dx else None

    def _products(self, operands: Tensor, matrices: Tensor) -> Tensor:
        if operands.shape[1] <= _WRITTEN_IN_PLACE:
            made = torch.empty_like(operands)
            for part, into, matrix in zip(operands.split(self.sizes), made.split(self.sizes), matrices, strict=True):
                torch.mm(part, matrix.t(), out=into)
            return made
        linear = _linear(operands.dtype)
        parts = zip(operands.split(self.sizes), matrices, strict=True)
        return torch.cat([linear(part, matrix) for part, matrix in parts if part.shape[0]])


@dataclass(frozen=True)
class SignedRows:
    """Sums of a table's rows: int64 [N · n] which rows, n a sum, signs of 1, −1 and 0, and int64 [N] where each sum begins."""

    index: Tensor
    sign: Tensor
    begins: Tensor

    def of(self, table: Tensor) -> Tensor:
        """Return the sums, one for each row of the index."""
        # mode 0 is the sum; the function in torch.nn.functional would make `begins` anew in each call
        total: Tensor = torch.embedding_bag(table, self.index, self.begins, False, 0, False, self.sign.to(table.dtype))[0]
        return total


def _signed(*columns: tuple[Indices, npt.NDArray[np.float32]]) -> SignedRows:
    index, sign = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    begins = np.arange(0, index.size, index.shape[1])
    return SignedRows(torch.from_numpy(index.reshape(-1)), torch.from_numpy(sign.reshape(-1)), torch.from_numpy(begins))


def _scattered(rows: int, *columns: Sequence[tuple[Indices, Indices, int]]) -> SignedRows:
    """Make each column of entries (at these rows, this index, this sign); what no entry fills counts nothing."""
    made: list[tuple[Indices, npt.NDArray[np.float32]]] = []
    for entries in columns:
        # an unfilled place reads the row's first entry again, so that no other row's infinity can turn the sum into NaN
        index = made[0][0].copy() if made else np.zeros(rows, dtype=np.int64)
        sign = np.zeros(rows, dtype=np.float32)
        for at, value, of in entries:
            index[at], sign[at] = value, of
        made.append((index, sign))
    return _signed(*made)


@functools.lru_cache(maxsize=256)
def _pair(member: bytes, dilation: int) -> npt.NDArray[np.bool_]:
    wanted = np.frombuffer(member, dtype=np.bool_)
    late, taken = np.zeros_like(wanted), set()
    for distance in np.flatnonzero(wanted).tolist():
        partner = distance + dilation
        if distance not in taken and partner < len(wanted) and wanted[partner]:
            late[distance] = True
            taken.add(partner)
    return late


def pair_by_distance(member: npt.NDArray[np.bool_], dilation: int) -> npt.NDArray[np.bool_]:
    """Return which distances from a row's end are the later of a pair d apart, nearest to the end first."""
    return _pair(member.tobytes(), dilation)


def _add_product(into: Tensor, dy: Tensor, x: Tensor) -> None:
    """Add dyᵀ·x."""
    if into.dtype == dy.dtype:
        into.addmm_(dy.t(), x)
    else:
        into += dy.t() @ x
