"""Where tensors are computed: the processor, or the GPU where there is one."""

from __future__ import annotations

from methods.framework.errors import ConfigError

AUTO = "auto"
"""Stands for the GPU where there is one."""


def resolved_device(name: str = AUTO) -> str:
    """Return the torch device that ``name`` stands for.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({first}); give cpu, cuda, cuda:1, or auto") from error
    return name
