"""Low-rank updates of experts that are stored in a form of their own, one small matrix after another.

Peft wraps a module once more for each parameter that it adapts; a layer that keeps each expert's matrices apart would be
wrapped hundreds of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankUpdate(nn.Module):
    """W + scale up down, with down random and up zero at first (arXiv 2106.09685); the same for each matrix of a stack.

    Args:
        weight: W, [..., out, in].
        rank: columns of up; no more than the shorter side of W.
        scale: factor of the update.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        """Make an update that changes nothing yet.

        Args:
            weight: a matrix, or a stack of them, on whose device the update is.
            rank: of the update, at most that of the matrix.
            scale: factor of the update.
        """
        super().__init__()
        *stack, outputs, inputs = weight.shape
        inner = min(rank, outputs, inputs)
        bound = 1.0 / math.sqrt(inputs)  # as peft draws it
        down = torch.empty(*stack, inner, inputs, device=weight.device).uniform_(-bound, bound)
        self.down, self.up = nn.Parameter(down), nn.Parameter(down.new_zeros(*stack, outputs, inner))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + (self.scale * (self.up @ self.down)).to(weight.dtype)


def add_updates(model: nn.Module, names: Iterable[str], rank: int, scale: float) -> None:
    """Let each of the parameters ``names`` of ``model`` be seen with an update of its own.

    Args:
        model: changed in place.
        names: of its parameters, matrices or stacks of them.
        rank: of each update.
        scale: factor of each update.
    """
    for name in names:
        owner, _, attribute = name.rpartition(".")
        weight = model.get_parameter(name)
        parametrize.register_parametrization(model.get_submodule(owner), attribute, LowRankUpdate(weight, rank, scale))


def merge_updates(model: nn.Module, names: Iterable[str]) -> None:
    """Add the updates to the parameters and remove them."""
    for name in names:
        owner, _, attribute = name.rpartition(".")
        parametrize.remove_parametrizations(model.get_submodule(owner), attribute, leave_parametrized=True)
