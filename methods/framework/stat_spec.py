"""What a statistic is: name, shape, scope, cost class, formula and unit.

Letters: E routed experts, A gate powers, N norm powers, B boundaries between decoder layers (L + 1), M the three matrices,
D hidden size, F expert width, R = min(D, F), S sampled tokens, P and Q inputs of all linear layers of an attention and entries of
their Gram matrices, U and V those of the networks that every token passes (``methods.framework.linears``). Experts of unequal
width count as padded with channels of zeros to the widest of their layer.
Notation: g_j(x) weight that multiplies expert j's output (0 unless chosen), f_j(x) that output, T_j the tokens routed to j,
z(x) router logits, a the input of down, w_c column c of W_down. *Sampled* tokens are evenly spaced over the corpus, in its
order, and every expert runs on each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from methods.framework.linears import sites

if TYPE_CHECKING:
    from methods.framework.inventory import LayerInventory

GATE_POWERS = (0, 1, 2)
NORM_POWERS = (0, 1, 2)
LETTERS = frozenset("EANMBDFRSPQUV")
"""Axes that a statistic may have."""

Array = NDArray[np.float64]

Scope = Literal["moe", "block", "attention", "network", "model"]

Cost = Literal["weights", "routed", "sampled", "boundary", "gradient"]


@dataclass(frozen=True, slots=True)
class StatSpec:
    """Definition of a statistic.

    Args:
        name: by which methods ask for it.
        dims: axis letters of its shape.
        scope: measured for each ``moe`` layer, for each decoder layer (``block``), for each that has an ``attention`` or a
            ``network`` with linear layers beside the experts, or once for the ``model``.
        cost: ``weights`` needs no tokens, ``routed`` runs experts on their routed tokens only, ``sampled`` runs all experts
            on the sampled tokens, ``boundary`` keeps hidden states, ``gradient`` runs the whole resident model forward and
            backward on one window after another, always the model that is measured, whatever the propagation.
        definition: formula in words.
        unit: unit of its values.
        of_rows: defined where every expert has a router row of its own, and refused elsewhere.
        of_whole_experts: a sum over all channels of an expert, from which that of channels that were cut cannot be taken.
        on_disk: float32 in a file of its own, handed out as a memory map.
        of_networks: also defined for the dense sub-layers of a model without routed experts.
        compares_tokens: looks at how outputs vary over ``cka_tokens`` of the sampled tokens, so it needs two or more.
    """

    name: str
    dims: tuple[str, ...]
    scope: Scope
    cost: Cost
    definition: str
    unit: str
    of_rows: bool = False
    of_whole_experts: bool = False
    on_disk: bool = False
    compares_tokens: bool = False
    of_networks: bool = False

    def defined_in(self, layer: LayerInventory) -> bool:
        """Return whether it has a value for a decoder layer; what is measured once for the model has none."""
        if self.scope == "moe":
            return layer.droppable if self.of_networks else layer.mlp == "moe"
        if self.scope in ("attention", "network"):
            return bool(sites(layer, "attention" if self.scope == "attention" else "network"))
        return self.scope == "block"
