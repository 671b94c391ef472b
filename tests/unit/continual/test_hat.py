"""HAT's formulas: the share of free channels that a mask opens, and how much the first task holds by its initial embeddings."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.continual.hat import HatSettings, opened_share
from dist_teracon.models.masks import TaskMasks


def test_the_regulariser_is_of_what_no_past_task_holds() -> None:
    mask = torch.tensor([[1.0, 0.5, 0.2], [0.4, 1.0, 0.0]])
    assert opened_share(mask, torch.zeros(2, 3)) == pytest.approx(3.1 / 6)
    held = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]])
    # (.5 · .5 + .2 · 1 + .4 · 1) / (.5 + 1 + 1), over both layers together
    assert opened_share(mask, held) == pytest.approx(0.85 / 2.5)
    assert opened_share(mask, torch.ones(2, 3)) == 0


def test_its_gradient_is_the_share_of_a_channel_that_is_free() -> None:
    mask = torch.full((1, 4), 0.5, requires_grad=True)
    opened_share(mask, torch.tensor([[1.0, 0.0, 0.5, 0.5]])).backward()
    assert mask.grad is not None
    torch.testing.assert_close(mask.grad, torch.tensor([[0.0, 0.5, 0.25, 0.25]]))


@pytest.mark.parametrize(("embedding_range", "held"), [((0.0, 2.0), 0.954), ((-2.0, 2.0), 0.477)])
def test_initial_embeddings_decide_how_much_the_first_task_holds_before_it_is_trained(
    embedding_range: tuple[float, float], held: float
) -> None:
    # σ(50·e) > .99 where e > ln(99)/50 = .0919: of U(0, 2) 95.4 %, of U(−2, 2) 47.7 %
    masks = TaskMasks(layers=16, channels=1024, relation="none", embedding_range=embedding_range)
    masks.add_task(generator=torch.Generator().manual_seed(0))
    opened = masks([HatSettings().s_max])[-1]
    assert float((opened > 0.99).float().mean()) == pytest.approx(held, abs=0.01)
