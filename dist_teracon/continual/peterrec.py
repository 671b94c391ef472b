"""PeterRec: small patches of every task's own in the first task's frozen network (docs/method.md, Systems).

Legend: M positions that are computed, K masked layers, C channels, H inner width of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dist_teracon.config.base import ConfigModel, Whole
from dist_teracon.continual.method import MethodContext
from dist_teracon.continual.one_network import OneNetwork
from dist_teracon.continual.registry import register
from dist_teracon.data.schema import Task
from dist_teracon.errors import ConfigError
from dist_teracon.models.backbone import Backbone
from dist_teracon.models.heads import head_key
from dist_teracon.models.network import Network, Role


class PeterRecSettings(ConfigModel):
    """PeterRec's settings.

    Attributes:
        insertion: `serial`: a patch reads what the layer's last matrix gives; `parallel`: it reads the layer's input.
        reduction: A patch's inner width is the channels by this.
    """

    insertion: Literal["serial", "parallel"] = "serial"
    reduction: Annotated[Whole, Field(ge=1, le=4096)] = 4


class _Patches(nn.Module):
    """A task's patches, and its own LayerNorms: `h + W₂·GELU(W₁·z + b₁) + b₂` behind every masked layer, z being h or the layer's input.

    Args:
        backbone: Whose layers; its LayerNorms are copied.
        width: H.
        serial: z is h.
        generator: Source of the initial values; W₂ and b₂ start at zero, so that a task starts with the backbone as it is.
    """

    def __init__(self, backbone: Backbone, width: int, *, serial: bool, generator: torch.Generator) -> None:
        super().__init__()
        K, C = backbone.num_masked_layers, backbone.channels
        self.serial = serial
        self.down = nn.Parameter(torch.empty(K, width, C).uniform_(-1 / math.sqrt(C), 1 / math.sqrt(C), generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(K, width))
        self.up, self.up_bias = nn.Parameter(torch.zeros(K, C, width)), nn.Parameter(torch.zeros(K, C))
        own = dict(backbone.named_parameters())
        self.norms = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(own[name].detach().clone()) for name in sorted(backbone.norm_parameters())}
        )

    def forward(self, k: int, input_MC: Tensor, output_MC: Tensor) -> Tensor:
        """Return what goes on behind layer k: [M, C]."""
        inner_MH = F.gelu(F.linear(output_MC if self.serial else input_MC, self.down[k], self.down_bias[k]))
        return output_MC + F.linear(inner_MH, self.up[k], self.up_bias[k])

    def weights(self) -> dict[str, Tensor]:
        """Return what the backbone's LayerNorms are for the task, by name."""
        return {name.replace("/", "."): value for name, value in self.norms.items()}


class _PatchedNetwork(Network):
    """A network with patches, a set for every task but the first."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.patches = nn.ModuleDict()

    def role(self, name: str) -> Role:
        part, _, rest = name.partition(".")
        return Role("patch", self.task_of(rest.partition(".")[0])) if part == "patches" else super().role(name)


@register
class PeterRec(OneNetwork):
    """Grafted patches (Yuan et al., *Parameter-Efficient Transfer from Sequential Behaviors for User Modeling and Recommendation*,
    SIGIR 2020).

    The first task trains the network. Then backbone and embeddings are frozen, and every later task has, of its own: a bottleneck with an
    inner skip behind each masked layer's last matrix (on NextItNet between convolution and LayerNorm, on SASRec behind each sub-layer,
    before the residual connection), all LayerNorms' scales and shifts, and its head. Tasks are apart: each transfers from the first
    alone, and no past task changes.

    Memory a task: K·(2·C·H + H + C) numbers of patches with H = ⌈C / reduction⌉, the LayerNorms (2·K·C; SASRec 2·C more), and its head,
    4 bytes each.

    Deviates from the paper: no layers of the pretrained network are dropped, and no token stands at the sequence's end; W₂ starts at
    zero. The published comparison used a learning rate of 5e-4. Patched layers run convolution by convolution, not in the fused kernel.
    """

    name = "peterrec"
    plain_first_network = ""
    Settings = PeterRecSettings
    network: _PatchedNetwork

    def __init__(self, context: MethodContext, settings: PeterRecSettings) -> None:
        super().__init__(context, settings)
        self.options = settings

    @classmethod
    def check(cls, tasks: Sequence[Task], backbone: type[Backbone]) -> None:
        if not backbone.takes_patches():
            raise ConfigError(
                f"model.backbone.name: method '{cls.name}' puts modules into a backbone, and '{backbone.name}' has no place for them "
                "(`transform_patched`)"
            )

    def make_network(self) -> Network:
        return _PatchedNetwork(self.context.backbone(self.context.tasks[0]))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.is_first:
            return
        backbone = self.network.backbone
        patches = _Patches(
            backbone, -(-backbone.channels // self.options.reduction), serial=self.options.insertion == "serial",
            generator=self.context.generator(f"patches:{task.name}"),
        )  # fmt: skip
        self.network.patches[head_key(task.name)] = patches

    def inserted(self, task: str) -> dict[str, Any]:
        """Return what a task's pass has of its own; the first has the network as it is."""
        if task == self.learned[0]:
            return {}
        patches = self.network.patches[head_key(task)]
        assert isinstance(patches, _Patches)
        return {"weights": patches.weights(), "patch": patches}
