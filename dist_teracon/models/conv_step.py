"""One more position of a stack of causal dilated convolutions, for several rows at once: weights prepared once, and no history read.

What the earlier taps of all convolutions give does not depend on the new position, so it is one product ahead of the stack; what is left
for each convolution is a product with one matrix, LayerNorm and ReLU.

Legend: B rows, V views (masks), C channels, K convolutions, k taps, P positions kept: for each convolution its last (k − 1)·d inputs, the
convolutions one behind another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """Where the inputs that a stack keeps lie.

    Attributes:
        sizes: For each convolution, (k − 1)·d.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, dilations: Sequence[int], taps: int) -> Kept:
        """Return the places for the dilations of all K convolutions."""
        return cls(tuple((taps - 1) * dilation for dilation in dilations))

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each convolution's inputs begin."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def total(self) -> int:
        """All positions P."""
        return sum(self.sizes)


class ConvolutionStep:
    """Adds a position to rows; a change of the parameters after this was made goes unseen.

    Args:
        weight: [K, C, C, k].
        bias, norm_weight, norm_bias: [K, C].
        masks_VKC: None for one view without a mask; not negative.
        dilations: Of all K convolutions.
        eps: Of LayerNorm.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, masks_VKC: Tensor | None, *,
        dilations: Sequence[int], eps: float,
    ) -> None:  # fmt: skip
        K, C, _, taps = weight.shape
        kept, self._eps, self._shape = Kept.of(dilations, taps), eps, [C]
        # [C_in, C_out] of the present position; [K, (k − 1)·C_in, C_out] of those before, the oldest first
        self._present = weight[..., -1].transpose(1, 2).contiguous().unbind(0)
        self._past = weight[..., :-1].permute(0, 3, 2, 1).reshape(K, (taps - 1) * C, C).contiguous()
        self._bias = bias[:, None].contiguous()
        # m ⊙ ReLU(γ ⊙ n + β) is ReLU(mγ ⊙ n + mβ)
        scale, shift = (p[None] if masks_VKC is None else masks_VKC * p for p in (norm_weight, norm_bias))
        self._views = scale.shape[0]
        self._scales, self._shifts = ([part.contiguous() for part in p.unbind(1)] for p in (scale, shift))
        reads = [start + tap * dilation for start, dilation in zip(kept.starts, dilations, strict=True) for tap in range(taps - 1)]
        # every convolution's oldest input makes place for the new one, which lies behind all of them
        moves = [
            place
            for number, (start, size) in enumerate(zip(kept.starts, kept.sizes, strict=True))
            for place in (*range(start + 1, start + size), kept.total + number)
        ]
        self._reads, self._moves = (torch.tensor(places, device=weight.device) for places in (reads, moves))

    def __call__(self, x_BC: Tensor, kept_BVPC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new position's outputs [B, V, C] and what the next one needs [B, V, P, C].

        Args:
            x_BC: The embedded position of each row.
            kept_BVPC: What the rows have kept.
        """
        (rows, C), K = x_BC.shape, len(self._present)
        read = kept_BVPC.index_select(2, self._reads).view(rows * self._views, K, -1)
        before = torch.baddbmm(self._bias, read.transpose(0, 1), self._past).unbind(0)
        # rows · views lie as [B · V, C]
        x, inputs = x_BC.repeat_interleave(self._views, dim=0) if self._views > 1 else x_BC, []
        for number in range(0, K, 2):
            h = x
            for conv in (number, number + 1):
                inputs.append(h)
                h = self._normalised(torch.addmm(before[conv], h, self._present[conv]), conv)
            x = x + h
        new = torch.stack(inputs, dim=1).view(rows, self._views, K, C)
        return x.view(rows, self._views, C), torch.cat([kept_BVPC, new], dim=2).index_select(2, self._moves)

    def _normalised(self, u: Tensor, conv: int) -> Tensor:
        """Return ReLU of LayerNorm, with each view's mask in it."""
        scale, shift = self._scales[conv], self._shifts[conv]
        if self._views == 1:
            return torch.native_layer_norm(u, self._shape, scale[0], shift[0], self._eps)[0].relu_()
        n = torch.native_layer_norm(u, self._shape, None, None, self._eps)[0]
        return torch.addcmul(shift, n.view(-1, *scale.shape), scale).relu_().view(u.shape)
