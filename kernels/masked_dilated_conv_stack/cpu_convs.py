"""Two ways to compute one dilated convolution over some rows' positions on a CPU: `Direct`, and `Paired` with a third fewer products.

Legend: N positions, C channels, k taps, P products (rows of matrices that are multiplied by one of the weight's C × C matrices).

`Paired` is the minimal filtering algorithm F(2, 3) (Winograd, Arithmetic Complexity of Computations, 1980, section V): for inputs
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
    return lambda x, w: onednn(x, w, None, "none", [], "")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Direct:
    """A gather of k taps and one product over all of them.

    Attributes:
        forward: int64 [N_out, k], input that a tap reads; N_in stands for zero.
        backward: int64 [N_in, k], output that reads this input by a tap; N_out stands for none.
    """

    forward: Tensor
    backward: Tensor

    @staticmethod
    def matrices(weight: Tensor) -> Tensor:
        """Return the weight [C_out, C_in, k] as the products take it: [1, C_out, k·C_in]."""
        return weight.transpose(1, 2).reshape(1, weight.shape[0], -1)

    @staticmethod
    def weight_gradient(matrices: Tensor, taps: int) -> Tensor:
        """Return the gradient [C_out, C_in, k] for that of the matrices."""
        return matrices.view(matrices.shape[1], taps, -1).transpose(1, 2)

    def run(self, x_NC: Tensor, matrices: Tensor) -> Tensor:
        """Convolve: [N_in, C] -> [N_out, C], without the bias."""
        return _linear(x_NC.dtype)(_gather(x_NC, self.forward), matrices[0])

    def differentiate(self, dy_NC: Tensor, x_NC: Tensor, matrices: Tensor, into: Tensor | None, *, dx: bool) -> Tensor | None:
        """Add the matrices' gradient to `into`, and return the input's if wanted."""
        if into is not None:
            _add_product(into[0], dy_NC, _gather(x_NC, self.forward))
        if not dx:
            return None
        taps, channels = self.backward.shape[1], x_NC.shape[1]
        turned = matrices.view(-1, taps, channels).permute(2, 1, 0).reshape(channels, -1)  # [C_in, k·C_out]
        return _linear(x_NC.dtype)(_gather(dy_NC, self.backward), turned)


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
        pairs, (q0, q1, q2) = len(later), (len(which) for which, _ in singles)
        sizes = (pairs + q0, q1, pairs, pairs, pairs + q2)
        starts = np.cumsum((0, *sizes))
        each = np.arange(pairs)
        m1, m2, m3, m4 = (starts[matrix] + each for matrix in (0, 2, 3, 4))
        of_tap = (starts[0] + pairs + np.arange(q0), starts[1] + np.arange(q1), starts[4] + pairs + np.arange(q2))
        x0, x1, x2, x3 = pair_inputs
        reads, sums = _Table(starts[-1], 2), _Table(outputs, 3)
        reads_back, sums_back = _Table(starts[-1], 2), _Table(inputs, 4)
        # x₀ … x₃ as slots of an input's own table: an output alone takes slot 2 − tap, and pairs that read one input use different slots
        for product, (one, sign), (two, other) in (
            (m1, (x0, first_inside), (x2, -1)),
            (m2, (x1, 1), (x2, 1)),
            (m3, (x2, 1), (x1, -1)),
            (m4, (x1, 1), (x3, -1)),
        ):
            reads.put(product, 0, one, sign)
            reads.put(product, 1, two, other)
        for slot, product, sign in ((0, m1, -1), (1, m2, 1), (2, m3, 1)):
            sums_back.put(x2, slot, product, sign)
        for slot, product, sign in ((1, m2, 1), (2, m3, -1), (3, m4, 1)):
            sums_back.put(x1, slot, product, sign)
        sums_back.put(x0[first_inside], 3, m1[first_inside], 1)
        sums_back.put(x3, 0, m4, -1)
        for slot, product, y0, y1 in ((0, m1, 1, 0), (1, m2, 1, 1), (2, m3, 1, -1), (2, m4, 0, -1)):
            if y0:
                sums.put(earlier, slot, product, y0)
            if y1:
                sums.put(later, slot if y0 else 0, product, y1)
            reads_back.put(product, 0, earlier if y0 else later, y0 or y1)
            if y0 and y1:
                reads_back.put(product, 1, later, y1)
        for tap, ((which, read), product) in enumerate(zip(singles, of_tap, strict=True)):
            reads.put(product, 0, read, 1)
            sums.put(which, 2 - tap, product, 1)
            reads_back.put(product, 0, which, 1)
            sums_back.put(read, (3, 1, 0)[tap], product, 1)
        return Paired(sizes, reads.made(), sums.made(), reads_back.made(), sums_back.made())

    @staticmethod
    def matrices(weight: Tensor) -> Tensor:
        """Return the weight [C_out, C_in, 3] as the products take it: [5, C_out, C_in]."""
        g0, g1, g2 = weight.permute(2, 0, 1).contiguous()
        outer = (g0 + g2).mul_(0.5)
        return torch.stack([g0, g1, outer + 0.5 * g1, outer - 0.5 * g1, g2])

    @staticmethod
    def weight_gradient(matrices: Tensor, taps: int) -> Tensor:
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
        linear = _linear(operands.dtype)
        parts = zip(operands.split(self.sizes), matrices, strict=True)
        return torch.cat([linear(part, matrix) for part, matrix in parts if part.shape[0]])


Conv: TypeAlias = Direct | Paired


@dataclass(frozen=True)
class SignedRows:
    """Sums of a table's rows: int64 [N, n] which rows, and [N, n] signs of 1, −1 and 0."""

    index: Tensor
    sign: Tensor

    def of(self, table: Tensor) -> Tensor:
        """Return the sums, one for each row of the index."""
        return F.embedding_bag(self.index, table, mode="sum", per_sample_weights=self.sign.to(table.dtype))


class _Table:
    """Signed rows as they are being filled; what is never put counts nothing, and reads the row's first entry again."""

    def __init__(self, rows: int, width: int) -> None:
        self.index = np.full((rows, width), -1)
        self.sign = np.zeros((rows, width), dtype=np.float32)

    def put(self, row: Indices, slot: int, index: Indices, sign: int | npt.NDArray[np.bool_]) -> None:
        self.index[row, slot] = index
        self.sign[row, slot] = sign

    def made(self) -> SignedRows:
        # a row that is read again with sign 0 is one that the sum reads anyway, so that no other row's infinity can turn it into NaN
        own = np.maximum(self.index.max(axis=1, keepdims=True), 0)
        return SignedRows(torch.from_numpy(np.where(self.index < 0, own, self.index)), torch.from_numpy(self.sign))


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


def _gather(x_NC: Tensor, index: Tensor) -> Tensor:
    """Rows of x by [M, k] index, the row past the end being zero: [M, k·C]."""
    padded = torch.cat([x_NC, x_NC.new_zeros(1, x_NC.shape[1])])
    return padded.index_select(0, index.flatten()).view(index.shape[0], index.shape[1] * x_NC.shape[1])


def _add_product(into: Tensor, dy: Tensor, x: Tensor) -> None:
    """Add dyᵀ·x."""
    if into.dtype == dy.dtype:
        into.addmm_(dy.t(), x)
    else:
        into += dy.t() @ x
