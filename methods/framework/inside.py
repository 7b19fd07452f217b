"""Statements of a plan about the inside of the routed experts that stay: factors, shared bases, zeros, few bits.

Zeros and few bits may reach the other linear layers too (``scope``).

What exactly is stored depends on weights and on moments of their inputs, so a plan names the kernel and the sizes, and the
values are computed where the checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Rank = Annotated[int, Field(ge=0)]

Scope = Literal["experts", "all"]
"""What is made sparse or stored in few bits: the routed experts, or all linear layers of the decoder layer (attention, routed and
shared experts, dense networks) but the router and the gate of the shared experts."""

ENTRY_FISHER = "entry_fisher"
"""Statistic of the mean squared gradient in every entry of the experts' matrices."""


class SharedBase(BaseModel):
    """A matrix that all experts of a layer share, beside which each stores only its factored difference.

    Args:
        members: experts that it is an average of, as the stages before leave them; source indices, ascending.
        kernel: ``mean`` takes one factor for each member, ``fisher`` one for each entry of each member: the mean squared
            gradient in it, divided by the sum over the members (alike where that is 0).
        weights: factors of ``mean``, which add up to 1; none for ``fisher``.
        columns: share of the columns of the average (inputs of the matrix) that are stored; the others are zero. Those with
            the largest norm times norm of their input stay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Annotated[int, Field(ge=0)], ...]
    kernel: Literal["mean", "fisher"] = "mean"
    weights: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] = ()
    columns: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.members or list(self.members) != sorted(set(self.members)):
            raise ValueError(f"members of a base must be ascending and distinct, found {list(self.members)}")
        if self.kernel == "fisher":
            if self.weights:
                raise ValueError(
                    f"a base by 'fisher' takes its factors from the statistics and states none: {self.weights}"
                )
        elif len(self.weights) != len(self.members) or abs(sum(self.weights) - 1.0) > 1e-9:
            raise ValueError(f"a base of {len(self.members)} members needs as many weights with sum 1: {self.weights}")
        return self

    @property
    def moments(self) -> frozenset[str]:
        """Statistics that it reads while weights are written, beyond those of the factors' kernel."""
        if self.kernel == "mean":
            return frozenset()
        return frozenset({ENTRY_FISHER, "routed_tokens"} if self.columns < 1.0 else {ENTRY_FISHER})

    def stored_columns(self, inputs: int) -> int:
        """Return how many of ``inputs`` columns are stored."""
        return max(1, int(self.columns * inputs + 0.5))


class LowRank(BaseModel):
    """Matrices of the routed experts as products of two factors, left [out, rank] and right [rank, in].

    Args:
        kernel: ``svd`` truncates the singular value decomposition of the matrix; ``whitened`` that of W S with S S^T the
            second moment of its inputs, which makes the error of the outputs smallest on the calibration tokens.
        ranks: for each expert that stays, in order, the ranks of gate, up and down; 0 leaves a matrix whole.
        base: what is factored is the difference to this shared matrix; None: the matrix itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: Literal["svd", "whitened"] = "svd"
    ranks: tuple[tuple[Rank, Rank, Rank], ...]
    base: SharedBase | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.base is not None and any(0 in ranks for ranks in self.ranks):
            raise ValueError("beside a base every matrix is stored as factors, so no rank is 0")
        return self

    @property
    def moments(self) -> frozenset[str]:
        """Statistics that the kernel reads while weights are written."""
        own = self.base.moments if self.base else frozenset()
        if self.kernel == "whitened":
            return own | {"input_gram", "channel_gram", "routed_tokens"}
        return own | ({"input_square", "channel_square"} if self.base and self.base.columns < 1.0 else frozenset())


class Bases(BaseModel):
    """Gate and up of each expert as A_i f(sum_j alpha_ij B_j), with ``count`` bases B_j [rank, D] that the layer shares.

    A_i is [F, rank], alpha_i a softmax over the bases. They are fitted to the weights by Adam, without tokens; down stays whole.

    Args:
        count: bases of gate, and as many of up.
        rank: rows of a base.
        activation: f.
        steps: steps of Adam.
        rate: its learning rate.
        seed: of the initial alphas.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Positive
    rank: Positive
    activation: Literal["silu", "tanh"] = "silu"
    steps: Positive = 2000
    rate: Annotated[float, Field(gt=0.0)] = 0.07
    seed: int = 0


