"""Where a model in use computes."""

from __future__ import annotations

import torch

from dist_teracon.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """Return a device by its name.

    Raises:
        ConfigError: it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}': cannot be used here ({str(error).splitlines()[0]}); expected cpu or cuda") from None
    return device
