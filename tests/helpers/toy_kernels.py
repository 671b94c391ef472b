"""A toy backend of the convolution stack, as docs/extending.md shows it: the reference in float64."""

from __future__ import annotations

from torch import Tensor

from dist_teracon.kernels.masked_dilated_conv_stack import Layout, StackParameters, reference


def stack(x_NC: Tensor, layout: Layout, parameters: StackParameters, masks_TKC: Tensor | None, *, eps: float) -> Tensor:
    """Run the stack in float64 and round its result once; slow, for looking at rounding."""
    wide = StackParameters(*([one.double() for one in part] for part in parameters))
    masks = None if masks_TKC is None else masks_TKC.double()
    return reference.stack(x_NC.double(), layout, wide, masks, eps=eps).to(x_NC.dtype)
