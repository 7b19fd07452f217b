"""Run a plan on one resident transformers model without writing a checkpoint, and undo it exactly.

Letters: T tokens, E experts of the source layer, S experts that stay, K experts per token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from methods.errors import PlanError
from methods.inventory import Inventory
from methods.plan import LayerPlan, Plan
from methods.transfer import result

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

REALISATION = "in memory: sliced router, skipped sub-layers and blocks"
"""What a record's ``realisation`` field says about a plan that was run this way."""

_FLAG = "_moebench_plan"
_PER_EXPERT = ("weight", "bias", "e_score_correction_bias")


class _SlicedRouter:
    """Stands for a router module in its own ``forward``: rows of the removed experts are gone, the rest is delegated.

    The family's own routing code (softmax or sigmoid, groups, correction bias, scaling) thus sees what it would see in
    the written checkpoint. Rows are gathered at each call, so that the module keeps the only lasting copy.
    """

    def __init__(self, router: nn.Module, rows: Tensor, top_k: int) -> None:
        self._router = router
        self._rows = rows
        self.top_k = top_k
        self.num_experts = len(rows)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._router, name)
        return value[self._rows.to(value.device)] if name in _PER_EXPERT and value is not None else value


@contextmanager
def realised(model: PreTrainedModel, inventory: Inventory, plan: Plan) -> Iterator[PreTrainedModel]:
    """Make ``model`` compute what the checkpoint of ``plan`` computes, for the length of a ``with`` block.

    Routers score only the experts that stay, dropped MoE sub-layers add zero, dropped blocks are left out and the
    others renumbered (the KV cache is addressed by layer number). No parameter is copied or modified; on leaving, also
    by an exception, the model is as before. Inside, ``model.state_dict()`` lacks dropped blocks and keeps removed
    experts: to write a checkpoint use ``bench.apply``.

    Args:
        model: the uncompressed model, on any device.
        inventory: its inventory.
        plan: what to realise, in the coordinates of ``inventory``.

    Raises:
        PlanError: the plan does not fit the model, or another plan is realised on it at the moment.
    """
    plan = plan.normalised(inventory)
    blocks = model.base_model.layers
    if hasattr(model, _FLAG):
        raise PlanError("another plan is realised on this model; leave its `with` block first (plans do not nest)")
    if len(blocks) != len(inventory.layers):
        raise PlanError(f"the inventory has {len(inventory.layers)} layers, the resident model {len(blocks)}")
    after = result(plan, inventory).layers
    with ExitStack() as undo:
        _set(undo, model, _FLAG, plan.digest)
        survivors = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
        for number, index in enumerate(survivors):
            _realise_layer(
                undo, blocks[index], plan.layers[index], inventory.layers[index].experts, after[number].top_k
            )
        if len(survivors) < len(blocks):
            _leave_out(undo, model, survivors)
        yield model


def _realise_layer(undo: ExitStack, block: nn.Module, plan: LayerPlan, experts: int, top_k: int) -> None:
    """Change the feed-forward sub-layer of one surviving block."""
    if plan.drop == "moe":
        _set(undo, block.mlp, "forward", torch.zeros_like)
        return
    if plan.experts is None and plan.top_k is None:
        return
    router = getattr(block.mlp, "gate", None)
    weight = getattr(router, "weight", None)
    if router is None or weight is None or not hasattr(router, "top_k") or weight.shape[0] != experts:
        raise PlanError(
            f"cannot realise a plan on {type(block.mlp).__name__}: expected a router `gate` with `top_k` and a weight "
            f"of {experts} rows, as transformers 5.19 has it; write the checkpoint with `moebench apply` instead"
        )
    rows = torch.tensor(plan.experts if plan.experts is not None else range(experts), device=weight.device)
    _set(undo, router, "forward", _sliced_forward(router, rows, experts, top_k))


def _sliced_forward(router: nn.Module, rows: Tensor, experts: int, top_k: int) -> Callable[[Tensor], Any]:
    """Return a forward that routes among ``rows`` only and answers in the numbering of the source."""
    sliced = _SlicedRouter(router, rows, top_k)
    original: Callable[..., tuple[Tensor, Tensor, Tensor]] = type(router).forward

    def forward(hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TS, weights_TK, chosen_TK = original(sliced, hidden_TD)
        here = rows.to(chosen_TK.device)
        # Consumers of router logits (`output_router_logits`) count experts by column, so removed ones stay as -inf.
        logits_TE = logits_TS.new_full((logits_TS.shape[0], experts), float("-inf"))
        logits_TE[:, here] = logits_TS
        return logits_TE, weights_TK, here[chosen_TK]

    return forward


def _leave_out(undo: ExitStack, model: PreTrainedModel, survivors: list[int]) -> None:
    """Leave only the blocks ``survivors`` in the stack, with consecutive numbers and a config to match."""
    stack = model.base_model
    blocks = list(stack.layers)
    _set(undo, stack, "layers", torch.nn.ModuleList(blocks[index] for index in survivors))
    for number, index in enumerate(survivors):
        _set(undo, blocks[index].self_attn, "layer_idx", number)
    for config in {id(config): config for config in (model.config, stack.config)}.values():
        # Written past the config's own setters, which check the list of layer types against the number of layers.
        fields = vars(config)
        types = fields.get("layer_types")
        _set_key(undo, fields, "num_hidden_layers", len(survivors))
        if types is not None:
            _set_key(undo, fields, "layer_types", [types[index] for index in survivors])


def _set(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute and register its restoration: the old value, or its absence from the instance."""
    missing = object()
    old = owner._modules.get(name, missing) if isinstance(value, torch.nn.Module) else vars(owner).get(name, missing)
    undo.callback(delattr, owner, name) if old is missing else undo.callback(setattr, owner, name, old)
    setattr(owner, name, value)


def _set_key(undo: ExitStack, fields: dict[str, Any], key: str, value: Any) -> None:
    undo.callback(fields.__setitem__, key, fields[key])
    fields[key] = value
