"""The routed expert pass: tokens sorted by expert, so that each expert runs once over all of its tokens.

Shape letters: T tokens, E routed experts, K experts per token, D hidden size, F expert width, N tokens of one expert,
A gate powers, B norm powers, X inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """Gated channels s(alpha g) g (u + 1) of g and u clamped at ``limit``, g from above alone; s is the logistic function."""

    alpha: float
    limit: float

    def __call__(self, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        """Return the channels, shape (N, F)."""
        gate_NF, up_NF = gate_NF.clamp(max=self.limit), up_NF.clamp(-self.limit, self.limit)
        return (up_NF + 1) * (gate_NF * torch.sigmoid(gate_NF * self.alpha))


Activation = Callable[[Tensor], Tensor] | ClampedSwiglu


def gated(act: Activation, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """Return the channels that an expert makes of its products with gate and up: act(gate) * up, or its own rule.

    Args:
        act: activation, or the rule.
        gate_NF: products with gate.
        up_NF: products with up.
    """
    return act(gate_NF, up_NF) if isinstance(act, ClampedSwiglu) else act(gate_NF) * up_NF


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which tokens each expert sees, as one list sorted by expert and, within an expert, by token.

    Args:
        tokens: token of each (token, expert) pair, shape (T K,).
        gates: weight of each pair, shape (T K,).
        places: column of each pair in the routing decision, shape (T K,).
        starts: E + 1 offsets into the three; expert e owns ``starts[e]:starts[e + 1]``.
    """

    tokens: Tensor
    gates: Tensor
    places: Tensor
    starts: list[int]

    @classmethod
    def of(cls, indices_TK: Tensor, weights_TK: Tensor, experts: int) -> Assignment:
        """Sort the pairs of a routing decision by expert.

        Args:
            indices_TK: experts of each token.
            weights_TK: their weights.
            experts: E.
        """
        flat = indices_TK.flatten()
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=experts).cumsum(0)
        tokens = torch.div(order, indices_TK.shape[1], rounding_mode="floor")
        places = order.remainder(indices_TK.shape[1])
        return cls(tokens, weights_TK.flatten()[order], places, [0, *ends.tolist()])

    def slices(self, expert: int, rows: int) -> Iterator[slice]:
        """Yield where the pairs of ``expert`` are, in pieces of at most ``rows``."""
        for start in range(self.starts[expert], self.starts[expert + 1], rows):
            yield slice(start, min(start + rows, self.starts[expert + 1]))

    def pieces(self, expert: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (tokens, gates) of ``expert`` in pieces of at most ``rows``."""
        for piece in self.slices(expert, rows):
            yield self.tokens[piece], self.gates[piece]

    def count(self, expert: int) -> int:
        """Return the number of tokens of ``expert``."""
        return self.starts[expert + 1] - self.starts[expert]


def gated_mlp(
    x_ND: Tensor,
    gate_up_2FD: Tensor,
    down_DF: Tensor,
    act: Activation,
    take: Callable[[Tensor], object] | None = None,
    biases: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return down(act(gate x) * up x) of shape (N, D).

    Args:
        x_ND: inputs.
        gate_up_2FD: gate and up, the two halves of one matrix, hence one GEMM.
        down_DF: the second matrix.
        act: activation.
        take: called with the inputs of down, shape (N, F), which nothing overwrites later.
        biases: of gate and up behind each other, (2F,), and of down, (D,).
    """
    both_2F, down_D = biases or (None, None)
    both_N2F = F.linear(x_ND, gate_up_2FD, both_2F)
    gate_NF, up_NF = both_N2F.chunk(2, dim=-1)
    channels_NF = act(gate_NF, up_NF) if isinstance(act, ClampedSwiglu) else act(gate_NF).mul_(up_NF)
    if take is not None:
        take(channels_NF)
    return F.linear(channels_NF, down_DF, down_D)


def weighed(x_ND: Tensor, scores_N: Tensor) -> Tensor:
    """Return inputs times the router's score of each, which is rounded to their type first."""
    return x_ND * scores_N.to(x_ND.dtype).unsqueeze(1)


def gate_norm_moments(gates_N: Tensor, norms_N: Tensor) -> Tensor:
    """Return the sums over tokens of g^a |f|^b for a, b = 0, 1, 2, shape (A, B), in float64."""
    gates_N, norms_N = gates_N.double(), norms_N.double()
    ones_N = torch.ones_like(gates_N)
    gates_AN = torch.stack([ones_N, gates_N, gates_N.square()])
    norms_BN = torch.stack([ones_N, norms_N, norms_N.square()])
    return gates_AN @ norms_BN.T


def second_moments(x_NX: Tensor, gates_N: Tensor, rows: int = 512) -> Tensor:
    """Return the sums over tokens of x^2 and of g^2 x^2, shape (2, X), in float64; ``rows`` are widened at once.

    Args:
        x_NX: inputs, one row a token.
        gates_N: weight of each token's output.
        rows: tokens that are widened at once.
    """
    total_2X = torch.zeros(2, x_NX.shape[1], dtype=torch.float64, device=x_NX.device)
    for some_NX, some_N in zip(x_NX.split(rows), gates_N.double().split(rows), strict=True):
        factors_2N = torch.stack([torch.ones_like(some_N), some_N.square()])
        total_2X.addmm_(factors_2N, some_NX.double().square())
    return total_2X


def cosine_sum(a_TD: Tensor, b_TD: Tensor) -> Tensor:
    """Return the sum over tokens of cos(a_t, b_t) as a float64 scalar; a zero vector counts as cosine 0."""
    dot_T = torch.linalg.vecdot(a_TD, b_TD).double()
    norms_T = torch.linalg.vector_norm(a_TD, dim=-1).double() * torch.linalg.vector_norm(b_TD, dim=-1).double()
    return torch.where(norms_T > 0, dot_T / norms_T, 0.0).sum()
