"""What a stage hands on when it averages its epochs' weights, and how far what it did not add steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import events, settings, train_here, weights

from dist_teracon.config.run import RunConfig
from dist_teracon.config.train import StageTraining
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.registry import resolve_method
from dist_teracon.data.open import open_dataset

pytestmark = pytest.mark.usefixtures("alone")


def test_a_stage_hands_on_the_mean_of_its_epochs(small: str, tmp_path: Path) -> None:
    """Of runs that differ in averaging alone, each epoch's weights are the same; the first epoch's are those of a run that ends there."""
    stage = {"learning_rate": 0.003, "batch": 8, "patience": 0}

    def handed_on(name: str, **fields: float) -> dict[str, torch.Tensor]:
        run = train_here(settings(small, tasks=("likes",), first={**stage, **fields}), tmp_path / name)
        assert [event["best"] for event in events(run, "epoch")][-1], "the last epoch is not the best: take another seed"
        return weights(run, "01-likes")

    one, two, mean = handed_on("one", epochs=1), handed_on("two", epochs=2), handed_on("mean", epochs=2, ema_decay=0.9)
    for name, value in mean.items():
        assert torch.allclose(value, (one[name] + two[name]) / 2, atol=1e-7)
    assert not torch.equal(one["backbone.item_embedding.weight"], two["backbone.item_embedding.weight"])


def test_what_earlier_stages_trained_steps_by_its_share_of_the_learning_rate(small: str, tmp_path: Path) -> None:
    """A stage's first Adam step moves a weight by the learning rate, up to rounding and tiny gradients."""
    moved = {}
    for rate in (1.0, 0.25):
        stage = {"learning_rate": 0.01, "batch": 1000, "epochs": 1, "pretrained_lr_scale": rate}
        start, run = (
            train_here(settings(small, tasks=("next", "likes"), second={**stage, "epochs": epochs}), tmp_path / f"{rate}-{epochs}")
            for epochs in (0, 1)
        )
        before, after = weights(start, "02-likes"), weights(run, "02-likes")
        moved[rate] = {name: (after[name] - before[name]).abs().median().item() for name in ("backbone.conv_weight", "heads.likes.weight")}
    assert moved[1.0]["backbone.conv_weight"] > 0.009
    assert moved[0.25]["backbone.conv_weight"] == pytest.approx(moved[1.0]["backbone.conv_weight"] / 4, rel=1e-3)
    assert moved[0.25]["heads.likes.weight"] == pytest.approx(moved[1.0]["heads.likes.weight"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        ("teracon", ("heads.likes.", "masks.embeddings.1", "masks.weights.1", "masks.biases.1")),
        ("fineall", ("heads.likes.",)),
        ("sinmo", ("heads.likes.", "backbone.")),
    ],
)
def test_all_but_what_a_stage_adds_is_of_earlier_stages(small: str, name: str, fresh: tuple[str, ...]) -> None:
    config = RunConfig.model_validate(settings(small, tasks=("next", "likes"), method=name))
    info = open_dataset(small).info
    tasks = tuple(info.task(task) for task in ("next", "likes"))
    kind, chosen = resolve_method(config, where="test")
    method = kind(MethodContext(model=config.model, seed=0, num_items=info.items, tasks=tasks, training=(StageTraining(),) * 2), chosen)
    for task in tasks:
        method.begin_task(task)
        parameters = [name for name, _ in method.module().named_parameters()]
        earlier = {name for name in parameters if method.is_pretrained(method.role(name))}
        assert earlier == ({name for name in parameters if not name.startswith(fresh)} if task.name == "likes" else set())
        method.end_task()
