"""Every matrix of the routed experts as the product of two factors: all experts stay, and ranks say what each may cost.

The statistics decide the ranks; the factors are found where the experts are written (``methods.kernels.low_rank``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import depth_shares
from methods.framework.errors import RefusedError
from methods.framework.inside import LowRank
from methods.framework.inside_fit import matrix_shapes
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Array, Stats
from methods.kernels.ranks import Integers, importance_ranks, spectrum_ranks, uniform_ranks
from methods.moe_i2 import MoEI2


def all_stays(keep: float | tuple[float, ...]) -> bool:
    """Return whether ``keep`` changes nothing in any layer."""
    return all(share == 1.0 for share in (keep if isinstance(keep, tuple) else (keep,)))


def expert_shapes(layer: LayerInventory) -> Integers:
    """Return outputs and inputs of gate, up and down of each expert, shape (E, 3, 2)."""
    return np.tile(np.asarray(matrix_shapes(layer), dtype=np.int64), (layer.experts, 1, 1))


class Factoring(Method):
    """Matrices of the routed experts become factors; ``keep`` is the share of the experts' parameters that remains.

    A matrix is left whole where factors would not be smaller. With one number for ``keep`` the ranks of the whole model
    share one budget, with depth knots each layer has its own. What is stored is short of the budget by less than one
    rank of one matrix (of one in each layer, with knots); see ``methods.kernels.ranks``.

    Rules for the ranks: ``uniform`` stores the same share of every matrix; what is left over, less than a rank of each, goes to
    the first layers, and where tokens are counted anyway to the experts with most of them. ``importance`` gives the matrices of
    expert j of layer i, which has M_i experts, r_ij = floor((I_ij + eps)^alpha / sum_j (I_ij + eps)^alpha * R_a * M_i); R_a meets
    the budget. ``spectrum`` keeps the most energy: the largest sigma^2 per parameter in all layers.
    """

    stages: ClassVar[frozenset[str]] = frozenset({"rank"})
    kernel: ClassVar[Literal["svd", "whitened"]]
    spectra: ClassVar[str]

    ranks: Literal["uniform", "importance", "spectrum"]
    alpha: float = Field(default=0.15, ge=0.0, le=2.0, description="power of the importance, where ranks follow it")
    importance: Literal["removal_loss", "frequency", "reap"] = Field(
        default="removal_loss", description="I_ij: change of the output without expert j, its tokens, or its REAP score"
    )

    @property
    def needs(self) -> frozenset[str]:
        """What the rule for the ranks reads."""
        if self.ranks == "uniform":
            return frozenset({"routed_tokens"}) if self.kernel == "whitened" else frozenset()
        if self.ranks == "spectrum":
            return frozenset({self.spectra})
        return frozenset({"removal_loss" if self.importance == "removal_loss" else "gate_norm_moment"})

    @property
    def moments(self) -> frozenset[str]:
        """Moments of the inputs of the experts' matrices, where the kernel reads them; none where all stays whole."""
        return frozenset() if all_stays(self.keep) else LowRank(kernel=self.kernel, ranks=((1, 1, 1),)).moments

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Share the budget out, over the whole model or in each layer, and state the ranks."""
        moe = inventory.moe_layers
        shapes = {layer: expert_shapes(inventory.layers[layer]) for layer in moe}
        shares = depth_shares(self.keep, len(moe))
        scopes = [moe] if isinstance(self.keep, float) else [(layer,) for layer in moe]
        found: dict[int, Integers] = {}
        for scope in scopes:
            budget = sum(shares[moe.index(layer)] * int(shapes[layer].prod(axis=-1).sum()) for layer in scope)
            try:
                ranks = self.ranks_of(scope, stats, [shapes[layer] for layer in scope], budget)
            except RefusedError as error:
                where = "" if len(scopes) == 1 else f", layer {scope[0]}"
                raise RefusedError(f"{self.name}, keep={self.keep}{where}: {error}") from error
            found |= dict(zip(scope, ranks, strict=True))
        return [self._stated(found.get(layer)) for layer in range(len(inventory.layers))]

    def ranks_of(
        self, layers: Sequence[int], stats: Stats, shapes: Sequence[Integers], budget: float
    ) -> list[Integers]:
        """Return the ranks of gate, up and down of each expert, (E, 3) for each layer.

        Args:
            layers: indices of the layers that share the budget.
            stats: what the rule for the ranks reads.
            shapes: rows and columns of the matrices, (E, 3, 2) for each layer.
            budget: parameters of all matrices together.

        Raises:
            RefusedError: the budget is below rank 1 in every matrix.
        """
        if self.ranks == "uniform" and self.kernel == "whitened":
            return _busiest_first([stats.layer("routed_tokens", layer) for layer in layers], shapes, budget)
        if self.ranks == "uniform":
            return uniform_ranks(shapes, budget)
        if self.ranks == "spectrum":
            return spectrum_ranks([stats.layer(self.spectra, layer) for layer in layers], shapes, budget)
        importance: list[Array] = [
            MoEI2(importance=self.importance).expert_importance(stats, layer) for layer in layers
        ]
        return importance_ranks(importance, self.alpha, shapes, budget)

    def _stated(self, ranks_E3: Integers | None) -> LayerPlan:
        """Return the plan of a layer, which states nothing where all matrices stay whole."""
        if ranks_E3 is None or not ranks_E3.any():
            return LayerPlan()
        ranks = tuple((int(gate), int(up), int(down)) for gate, up, down in ranks_E3)
        return LayerPlan(rank=LowRank(kernel=self.kernel, ranks=ranks))


def _busiest_first(tokens: Sequence[Array], shapes: Sequence[Integers], budget: float) -> list[Integers]:
    """Return equal ranks, with what is left over for the experts of most tokens, whatever their numbers."""
    orders = [np.argsort(-tokens_E, kind="stable") for tokens_E in tokens]
    ranks = uniform_ranks([group[order] for group, order in zip(shapes, orders, strict=True)], budget)
    return [ranks_E3[np.argsort(order)] for ranks_E3, order in zip(ranks, orders, strict=True)]


class SVD(Factoring):
    """Truncated singular value decomposition of every matrix, with ranks by the importance of its expert.

    *Source*: arXiv 2411.01016 (MoE-I²), section 3.3, intra-expert decomposition; alpha = 0.15 is theirs. Its first stage is
    ``moe_i2``, after which this one follows in a recipe.

    *Differs*: R_a is found from the budget, which the paper does not describe. Importance is the loss of removing the expert,
    as in its first stage; some summaries read frequency (``importance``). An expert of importance 0 has rank 1. Shared
    experts are never factored, of which the paper says nothing that we know. No LoRA follows.
    """

    name: ClassVar[str] = "svd"
    title: ClassVar[str] = "SVD (MoE-I² intra-expert)"
    source: ClassVar[str] = "arXiv 2411.01016, stage two"
    kernel: ClassVar[Literal["svd", "whitened"]] = "svd"
    spectra: ClassVar[str] = "weight_spectrum"

    ranks: Literal["uniform", "importance", "spectrum"] = Field(
        default="importance", description="how ranks share the budget: equal, by importance of experts, by energy"
    )


class WhitenedSVD(Factoring):
    """Truncation that makes the error of each matrix's outputs smallest on the tokens of its expert, with equal ranks.

    *Source*: SVD-LLM, arXiv 2403.07378, truncation-aware data whitening; inside experts, arXiv 2502.17298.

    *Differs*: inputs are those of the uncompressed model in all layers. Ranks by ``spectrum`` are ours: one threshold on the
    squared singular values of W S per parameter serves all experts and layers, instead of one ratio. Their energy is a mean
    over each expert's own tokens, so it does not grow with how often the expert is chosen.
    """

    name: ClassVar[str] = "whitened_svd"
    title: ClassVar[str] = "Whitened SVD"
    source: ClassVar[str] = "arXiv 2403.07378"
    kernel: ClassVar[Literal["svd", "whitened"]] = "whitened"
    spectra: ClassVar[str] = "whitened_spectrum"

    ranks: Literal["uniform", "importance", "spectrum"] = Field(
        default="uniform", description="how ranks share the budget: equal, by importance of experts, by energy"
    )
