"""torch, imported when something of it is first used: files that define statistics are read by listings, which compute nothing.

``from methods.framework.deferred import torch`` reads like the plain import, also to the type checker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["torch"]

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """Stands for the module."""

        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()
