"""A router of a running transformers model that sees only some of its rows.

Letters: T tokens, E experts of the source layer, S router rows that stay, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.applying.resident_layer import ResidentLayer

Returned = Literal["logits", "weights", "experts", "scores"]
Forward = Callable[..., Any]


class _SlicedRouter:
    """Stands for a router module in its own ``forward``: rows of the removed experts are gone, the rest is delegated.

    The family's own routing code (softmax or sigmoid, groups, correction bias, scaling) thus sees what it would see in
    the written checkpoint. Rows are gathered at each call, so that the module keeps the only lasting copy.

    Args:
        router: the module, or one inside of it.
        rows: rows that stay, shape (S,).
        top_k: experts per token.
        per_expert: roles of its tensors that hold a row for each expert, by name; those of modules inside have dotted names.
        own: those of them that are computed instead of gathered.
    """

    def __init__(
        self, router: nn.Module, rows: Tensor, top_k: int, per_expert: Mapping[str, str], own: Mapping[str, Tensor]
    ) -> None:
        self._router = router
        self._rows = rows
        self._per_expert = per_expert
        self._own = own
        self.top_k = top_k
        self.num_experts = len(rows)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._router, name)
        if name in self._own:
            return self._own[name].to(value.device)
        if name in self._per_expert and value is not None:
            return of_rows(value, self._rows, self._per_expert[name])
        deeper = _inside(name, self._per_expert)
        return _SlicedRouter(value, self._rows, self.top_k, deeper, _inside(name, self._own)) if deeper else value

    @property  # type: ignore[misc]  # `super()` in the module's own code takes what says that it is of its class
    def __class__(self) -> type:
        return type(self._router)

    def __call__(self, *inputs: Any) -> Any:
        """Run a module that lies inside the router."""
        return type(self._router).forward(self, *inputs)


def of_rows(value: Tensor, rows: Tensor, role: str) -> Tensor:
    """Return some rows of a router's tensor.

    Args:
        value: a weight [E, D], or a bias [E] or [1, E].
        rows: which.
        role: of the tensor.
    """
    return value.index_select(0 if role == "router.weight" else -1, rows.to(value.device))


def _inside(module: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``named`` that lie in ``module``, by the names that they have there."""
    inside = f"{module}."
    return {name.removeprefix(inside): one for name, one in named.items() if name.startswith(inside)}


def let_choose(
    resident: ResidentLayer, router: nn.Module, rows: Tensor, top_k: int, own: Mapping[str, Tensor]
) -> Forward:
    """Return a forward of ``router`` that chooses among ``rows`` alone and answers in the numbering of the source.

    Args:
        resident: the layer.
        router: its module that chooses.
        rows: rows that stay, shape (S,).
        top_k: experts per token.
        own: tensors of the router that are computed instead of gathered: by attribute, or by role where they lie outside.
    """
    family, experts = resident.family, resident.layer.rows
    sliced = _SlicedRouter(router, rows, top_k, family.router_attributes(), own)
    arguments = [own.get(role) for role in family.router_arguments()]
    original: Forward = type(router).forward
    returned: Sequence[Returned] = family.file.router.returns

    def of_all(some_TS: Tensor, value: float = -torch.inf) -> Tensor:
        """Return what there is of each row that stays with a column for each row of the source; the others have ``value``."""
        all_TE = some_TS.new_full((*some_TS.shape[:-1], experts), value)
        all_TE[..., rows.to(some_TS.device)] = some_TS
        return all_TE

    if family.file.router.in_block:
        return lambda hidden_TD: of_all(original(sliced, hidden_TD))

    def forward(hidden_TD: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
        inputs = [_given(value, rows, own) for value, own in zip(given, arguments, strict=False)]
        found = dict(zip(returned, original(sliced, hidden_TD, *inputs), strict=True))
        # Consumers of router logits (`output_router_logits`) count experts by column.
        answer = {**found, "logits": of_all(found["logits"])}
        if "experts" in found:
            answer["experts"] = rows.to(found["experts"].device)[found["experts"]]
        if "scores" in found:
            answer["scores"] = of_all(found["scores"], 0.0)
        return tuple(answer[name] for name in returned)

    return forward


def _given(value_E: Tensor | None, rows: Tensor, own: Tensor | None) -> Tensor | None:
    """Return the rows of a tensor of all experts, or what stands for them; None where the model has none."""
    if value_E is None:
        return None
    return value_E[rows.to(value_E.device)] if own is None else own.to(value_E.device)
