"""The engine of real runs: DeepSpeed, ZeRO 0 to 2, fp32 or bf16 with fp32 masters.

DeepSpeed's own checkpoints are pickles bound to a world size, so state goes in and out as whole fp32 tensors instead. A parameter
under ZeRO 1 and 2 is stepped as a fragment of a flat fp32 partition, one partition a rank; `_hp_mapping` has which fragment.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_teracon.config.train import TrainConfig
from dist_teracon.config_io import deep_merge
from dist_teracon.engine.contract import Edit
from dist_teracon.engine.eager_adam import make_adam
from dist_teracon.engine.sparse_adamw import SparseAdamW
from dist_teracon.runtime import Runtime

_MOMENTS = ("exp_avg", "exp_avg_sq")


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it where no launcher set one; the device is ours to choose
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # a C++ all-reduce for CPUs that would be compiled on first use, for half a minute and only where a compiler is
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon, which ZeRO does to ask whether an optimiser is one, without compiling its kernels.

    Nobody takes a step with it here, and torch's compiler, some five hundred modules, is seconds of every process's start.
    """
    from deepspeed.runtime import compiler

    compile_kernels = compiler.compile
    compiler.compile = lambda *_, **__: lambda kernel: kernel
    try:
        with contextlib.suppress(ImportError):  # a version that has it elsewhere imports it itself, only slower
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_kernels


class DeepSpeedEngine:
    """DeepSpeed behind the contract.

    Args:
        module: Its forward maps a batch to the loss; parameters without gradients stay as they are.
        groups: Parameter groups for Adam, each with `params` and `lr`.
        config: ZeRO stage, precision, clipping, accumulation.
        runtime: This process's place in the world; the default process group exists.
        sparse_updates: Parameters with sparse gradients are advanced in their rows alone (`SparseAdamW`); needs ZeRO 0, no clipping.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[dict[str, Any]], *, config: TrainConfig, runtime: Runtime, sparse_updates: bool = False
    ) -> None:
        assert not sparse_updates or (config.zero == 0 and not config.gradient_clipping)
        deepspeed = _import_deepspeed()
        if config.zero:
            _import_muon()
        self._module = module.to(runtime.device)
        self._zero, self._world_size = config.zero, runtime.world_size
        # in bf16 the whole module is cast, what is not trained too, and the masters would begin as copies of what was cast
        whole = _copies(self._module) if config.precision == "bf16" else {}
        if sparse_updates:
            torch.sparse.check_sparse_tensor_invariants.disable()  # set explicitly: DeepSpeed's own sparse tensors warn otherwise
        kind = SparseAdamW if sparse_updates else torch.optim.AdamW
        # with a decay of 0 this is Adam; fused, it takes one pass over each parameter instead of some ten small operations
        optimizer = make_adam(kind, list(groups), lr=1e-3, weight_decay=0.0, fused=True)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._engine, *_ = deepspeed.initialize(model=self._module, optimizer=optimizer, config=_deepspeed_config(config))
        if runtime.world_size == 1 and not config.zero:
            self._engine.enable_backward_allreduce = False  # alone, it would copy all gradients to a buffer and back
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._untrained = {name: value for name, value in whole.items() if name not in self._parameters}
        for name, parameter in self._parameters.items():
            if name in whole and (mapping := self._fragment(parameter)) is not None:
                mapping.hp_fragment.data.copy_(_fragment_of(whole[name], mapping))

    def loss(self, batch: Any) -> Any:
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def scale_rates(self, factor: float) -> None:
        for group, rate in zip(self._engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def gradient_square(self) -> Tensor:
        if self._zero:  # each rank holds a partition of it
            parts = [part for group in self._engine.optimizer.averaged_gradients.values() for part in group or ()]
        else:
            parts = [p.grad for p in self._parameters.values() if p.grad is not None]
        squares = [_square(part) for part in parts]
        device = next(iter(self._parameters.values())).device
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=device)
        return total if self._zero else total / self._world_size

    def when_exchanging(self, begins: Callable[[], None], ends: Callable[[], None]) -> None:
        exchange = self._engine.allreduce_gradients

        def exchange_between(*arguments: Any, **options: Any) -> None:
            begins()
            exchange(*arguments, **options)
            ends()

        self._engine.allreduce_gradients = exchange_between

    def edit_masters(self, parameters: Iterable[nn.Parameter], edit: Edit) -> None:
        with torch.no_grad():
            for parameter in parameters:
                mapping = self._fragment(parameter)
                if mapping is not None:
                    edit(mapping.hp_fragment, mapping.lp_fragment_address.start)
                edit(parameter.data.view(-1), 0)

    def state_dict(self) -> dict[str, Tensor]:
        steps = self._steps()
        state = {"steps": torch.tensor(steps, dtype=torch.int64)}
        for name, parameter in self._parameters.items():
            state[f"parameter/{name}"] = self._whole(parameter, None)
            for moment in _MOMENTS if steps else ():
                state[f"{moment}/{name}"] = self._whole(parameter, moment)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        steps = int(state["steps"])
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                value = state[f"parameter/{name}"].to(parameter.device)
                parameter.data.copy_(value)
                if (mapping := self._fragment(parameter)) is not None:
                    mapping.hp_fragment.copy_(_fragment_of(value, mapping))
            if steps:
                self._load_moments(state, steps)

    def release(self) -> None:
        values = {name: self._whole(parameter, None) for name, parameter in self._parameters.items()}
        self._engine.destroy()
        _renew_parameters(self._module, {**self._untrained, **values})
        # destroyed, DeepSpeed's engine still hangs on the module's hooks and in cycles, moments and masters with it: at 646 thousand
        # items gigabytes a stage, which the collector would get to only after many more small objects
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        del self._engine
        self._parameters, self._untrained = {}, {}
        gc.collect()

    def _whole(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        """Gather a parameter's fp32 values, or one of its moments, from the ranks' fragments: a CPU tensor on every rank."""
        if not self._zero:
            value = parameter if moment is None else self._inner_state()[parameter][moment]
            return value.detach().float().cpu().clone()
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if (mapping := self._fragment(parameter)) is not None:
            address = mapping.hp_fragment_address
            flat = self._flat_partitions()[mapping.param_group_index]
            source = flat if moment is None else self._inner_state()[flat][moment]
            _fragment_of(whole, mapping).copy_(source.detach().narrow(0, address.start, address.numel))
        dist.all_reduce(whole)
        return whole.view_as(parameter).cpu()

    def _fragment(self, parameter: nn.Parameter) -> Any:
        """This rank's fragment of a parameter's masters, or None: it holds none, or there are no separate masters."""
        return getattr(parameter, "_hp_mapping", None)

    def _flat_partitions(self) -> list[Tensor]:
        return list(self._engine.optimizer.single_partition_of_fp32_groups)

    def _inner_state(self) -> Any:
        optimizer = self._engine.optimizer
        return optimizer.optimizer.state if self._zero else optimizer.state

    def _steps(self) -> int:
        return next((int(entry["step"]) for entry in self._inner_state().values() if "step" in entry), 0)

    def _load_moments(self, state: dict[str, Tensor], steps: int) -> None:
        inner = self._inner_state()
        owners = self._flat_partitions() if self._zero else list(self._parameters.values())
        for owner in owners:
            inner[owner] = {
                "step": torch.tensor(float(steps), device=owner.device),  # where a fused step wants it
                **{moment: torch.zeros_like(owner, dtype=torch.float32) for moment in _MOMENTS},
            }
        for name, parameter in self._parameters.items():
            mapping = self._fragment(parameter)
            for moment in _MOMENTS:
                value = state[f"{moment}/{name}"].to(parameter.device)
                if not self._zero:
                    inner[parameter][moment].copy_(value)
                elif mapping is not None:
                    address = mapping.hp_fragment_address
                    flat = inner[owners[mapping.param_group_index]][moment]
                    flat.narrow(0, address.start, address.numel).copy_(_fragment_of(value, mapping))


def _square(gradient: Tensor) -> Tensor:
    """Return a gradient's squared length, in fp32."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dtype=torch.float32)
    return norm.square()