class Sparsity(BaseModel):
    """Which weights of the routed experts become zero; the same rule for gate, up and down of every expert of a layer.

    Args:
        scope: whether the other linear layers become sparse by the same rule.
        share: zeros among the weights of each matrix; 0.5 for the n:m patterns.
        pattern: ``unstructured`` zeroes that share of every output row, ``2:4`` and ``4:8`` half of every four or eight
            successive inputs.
        kernel: what is zeroed: the smallest |w| (``magnitude``), the smallest |w| times the norm of its input over the
            expert's tokens (``wanda``), that norm with each token weighted by its gate (``moe_pruner``), or the least change of
            the output with the other weights adjusted (``sparsegpt``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: Scope = "experts"
    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    kernel: Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"] = "magnitude"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.pattern != "unstructured" and self.share != 0.5:
            raise ValueError(f"pattern {self.pattern!r} has a share of 0.5, found {self.share}")
        if self.scope == "all" and self.kernel == "moe_pruner":
            raise ValueError(
                "moe_pruner weighs tokens by the gates of experts, which other layers do not have; use wanda"
            )
        return self

    @property
    def moments(self) -> frozenset[str]:
        """Statistics that the kernel reads while weights are written."""
        return SPARSITY_MOMENTS[self.kernel] | (LINEAR_MOMENTS[self.kernel] if self.scope == "all" else frozenset())


SPARSITY_MOMENTS: Mapping[str, frozenset[str]] = {
    "magnitude": frozenset(),
    "wanda": frozenset({"input_square", "channel_square"}),
    "moe_pruner": frozenset({"gated_input_square", "gated_channel_square"}),
    "sparsegpt": frozenset({"input_gram", "channel_gram", "routed_tokens"}),
}
"""Statistics of the inputs of gate and up, and of down, for each kernel of ``Sparsity``."""


class Quantisation(BaseModel):
    """Weights of the routed experts as signed integers of few bits, with one scale for ``group`` successive inputs.

    Args:
        scope: whether the other linear layers are stored in as many bits.
        bits: 4 or 8.
        group: inputs that share a scale; it divides the inputs of every matrix.
        symmetric: whether an integer of 0 stands for a weight of 0; else each group has a zero point beside its scale.
        act_order: whether ``gptq`` takes inputs by falling mean square.
        kernel: ``rtn`` rounds to the nearest, ``gptq`` rounds one input after another and adjusts those after it, ``awq``
            rounds after scaling inputs, which the norm before the experts, the router, shared experts and the rows of up undo;
            in other linear layers, the norm before them or the rows of value and up.
        members: experts by which ``awq`` chooses the scale of the inputs that they share, as the stages before leave them; source
            indices, ascending. None: those that stay. Others are named where experts were selected afterwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: Scope = "experts"
    bits: Literal[4, 8] = 4
    group: Positive = 128
    symmetric: bool = True
    act_order: bool = False
    kernel: Literal["rtn", "gptq", "awq"] = "rtn"
    members: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.act_order and self.kernel != "gptq":
            raise ValueError(f"act_order is the order in which gptq takes inputs; {self.kernel} rounds all at once")
        if self.members is not None and self.kernel != "awq":
            raise ValueError(f"members choose a scale that {self.kernel} does not have; only awq has one")
        if self.members is not None and (not self.members or list(self.members) != sorted(set(self.members))):
            raise ValueError(f"members must be ascending and distinct, found {list(self.members)}")
        return self

    @property
    def moments(self) -> frozenset[str]:
        """Statistics that the kernel reads while weights are written."""
        return QUANTISATION_MOMENTS[self.kernel] | (LINEAR_MOMENTS[self.kernel] if self.scope == "all" else frozenset())


QUANTISATION_MOMENTS: Mapping[str, frozenset[str]] = {
    "rtn": frozenset(),
    "gptq": frozenset({"input_gram", "channel_gram", "routed_tokens"}),
    "awq": frozenset({"input_gram", "channel_gram", "input_magnitude", "channel_magnitude", "routed_tokens"}),
}
"""Statistics of the inputs of the experts' matrices for each kernel of ``Quantisation``."""

LINEAR_MOMENTS: Mapping[str, frozenset[str]] = {
    "magnitude": frozenset(),
    "wanda": frozenset({"attention_square", "network_square"}),
    "sparsegpt": frozenset({"attention_gram", "network_gram"}),
    "rtn": frozenset(),
    "gptq": frozenset({"attention_gram", "network_gram"}),
    "awq": frozenset({"attention_gram", "attention_magnitude", "network_gram", "network_magnitude"}),
}
"""Statistics of the inputs of the other linear layers for each kernel of ``Sparsity`` and ``Quantisation``."""
