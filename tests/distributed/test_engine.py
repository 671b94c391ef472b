"""The engine's contract at every ZeRO stage and precision, in this process; several processes: `test_same_losses.py`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from small_runs import ALONE
from torch import Tensor, nn

from dist_teracon.config.train import TrainConfig
from dist_teracon.engine.deepspeed_engine import DeepSpeedEngine, _deepspeed_config
from dist_teracon.runtime import process_group

SETTINGS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    with process_group():
        yield


class Toy(nn.Module):
    """Two trained matrices, a frozen vector and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(5, 7, generator=generator))
        self.second = nn.ParameterList([nn.Parameter(torch.randn(5, generator=generator))])
        self.frozen = nn.Parameter(torch.randn(7, generator=generator), requires_grad=False)
        self.register_buffer("kept", torch.randn(7, generator=generator))

    def forward(self, step: int) -> Tensor:
        inputs = torch.sin(torch.arange(7.0) * (step + 1)).to(self.first.dtype)
        result: Tensor = ((self.first @ (inputs * self.frozen + self.kept).to(self.first.dtype)) - self.second[0]).float().square().mean()
        return result


def _engine(zero: int, precision: str, learning_rate: float = 0.1) -> tuple[Toy, DeepSpeedEngine]:
    toy = Toy()
    groups: list[dict[str, Any]] = [{"params": [toy.first, *toy.second], "lr": learning_rate}]
    config = TrainConfig.model_validate({"zero": zero, "precision": precision})
    return toy, DeepSpeedEngine(toy, groups, config=config, runtime=ALONE)


def _steps(engine: DeepSpeedEngine, first: int, last: int) -> None:
    for step in range(first, last):
        engine.backward(engine.loss(step))
        engine.step()


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_an_engine_that_takes_over_a_state_goes_on_bit_for_bit(zero: int, precision: str) -> None:
    _, whole = _engine(zero, precision)
    _steps(whole, 0, 3)
    state = whole.state_dict()
    _steps(whole, 3, 6)
    _, other = _engine(zero, precision)
    other.load_state_dict(state)
    _steps(other, 3, 6)
    expected, found = whole.state_dict(), other.state_dict()
    assert int(found["steps"]) == 6
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(state["parameter/first"], expected["parameter/first"])


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_scaled_rates_are_those_of_the_groups_times_the_factor(zero: int, precision: str) -> None:
    _, scaled = _engine(zero, precision, learning_rate=0.4)
    _, plain = _engine(zero, precision, learning_rate=0.1)
    for factor in (0.5, 0.25):  # of the rate that the group came with, not of the one before
        scaled.scale_rates(factor)
    for engine in (scaled, plain):
        _steps(engine, 0, 2)
    expected, found = plain.state_dict(), scaled.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_the_gradients_square_is_autograds_and_exchanges_are_seen(zero: int, precision: str) -> None:
    plain, seen = Toy(), list[str]()
    plain(0).backward()
    expected = sum(float(p.grad.square().sum()) for p in plain.parameters() if p.grad is not None)
    _, engine = _engine(zero, precision)
    engine.when_exchanging(lambda: seen.append("begins"), lambda: seen.append("ends"))
    engine.backward(engine.loss(0))
    assert float(engine.gradient_square()) == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 3e-2)
    assert seen == (["begins", "ends"] if zero else [])  # alone, plain gradients are exchanged with nobody


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 1), (1, 2)])
def test_a_state_is_free_of_the_zero_stage(before: int, after: int) -> None:
    _, old = _engine(before, "fp32")
    _steps(old, 0, 3)
    _, new = _engine(after, "fp32")
    new.load_state_dict(old.state_dict())
    _steps(old, 3, 5)
    _steps(new, 3, 5)
    for name, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_the_engine_changes_nothing_but_what_it_trains(zero: int, precision: str) -> None:
    start = {name: value.clone() for name, value in Toy().state_dict().items()}
    toy, engine = _engine(zero, precision)
    engine.release()
    assert all(torch.equal(value, start[name]) for name, value in toy.state_dict().items())
    toy, engine = _engine(zero, precision)
    _steps(engine, 0, 4)
    trained = engine.state_dict()
    engine.release()
    assert all(value.dtype == torch.float32 for value in toy.state_dict().values())
    assert torch.equal(toy.frozen, start["frozen"])
    assert torch.equal(toy.kept, start["kept"])
    assert torch.equal(toy.first, trained["parameter/first"])
    assert not torch.equal(toy.first, start["first"])
    assert [p.requires_grad for p in (toy.first, toy.second[0], toy.frozen)] == [True, True, False]


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_a_released_engine_holds_no_memory_though_its_module_lives_on(zero: int, precision: str) -> None:
    gc.disable()
    try:
        toy, engine = _engine(zero, precision)
        _steps(engine, 0, 2)
        left = [weakref.ref(moment) for entry in engine._inner_state().values() for moment in entry.values() if moment.numel() > 1]
        assert len(left) >= 2
        engine.release()
        assert not any(moment() is not None for moment in left)
        assert toy.first.dtype == torch.float32
    finally:
        gc.enable()


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_an_edit_bounds_masters_and_copies_after_large_steps(zero: int, precision: str) -> None:
    toy, engine = _engine(zero, precision, learning_rate=8.0)
    unbounded = 0.0
    for step in range(5):
        _steps(engine, step, step + 1)
        unbounded = max(unbounded, float(engine.state_dict()["parameter/first"].abs().max()))
        engine.edit_masters([toy.first], lambda values, _: values.clamp_(-6, 6))
        assert engine.state_dict()["parameter/first"].abs().max() <= 6
        assert toy.first.abs().max() <= 6
    assert unbounded > 6  # else this shows nothing


