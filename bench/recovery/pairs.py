"""The experts of a compressed model beside those of its source from which they came.

Letters: N tokens, K experts per token, P pairs of a token and a chosen expert, D hidden size, E experts of the student's
layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.weighed_inputs import ChosenExperts, chosen
from bench.recovery.placed import experts_module
from methods.framework.errors import RefusedError
from methods.framework.inventory import LayerInventory
from methods.framework.plan import Plan


@dataclass(frozen=True, eq=False)
class LayerPair:
    """One MoE layer of the student and the layer of the teacher from which it came.

    Args:
        student: module of the student's routed experts.
        teacher: module of the teacher's.
        places_R: for each router row of the student the expert that it leads to; numbers from E on are constants.
        student_rows_E: for each expert of the student a row that leads to it.
        teacher_rows_E: for each expert of the student a row of the teacher that leads to the expert that it came from.
        weighed: whether the modules take each token once for each expert, times the router's score of that.
    """

    student: nn.Module
    teacher: nn.Module
    places_R: Tensor
    student_rows_E: Tensor
    teacher_rows_E: Tensor
    weighed: bool = False

    def taken(self, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return what the student's experts take in, (N, D), and the router rows chosen, from what its module is called with."""
        if self.weighed:
            input_ND, rows_N1, _ = chosen(arguments[0].detach(), len(self.student_rows_E))
            return input_ND, rows_N1
        return arguments[0].detach(), arguments[1]

    def error(self, hidden_ND: Tensor, rows_NK: Tensor) -> Tensor:
        """Return the sum over experts of the mean squared difference of the two outputs on the expert's tokens.

        Args:
            hidden_ND: input of the experts; no gradient flows to it.
            rows_NK: router rows that the student chose for each token.
        """
        places_P = self.places_R[rows_NK.reshape(-1)]
        inputs_PD = hidden_ND.detach().repeat_interleave(rows_NK.shape[1], dim=0)
        experts = len(self.student_rows_E)
        stored_P = places_P < experts
        places_P, inputs_PD = places_P[stored_P], inputs_PD[stored_P]
        if not len(places_P):
            return hidden_ND.new_zeros(())
        with torch.no_grad():
            wanted_PD = self._outputs(self.teacher, inputs_PD, self.teacher_rows_E[places_P])
        found_PD = self._outputs(self.student, inputs_PD, self.student_rows_E[places_P])
        squares_P = (found_PD.float() - wanted_PD.float()).square().mean(dim=1)
        sums_E = squares_P.new_zeros(experts).index_add(0, places_P, squares_P)
        counts_E = torch.bincount(places_P, minlength=experts).clamp(min=1)
        return (sums_E / counts_E).sum()

    def _outputs(self, experts: nn.Module, inputs_PD: Tensor, rows_P: Tensor) -> Tensor:
        """Return the output of one expert for each input, not weighted: each input is a token with one choice of weight 1."""
        run = ChosenExperts(experts) if self.weighed else experts
        out: Tensor = run(inputs_PD, rows_P[:, None], inputs_PD.new_ones(len(inputs_PD), 1))
        return out


def layer_pairs(
    student: nn.Module,
    checkpoint: Checkpoint,
    teacher: nn.Module,
    source: Checkpoint,
    document: Mapping[str, Any] | None,
) -> list[LayerPair]:
    """Return the pairs of all MoE layers of the student whose experts are trained.

    Args:
        student: model of ``checkpoint``.
        checkpoint: the compressed checkpoint.
        teacher: model of ``source``.
        source: the checkpoint that it was made from.
        document: ``plan.json`` of ``checkpoint``; None where it has none, and then it must have the source's layers.

    Raises:
        RefusedError: the plan was made for another model than ``source``.
    """
    plan = Plan.identity(source.inventory) if document is None else Plan.loads(json.dumps(document))
    made_from = ((document or {}).get("provenance") or {}).get("source", {}).get("content", source.content)
    origins = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
    layers = checkpoint.inventory.layers
    if made_from != source.content or len(plan.layers) != len(source.inventory.layers) or len(origins) != len(layers):
        raise RefusedError(
            f"expert_kd pairs the experts of {checkpoint.name} with those that they came from, and by its plan.json it was "
            f"not made from {source.name}; give the checkpoint that it was made from as teacher"
        )
    device = next(student.parameters()).device
    pairs = []
    for number, origin in enumerate(origins):
        layer = layers[number]
        if layer.mlp != "moe":
            continue
        experts = student.get_submodule(experts_module(checkpoint, number))
        if not any(weight.requires_grad for weight in experts.parameters()):
            continue
        came_from = plan.layers[origin].experts or range(layer.experts)
        rows = _rows(source.inventory.layers[origin])
        pairs.append(
            LayerPair(
                student=experts,
                teacher=teacher.get_submodule(experts_module(source, origin)),
                places_R=torch.tensor(layer.expert_map or range(layer.experts), device=device),
                student_rows_E=torch.tensor(_rows(layer), device=device),
                teacher_rows_E=torch.tensor([rows[expert] for expert in came_from], device=device),
                weighed=source.inventory.router.weighs_inputs,
            )
        )
    return pairs


def _rows(layer: LayerInventory) -> Sequence[int]:
    """Return for each expert of a layer a router row that leads to it."""
    if layer.expert_map is None:
        return range(layer.experts)
    return [layer.expert_map.index(expert) for expert in range(layer.experts)]
