"""Distributed training of universal user representations that keep learning (TERACON, KDD 2023).

What is named here is imported on first use: `import dist_teracon` itself loads neither torch nor any other heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_teracon.config_io import load_config
    from dist_teracon.data.open import open_dataset
    from dist_teracon.inference.model import from_pretrained
    from dist_teracon.train.api import train_tasks

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "load_config", "open_dataset", "train_tasks"]

# name -> the module that has it. Training is `train_tasks`, because `train` is a package of this one.
_PUBLIC = {
    "from_pretrained": "dist_teracon.inference.model",
    "load_config": "dist_teracon.config_io",
    "open_dataset": "dist_teracon.data.open",
    "train_tasks": "dist_teracon.train.api",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
