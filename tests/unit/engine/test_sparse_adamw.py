"""Adam that leaves untouched rows alone: AdamW itself on the rows that a gradient names, and nothing on the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist_teracon.engine.sparse_adamw import SparseAdamW

V, C = 12, 5
OPTIONS = {"lr": 0.05, "weight_decay": 0.3}


def start() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(V, C, generator=generator))
    return table, torch.nn.Parameter(torch.randn(C, generator=generator))


def train(rows_of_steps: list[list[int]], *, sparse: bool) -> tuple[torch.Tensor, torch.Tensor, SparseAdamW]:
    table, other = start()
    optimiser = SparseAdamW([table, other], **OPTIONS)
    for rows in rows_of_steps:
        (F.embedding(torch.tensor(rows), table, sparse=sparse) * other).sin().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return table.detach(), other.detach(), optimiser


def test_where_every_row_is_read_it_is_adamw() -> None:
    steps = [[*range(V), 3, 3, 0]] * 4
    table, other = start()
    optimiser = torch.optim.AdamW([table, other], **OPTIONS)
    for rows in steps:
        (F.embedding(torch.tensor(rows), table) * other).sin().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    for sparse in (False, True):
        found = train(steps, sparse=sparse)
        torch.testing.assert_close(found[0], table.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found[1], other.detach(), rtol=1e-6, atol=1e-7)


def test_rows_that_no_step_reads_keep_value_and_moments_and_others_only_move_when_read() -> None:
    table, _, optimiser = train([[1, 2, 2], [4]], sparse=True)
    begun, _ = start()
    moved = (table != begun.detach()).any(dim=1)
    assert moved.tolist() == [row in (1, 2, 4) for row in range(V)]
    state = optimiser.state[optimiser.param_groups[0]["params"][0]]
    assert float(state["step"]) == 2
    assert (state["exp_avg"] != 0).any(dim=1).tolist() == moved.tolist()
    once, _, _ = train([[1, 2, 2]], sparse=True)
    assert torch.equal(once[[1, 2]], table[[1, 2]])  # neither momentum nor decay moved them in the step that did not read them
