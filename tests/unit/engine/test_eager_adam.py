"""Adam without torch's compiler takes torch's steps, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest

# in a process of its own: here something may have imported the compiler
CODE = """
import copy, sys
import torch
from dist_teracon.engine.eager_adam import make_adam
from dist_teracon.engine.sparse_adamw import SparseAdamW

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

def steps(module, optimizer, count=5):
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        module(torch.randn(6, 3, generator=generator)).square().mean().backward()
        optimizer.step()

def groups(module):
    return [{"params": list(module[0].parameters()), "lr": 0.1}, {"params": list(module[2].parameters()), "weight_decay": 0.5}]

KINDS = [(torch.optim.Adam, {}), (torch.optim.AdamW, {"fused": True}), (torch.optim.AdamW, {"weight_decay": 0.1}), (SparseAdamW, {})]
ours = []
for kind, settings in KINDS:
    module = network()
    optimizer = make_adam(kind, groups(module), lr=0.01, **settings)
    steps(module, optimizer)
    # and from a state that was kept
    again = network()
    again.load_state_dict(module.state_dict())
    resumed = make_adam(kind, groups(again), lr=0.01, **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(again, resumed)
    ours.append(again)
assert "torch._dynamo" not in sys.modules
import torch._dynamo
for module, (kind, settings) in zip(ours, KINDS):
    theirs = network()
    kind = torch.optim.AdamW if kind is SparseAdamW else kind
    optimizer = kind(groups(theirs), lr=0.01, **settings)
    for _ in range(2):
        steps(theirs, optimizer)
    for mine, its in zip(module.parameters(), theirs.parameters()):
        assert torch.equal(mine, its)
# once something has it, torch's own class is given as it is
assert "step" not in vars(make_adam(torch.optim.AdamW, network().parameters()))
"""


@pytest.mark.timeout(200)
def test_its_steps_are_torchs_and_the_compiler_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
