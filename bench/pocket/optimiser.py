"""Muon for the matrices of the transformer and AdamW for the rest, which learns a small model in few tokens."""

# E experts, M rows, N columns of a weight matrix.

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update_EMN: Tensor, steps: int = 5) -> Tensor:
    """Return matrices whose singular values are near one and whose singular vectors are those of the update.

    X <- a X + (b A + c A A) X with A = X Xᵀ, from X = U / |U|.

    *Source*: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

    Args:
        update_EMN: one matrix or a stack of them.
        steps: Newton-Schulz iterations.
    """
    a, b, c = COEFFICIENTS
    wide = update_EMN.shape[-2] <= update_EMN.shape[-1]
    matrix = update_EMN if wide else update_EMN.mT
    matrix = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = matrix @ matrix.mT
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    orthogonal: Tensor = matrix if wide else matrix.mT
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for weights of two axes or stacks of them.

    *Differs*: the step is scaled by .2 sqrt(max(M, N)) as in Moonlight, so that one learning rate serves AdamW as well.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        """Take the settings.

        Args:
            weights: matrices, or stacks of them.
            lr: learning rate.
            momentum: share of the running gradient that stays at each step, 0 to 1.
            decay: of the weights, times the learning rate at each step.
        """
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no overloads
        """Apply one step to every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(state["momentum"], group["momentum"]))
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape[-2:]) ** 0.5)
