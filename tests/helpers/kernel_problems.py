"""Small problems for the convolution stack: random rows, weights and masks, in fp64; output and all gradients."""

from __future__ import annotations

import torch

from dist_teracon.kernels.masked_dilated_conv_stack import StackParameters

LENGTHS = {
    "many": [7, 1, 2, 23, 0, 5, 3],
    "ones": [1, 1, 1],
    "empty rows": [0, 4, 0, 0],
    "only empty rows": [0, 0],
    "no rows": [],
    "one long": [40],
}


def problem(lengths, *, channels=5, tasks=3, blocks=2, kernel_size=3, one_task=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    stages = 2 * blocks
    parameters = StackParameters(
        draw(stages, channels, channels, kernel_size), draw(stages, channels), 1 + 0.3 * draw(stages, channels), draw(stages, channels)
    )
    row_offsets = torch.tensor([0, *lengths]).cumsum(0)
    task_of_row = torch.arange(len(lengths), dtype=torch.int32) * (not one_task) % tasks
    x = draw(sum(lengths), channels)
    return x, row_offsets, task_of_row, parameters, torch.rand(tasks, stages, channels, dtype=torch.float64, generator=generator)


def with_gradients(stack, x, layout, parameters, masks):
    leaves = [value.clone().requires_grad_() for value in (x, *parameters, masks)]
    out = stack(leaves[0], layout, StackParameters(*leaves[1:5]), leaves[5], eps=1e-8)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)
