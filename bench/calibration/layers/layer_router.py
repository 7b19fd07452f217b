"""The router of one decoder layer as a plan leaves it: which experts a token uses, and with what weights.

Shape letters: N tokens, R router rows, K experts per token, D hidden size, C constants, X experts and constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.layers.weights import WeightReader
from methods.framework.errors import StatsError
from methods.framework.inventory import CONSTANT_ROLE, ROUTER_ROLES, LayerInventory, Router
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Array
from methods.framework.transfer import averaged_rows
from methods.kernels.merging import averaged
from methods.kernels.routing import Routing, route


class Decision(NamedTuple):
    """What the router decides for some tokens.

    Args:
        logits_NR: router logits.
        routing: scores, weights and indices by router row.
        indices_NK: the experts that the rows lead to; a place that repeats an expert holds ``LayerRouter.nothing``.
        weights_NK: factors on their outputs, those of rows that lead to one expert added up.
    """

    logits_NR: Tensor
    routing: Routing
    indices_NK: Tensor
    weights_NK: Tensor


@dataclass(frozen=True, slots=True)
class LayerRouter:
    """Router rows, and where they lead.

    Args:
        semantics: of the family.
        top_k: rows per token.
        weight_RD, bias_R, correction_R: its tensors, in at least float32.
        places_R: for each row the expert that it leads to, constants after the experts; None: row e leads to expert e.
        experts: experts that are stored.
        constants_CD: vectors that stand for experts.
    """

    semantics: Router
    top_k: int
    weight_RD: Tensor
    bias_R: Tensor | None
    correction_R: Tensor | None
    places_R: Tensor | None
    experts: int
    constants_CD: Tensor | None

    @classmethod
    def read(
        cls, weights: WeightReader, layer: LayerInventory, semantics: Router, plan: LayerPlan, means_ED: Array | None
    ) -> LayerRouter:
        """Return the router of ``layer`` as ``plan`` leaves it.

        Args:
            weights: reader of the checkpoint.
            layer: what the checkpoint holds for the layer.
            semantics: of the family.
            plan: what becomes of the layer.
            means_ED: mean outputs of the layer's experts, for a plan with constants.

        Raises:
            StatsError: the plan puts constants in place of experts, whose means were not measured.
        """
        parts = {role: _rows(weights, layer, role, plan) for role in ROUTER_ROLES}
        weight_RD = parts["router.weight"]
        assert weight_RD is not None
        mapped = layer.expert_map if plan.experts is None else plan.expert_map
        experts = layer.experts if plan.experts is None else len(plan.experts)
        return cls(
            semantics,
            plan.top_k or min(layer.top_k, len(weight_RD)),
            weight_RD,
            parts["router.bias"],
            parts["router.correction"],
            None if mapped is None else torch.tensor(mapped, device=weight_RD.device),
            experts,
            _constants(weights, layer, plan, means_ED),
        )

    @property
    def nothing(self) -> int:
        """Index of a place that leads nowhere."""
        return self.experts + (0 if self.constants_CD is None else len(self.constants_CD))

    @property
    def targets(self) -> int:
        """Values that an index can take: experts, constants and, behind a map, ``nothing``."""
        return self.nothing + (self.places_R is not None)

    def __call__(self, x_ND: Tensor) -> Decision:
        """Decide for the tokens of ``x_ND``."""
        logits_NR = F.linear(x_ND.to(self.weight_RD.dtype), self.weight_RD, self.bias_R)
        routing = route(logits_NR, self.semantics, self.top_k, self.correction_R)
        if self.places_R is None:
            return Decision(logits_NR, routing, routing.indices_TK, routing.weights_TK)
        places_NK = self.places_R[routing.indices_TK]
        total_NX = routing.weights_TK.new_zeros(len(x_ND), self.targets).scatter_add_(1, places_NK, routing.weights_TK)
        again_NK = (places_NK.unsqueeze(2) == places_NK.unsqueeze(1)).tril(-1).any(dim=2)
        weights_NK = total_NX.gather(1, places_NK).masked_fill_(again_NK, 0.0)
        return Decision(logits_NR, routing, places_NK.masked_fill(again_NK, self.nothing), weights_NK)


def _rows(weights: WeightReader, layer: LayerInventory, role: str, plan: LayerPlan) -> Tensor | None:
    """Return the rows of a router tensor that ``plan`` leaves, or None where the family has no such tensor."""
    entry = next(layer.with_role(role), None)
    if entry is None:
        return None
    all_R = weights.read_exact(role, entry)
    if plan.rows is None:
        return all_R
    if plan.router == "mean":
        return weights.as_stored(averaged(averaged_rows(plan.rows, plan.merges), all_R), entry)
    return all_R[list(plan.rows)]


def _constants(weights: WeightReader, layer: LayerInventory, plan: LayerPlan, means_ED: Array | None) -> Tensor | None:
    """Return the constant vectors of the layer, or None where it has none."""
    if plan.experts is None:
        stored = next(layer.with_role(CONSTANT_ROLE), None)
        return None if stored is None else weights.read_new(stored)
    if not plan.constants:
        return None
    if means_ED is None:
        raise StatsError(
            "the plan replaces experts by their mean outputs, which were not measured; measure 'routed_output_mean' too"
        )
    entry = next(layer.with_role("router.weight"))
    return weights.as_stored(torch.from_numpy(means_ED[list(plan.constants)]), entry)
