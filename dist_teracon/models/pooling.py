"""What a representation takes from a sequence beside its last position.

Legend: N packed positions, B rows (users), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dist_teracon.data.batches import Positions
from dist_teracon.kernels.running_mean import running_mean


def last_positions(x_BLC: Tensor, lengths: Tensor) -> Tensor:
    """Return each padded row's last position [B, C]; `lengths` int64 [B], at least 1 each."""
    place = (lengths - 1)[:, None, None].expand(-1, 1, x_BLC.shape[2])
    return x_BLC.gather(1, place).squeeze(1)


def mean_so_far(x_NC: Tensor, row_offsets: Tensor, *, positions: Positions, eps: float = 1e-8) -> Tensor:
    """Mean of a row's inputs up to each position, normalised over channels: [N, C], or [B, C] over whole rows.

    The order-free summary that an SVD with logistic regression works on. The residual stream alone keeps little of it, as its last
    position is dominated by the last items (docs/log/2026-11-25-pooling-and-averages.md). An empty row gives zeros.

    Args:
        x_NC: The packed positions' inputs.
        row_offsets: int64 [B + 1].
        positions: `all` for every position, `last` for each row's last.
        eps: Added to the variance.
    """
    if positions == "last":
        # a bag a row: its own items alone are added up, so what other rows hold changes no bit
        every = torch.arange(x_NC.shape[0], device=x_NC.device)
        wide = x_NC.to(torch.promote_types(x_NC.dtype, torch.float32))
        sums = nn.functional.embedding_bag(every, wide, row_offsets[:-1], mode="sum")
        mean = (sums / row_offsets.diff().clamp_min(1)[:, None]).to(x_NC.dtype)
    else:
        mean = running_mean(x_NC, row_offsets)
    return nn.functional.layer_norm(mean, mean.shape[1:], eps=eps)


def mean_of_sums(sums_BC: Tensor, lengths_B: Sequence[int], *, dtype: torch.dtype, eps: float = 1e-8) -> Tensor:
    """Return `mean_so_far` over whole rows, [B, C], from the sums of their inputs.

    Args:
        sums_BC: Each row's sum.
        lengths_B: Of the rows, 1 at least.
        dtype: The inputs' number type.
        eps: Added to the variance.
    """
    lengths = lengths_B[0] if len(lengths_B) == 1 else torch.tensor(lengths_B, device=sums_BC.device)[:, None]
    mean = (sums_BC / lengths).to(dtype)
    return torch.native_layer_norm(mean, mean.shape[1:], None, None, eps)[0]
