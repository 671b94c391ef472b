"""A stack of causal dilated convolutions that goes on from what it has read: weights prepared once, several rows at a time.

What the earlier taps of all convolutions give does not depend on the new position, so it is one product ahead of the stack; what is left
for each convolution is a product with one matrix, LayerNorm and ReLU.

Legend: B rows, L positions of one, V views (masks), C channels, K convolutions, k taps, P positions kept: for each convolution its last
(k − 1)·d inputs, the convolutions one behind another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters
from dist_teracon.models.conv_step_row import RowStepper


class ConvolutionStepper:
    """Reads rows, and adds positions to them (`Stepper`); a change of the parameters after this was made goes unseen.

    Args:
        parameters: Of all K convolutions.
        masks_VKC: None for one view without a mask; not negative.
        dilations: Of all K convolutions.
        eps: Of LayerNorm.

    Attributes:
        row: Adds a position to one row by NumPy; None where several views, or other numbers than fp32 on a CPU, are computed.
    """

    @torch.no_grad()
    def __init__(self, parameters: StackParameters, masks_VKC: Tensor | None, *, dilations: Sequence[int], eps: float) -> None:
        weight, bias, norm_weight, norm_bias = (p if isinstance(p, Tensor) else torch.stack(list(p)) for p in parameters)
        K, C, _, taps = weight.shape
        self._dilations, self._eps, self._shape = tuple(dilations), eps, [C]
        self._sizes = [(taps - 1) * dilation for dilation in dilations]
        *starts, kept = accumulate(self._sizes, initial=0)
        # [C_in, C_out] of the present position; [K, (k − 1)·C_in, C_out] of those before, the oldest first
        self._present = weight[..., -1].transpose(1, 2).contiguous().unbind(0)
        self._past = weight[..., :-1].permute(0, 3, 2, 1).reshape(K, (taps - 1) * C, C).contiguous()
        self._bias = bias[:, None].contiguous()
        # m ⊙ ReLU(γ ⊙ n + β) is ReLU(mγ ⊙ n + mβ)
        scale, shift = (p[None] if masks_VKC is None else masks_VKC * p for p in (norm_weight, norm_bias))
        self._views = scale.shape[0]
        by_conv = (p[0] if self._views == 1 else p.transpose(0, 1) for p in (scale, shift))
        self._scales, self._shifts = (p.contiguous().unbind(0) for p in by_conv)
        self._kept, device = kept, weight.device
        reads = [start + tap * dilation for start, dilation in zip(starts, dilations, strict=True) for tap in range(taps - 1)]
        # every convolution's oldest input makes place for its newest, which lie behind all of them
        moves = [list(range(start + 1, start + size)) for start, size in zip(starts, self._sizes, strict=True)]
        fresh = [place for number, places in enumerate(moves) for place in (*[-1] * len(places), number)]
        stays = [place for places in moves for place in (*places, -1)]
        self._reads, self._stays, self._fresh = (torch.tensor(places, device=device) for places in (reads, stays, fresh))
        self._one = self._places_of(1)
        self.row: RowStepper | None = None
        if self._views == 1 and weight.device.type == "cpu" and weight.dtype is torch.float32:
            present, past = torch.stack(self._present), self._past
            self.row = RowStepper(present, past, bias, torch.stack(self._scales), torch.stack(self._shifts), *self._one, eps=eps)

    def begin(self, x_LC: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row's last position's outputs [V, C], and what the next one needs [V, P, C]."""
        x_VLC, inputs, L = x_LC.expand(self._views, -1, -1), [], x_LC.shape[0]
        for conv in range(0, len(self._present), 2):
            h = x_VLC
            for k in (conv, conv + 1):
                whole = F.pad(h, (0, 0, self._sizes[k], 0))
                inputs.append(whole[:, -self._sizes[k] :])
                u = torch.addmm(self._bias[k, 0], h.reshape(-1, *self._shape), self._present[k])
                for tap, matrix in enumerate(self._past[k].view(-1, *self._shape, *self._shape)):
                    first = tap * self._dilations[k]
                    u.addmm_(whole[:, first : first + L].reshape(-1, *self._shape), matrix)
                h = self._normalised(u.view(self._views, L, -1), k)
            x_VLC = x_VLC + h
        return x_VLC[:, -1], torch.cat(inputs, dim=1)

    def step(self, x_BC: Tensor, kept_BVPC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new positions' outputs [B, V, C] and what the next ones need [B, V, P, C].

        Args:
            x_BC: The embedded position of each row.
            kept_BVPC: What the rows have kept.
        """
        rows, V, K = x_BC.shape[0], self._views, len(self._present)
        if rows == 1 and self.row is not None:
            x_C, kept_PC = self.row.step(x_BC.numpy()[0], kept_BVPC.numpy()[0, 0])
            return torch.from_numpy(x_C).view(1, 1, -1), torch.from_numpy(kept_PC)[None, None]
        # rows and views lie as [B · V, C], what is kept of them as [B · V · P, C]
        kept = kept_BVPC.reshape(rows * V * self._kept, -1)
        reads, moves = self._one if rows * V == 1 else self._places_of(rows * V)
        read = kept.index_select(0, reads).view(K, rows * V, -1)
        before = torch.baddbmm(self._bias, read, self._past).unbind(0)
        x, inputs = x_BC.repeat_interleave(V, dim=0) if V > 1 else x_BC, [kept]
        for conv in range(0, K, 2):
            h = self._convolved(x, before[conv], conv)
            inputs += (x, h)
            x = x + self._convolved(h, before[conv + 1], conv + 1)
        longer = torch.cat(inputs).index_select(0, moves)
        return x.view(rows, V, -1), longer.view(rows, V, self._kept, -1)

    def _places_of(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return where so many rows' earlier taps lie, [K · rows · (k − 1)], and which of kept and new inputs are kept, [rows · P]."""
        row = torch.arange(rows, device=self._reads.device)[:, None]
        first = self._kept * row
        reads = self._reads.view(len(self._present), 1, -1) + first
        # new inputs lie behind the rows' kept ones, convolution by convolution
        moves = torch.where(self._fresh < 0, first + self._stays, rows * (self._kept + self._fresh) + row)
        return reads.flatten(), moves.flatten()

    def _convolved(self, h: Tensor, before: Tensor, k: int) -> Tensor:
        """Return what convolution k makes of new positions [B · V, C], `before` being what it makes of those before them."""
        u = torch.addmm(before, h, self._present[k])
        if self._views == 1:
            return self._of_one_view(u, k)
        scale_VC, shift_VC = self._scales[k], self._shifts[k]
        n = torch.native_layer_norm(u, self._shape, None, None, self._eps)[0]
        return torch.addcmul(shift_VC, n.view(-1, *scale_VC.shape), scale_VC).view_as(u).relu_()

    def _of_one_view(self, u: Tensor, k: int) -> Tensor:
        # one view's scales and shifts are [C]
        return torch.native_layer_norm(u, self._shape, self._scales[k], self._shifts[k], self._eps)[0].relu_()

    def _normalised(self, u_VLC: Tensor, k: int) -> Tensor:
        """Return ReLU of LayerNorm with each view's mask in it."""
        if self._views == 1:
            return self._of_one_view(u_VLC, k)
        n = torch.native_layer_norm(u_VLC, self._shape, None, None, self._eps)[0]
        return torch.addcmul(self._shifts[k][:, None], n, self._scales[k][:, None]).relu_()