def _fragment_of(value: Tensor, mapping: Any) -> Tensor:
    address = mapping.lp_fragment_address
    return value.flatten().narrow(0, address.start, address.numel)


def _copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def _renew_parameters(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Replace every parameter by a fresh fp32 one: DeepSpeed leaves hooks and views of flat buffers on those it has trained."""
    module.float()
    for name, old in list(module.named_parameters()):
        owner_name, _, leaf = name.rpartition(".")
        value = values[name] if name in values else old.detach().clone()
        fresh = nn.Parameter(value.to(old.device), requires_grad=old.requires_grad)
        owner = module.get_submodule(owner_name)
        if isinstance(owner, nn.ParameterList):
            owner[int(leaf)] = fresh
        else:
            setattr(owner, leaf, fresh)
    for name, buffer in module.named_buffers():
        if name in values:
            buffer.copy_(values[name])


def _deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    derived: dict[str, Any] = {
        # nominal: batches are packed rows of our own, this only fixes DeepSpeed's arithmetic of accumulation
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping,  # DeepSpeed's own default is 1.0
        "zero_optimization": {"stage": config.zero},
        # a step whose gradients are not finite is not passed over in silence: the loss after it ends the run
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": False},
        "steps_per_print": 1 << 62,
    }
    if config.zero and not config.gradient_clipping:
        derived["zero_optimization"]["compute_grad_norm"] = False  # nobody reads it, and every step would wait for it
    if config.precision == "bf16":
        # one kind of ZeRO optimiser for stages 1 and 2; gradients are summed over ranks in fp32
        derived["data_types"] = {"grad_accum_dtype": "bf16"}
        derived["communication_data_type"] = "fp32"
    return deep_merge(derived, config.deepspeed.given())