@pytest.mark.parametrize(("zero", "precision"), SETTINGS)
def test_an_edit_knows_where_in_the_parameter_its_values_lie(zero: int, precision: str) -> None:
    toy, engine = _engine(zero, precision)
    wanted = torch.arange(35.0)

    def write(values: Tensor, start: int) -> None:
        values.copy_(wanted[start : start + values.numel()])

    engine.edit_masters([toy.first], write)
    assert torch.equal(engine.state_dict()["parameter/first"].flatten(), wanted)
    assert torch.equal(toy.first.detach().float().flatten(), wanted)


class Table(nn.Module):
    """A table of which a step reads two rows, and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
        self.out = nn.Parameter(torch.ones(3))

    def forward(self, step: int) -> Tensor:
        rows = torch.tensor([step % 9, (2 * step) % 9])
        return (nn.functional.embedding(rows, self.table, sparse=True) * self.out).sin().sum()


def _lazy_engine() -> tuple[Table, DeepSpeedEngine]:
    table = Table()
    groups: list[dict[str, Any]] = [{"params": list(table.parameters()), "lr": 0.1, "weight_decay": 0.5}]
    return table, DeepSpeedEngine(table, groups, config=TrainConfig(), runtime=ALONE, sparse_updates=True)


def test_lazy_tables_go_on_bit_for_bit_from_their_state() -> None:
    table, whole = _lazy_engine()
    begun = table.table.detach().clone()
    _steps(whole, 0, 3)
    assert (table.table != begun).any(dim=1).tolist() == [True, True, True, False, True, False, False, False, False]
    state = whole.state_dict()
    _steps(whole, 3, 6)
    _, other = _lazy_engine()
    other.load_state_dict(state)
    _steps(other, 3, 6)
    expected, found = whole.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert int(found["steps"]) == 6
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("setting", [{"zero": 2}, {"zero": 1}, {"gradient_clipping": 1.0}])
def test_lazy_tables_where_gradients_must_be_whole_are_refused_and_left_out_by_themselves(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"sparse_updates on: .*set train\.zero and train\.gradient_clipping to 0"):
        TrainConfig.model_validate({"sparse_updates": "on", **setting})
    assert not TrainConfig.model_validate(setting).uses_sparse_updates(1_000_000)
    assert TrainConfig().uses_sparse_updates(100_000)
    assert not TrainConfig().uses_sparse_updates(99_999)
    assert TrainConfig(sparse_updates="on").uses_sparse_updates(10)
    for text, value in (("on", "on"), ("off", "off"), ("auto", "auto")):  # YAML reads the first two as booleans
        assert TrainConfig.model_validate(yaml.safe_load(f"sparse_updates: {text}")).sparse_updates == value


def test_bf16_without_masters_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"set train\.zero to 1 or 2"):
        TrainConfig.model_validate({"zero": 0, "precision": "bf16"})


def test_further_deepspeed_settings_do_not_drop_the_zero_stage() -> None:
    config = TrainConfig.model_validate({"zero": 2, "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1000}}})
    assert _deepspeed_config(config)["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "compute_grad_norm": False}


@pytest.mark.parametrize("setting", [{"gradient_clipping": 1.0}, {"bf16": {"enabled": True}}, {"zero_optimization": {"stage": 3}}])
def test_deepspeed_settings_that_follow_from_others_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set that instead"):
        TrainConfig.model_validate({"deepspeed": setting})
