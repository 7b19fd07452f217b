"""Routed experts behind a map: several router rows lead to one expert, or a row leads to a constant vector.

Letters: T tokens, K experts per token, E experts of the module, C constants, D hidden size, R router rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Tensor]


class ExpertMap:
    """Runs the family's own experts module on mapped indices, and adds what the constants contribute.

    Rows of one token that lead to the same expert contribute once each, with their own weights.

    Args:
        places: for each router row 0 to ``experts`` - 1 for an expert, ``experts`` + c for constant c, shape (R,).
        experts: experts that the module holds.
    """

    def __init__(self, places: Sequence[int], experts: int) -> None:
        """Keep the table; it goes to a device when it is first needed there."""
        self.experts = experts
        self.constants = max(max(places) + 1 - experts, 0)
        self._places = torch.tensor(places, device="cpu")
        self._on_device: dict[torch.device, Tensor] = {}

    def __call__(
        self, stock: Forward, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor, constants_CD: Tensor | None
    ) -> Tensor:
        """Return the weighted sum over each token's rows, shape (T, D).

        Args:
            stock: forward of the experts module, which must skip the index ``experts`` (see ``skip_constants``).
            hidden_TD: input of the experts.
            index_TK: rows that the router chose.
            weights_TK: their weights.
            constants_CD: vectors that stand for experts; None where there are none.
        """
        places_TK = self._table(index_TK.device)[index_TK]
        out_TD = stock(hidden_TD, places_TK.clamp(max=self.experts), weights_TK)
        if constants_CD is None:
            return out_TD
        vectors_CD = constants_CD.to(device=weights_TK.device, dtype=weights_TK.dtype)
        # One more column takes what belongs to experts.
        weights_TC = weights_TK.new_zeros(weights_TK.shape[0], self.constants + 1)
        column_TK = (places_TK - self.experts).where(places_TK >= self.experts, self.constants)
        weights_TC = weights_TC.scatter_add(1, column_TK, weights_TK)[:, :-1]
        return out_TD + (weights_TC @ vectors_CD).to(out_TD.dtype)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self._places.to(device)
        return self._on_device[device]


SKIPS = "_is_expert_parallel"
"""Flag by which transformers' kernels skip the expert index E, as they must where a row leads to a constant."""


def put_behind_map(experts: nn.Module, block: nn.Module, places: Sequence[int], constants: int, hidden: int) -> None:
    """Put an experts module of transformers behind a map.

    Args:
        experts: stock module that holds the experts which are stored; it becomes a subclass of its own class.
        block: the MoE block around it, with a router of R rows; gets the parameter ``constant_experts`` where there are
            constants.
        places: see ``ExpertMap``.
        constants: number of constants.
        hidden: elements of a constant, D.
    """
    stock: Any = type(experts)
    experts.__class__ = _mapped_class(stock)
    fields = vars(experts)  # written past nn.Module, which would make the block a child of its own child
    fields["_block"], fields["_map"] = block, ExpertMap(places, len(set(places)) - constants)
    if constants:
        setattr(experts, SKIPS, True)
        block.register_parameter("constant_experts", nn.Parameter(torch.empty(constants, hidden)))


@cache
def _mapped_class(stock: Any) -> type[nn.Module]:
    """Return a subclass of an experts class whose forward takes router rows instead of experts."""
    inner: Forward = stock.forward

    def forward(self: Any, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        def run(*inputs: Tensor) -> Tensor:
            return inner(self, *inputs)

        mapped: ExpertMap = self._map
        return mapped(run, hidden_TD, index_TK, weights_TK, getattr(self._block, "constant_experts", None))

    return type("Mapped" + stock.__name__, (stock,), {"forward": forward})
