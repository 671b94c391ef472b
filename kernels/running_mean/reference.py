"""The running mean in plain torch, on any device.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def running_mean(x_NC: Tensor, row_offsets: Tensor) -> Tensor:
    """Return the mean of a row's inputs up to each position, see the package's `running_mean`."""
    # one running sum over the whole batch, in float64 so that a row's differences do not depend on the rows before it
    reached = torch.cat([x_NC.new_zeros(1, x_NC.shape[1], dtype=torch.float64), torch.cumsum(x_NC.double(), 0)])
    starts = torch.repeat_interleave(row_offsets[:-1], row_offsets.diff())
    counts = torch.arange(1, x_NC.shape[0] + 1, device=x_NC.device) - starts
    return ((reached[1:] - reached[starts]) / counts[:, None]).to(x_NC.dtype)
