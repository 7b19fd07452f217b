"""Run a plan on one resident transformers model without writing a checkpoint, and undo it exactly.

Letters: T tokens, E experts of the source layer, S router rows that stay, K experts per token, D hidden size, C constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bench.applying.computed import scaled
from bench.applying.layer_maker import LayerMaker
from bench.applying.moments import check_moments, constants
from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.experts.lazy import lazily
from bench.experts.mapped import SKIPS, ExpertMap
from methods.framework.errors import PlanError
from methods.framework.inventory import EXPERT_ROLES, ROUTER_ROLES, Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import SCALED_ROLES, AveragedRows, averaged_rows, result
from methods.kernels.merging import ExpertMatrices, averaged, merged

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_FLAG = "_moebench_plan"
_PER_EXPERT = dict(zip(("weight", "bias", "e_score_correction_bias"), ROUTER_ROLES, strict=True))
"""Attributes of a router module whose first axis is the expert, with their roles."""


class _SlicedRouter:
    """Stands for a router module in its own ``forward``: rows of the removed experts are gone, the rest is delegated.

    The family's own routing code (softmax or sigmoid, groups, correction bias, scaling) thus sees what it would see in
    the written checkpoint. Rows are gathered at each call, so that the module keeps the only lasting copy; ``own`` holds
    attributes that are computed instead of gathered.
    """

    def __init__(self, router: nn.Module, rows: Tensor, top_k: int, own: dict[str, Tensor]) -> None:
        self._router = router
        self._rows = rows
        self._own = own
        self.top_k = top_k
        self.num_experts = len(rows)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._router, name)
        if name in self._own:
            return self._own[name].to(value.device)
        return value[self._rows.to(value.device)] if name in _PER_EXPERT and value is not None else value


@contextmanager
def realised(
    model: PreTrainedModel, inventory: Inventory, plan: Plan, moments: Stats | None = None
) -> Iterator[PreTrainedModel]:
    """Make ``model`` compute what the checkpoint of ``plan`` computes, for the length of a ``with`` block.

    Routers score only the rows that stay (or their averages), dropped MoE sub-layers add zero, dropped blocks are left out
    and the others renumbered (the KV cache is addressed by layer number). An expert that is merged or changed inside overwrites
    the one in whose place it stands, of which a copy is kept (so these take the memory of the experts twice): factors as
    their product, few bits as what they stand for, channels that are cut as zeros. Tensors that AWQ scales are overwritten
    too; no other parameter is copied or modified, and on leaving, also by an exception, the model is as before, bit for bit.
    Inside, ``model.state_dict()`` lacks dropped blocks and keeps removed experts: ``bench.applying.apply`` writes checkpoints.

    Args:
        model: the uncompressed model, on any device.
        inventory: its inventory.
        plan: what to realise, in the coordinates of ``inventory``.
        moments: statistics of the model named in ``plan.moments``; needed for constants and for sparsity by inputs.

    Raises:
        PlanError: the plan does not fit the model, or another plan is realised on it at the moment.
        StatsError: the plan needs ``moments`` that are missing or of another model.
    """
    plan = plan.normalised(inventory)
    blocks = model.base_model.layers
    if hasattr(model, _FLAG):
        raise PlanError("another plan is realised on this model; leave its `with` block first (plans do not nest)")
    if len(blocks) != len(inventory.layers):
        raise PlanError(f"the inventory has {len(inventory.layers)} layers, the resident model {len(blocks)}")
    check_moments(plan, inventory, moments)  # tells what is missing before anything is changed
    after = result(plan, inventory).layers
    with ExitStack() as undo:
        _set(undo, model, _FLAG, plan.digest)
        survivors = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
        for number, index in enumerate(survivors):
            layer, layer_plan = inventory.layers[index], plan.layers[index]
            scale_D = None
            if layer_plan.merges or layer_plan.inside:
                scale_D = _overwrite(undo, blocks[index], layer_plan, index, inventory, moments)
            _realise_layer(undo, blocks[index], layer_plan, layer, after[number].top_k, scale_D)
            if layer_plan.expert_map is not None:
                values = None
                if layer_plan.constants:
                    dtype = _dtypes(layer)["router.weight"]
                    values_CD = constants(moments, inventory, index, layer_plan.constants)
                    values = torch.from_numpy(values_CD).to(dtype)
                _map(undo, blocks[index].mlp, layer_plan, layer.experts, values)
        if len(survivors) < len(blocks):
            _leave_out(undo, model, survivors)
        yield model


def _realise_layer(
    undo: ExitStack, block: nn.Module, plan: LayerPlan, layer: LayerInventory, top_k: int, scale_D: Tensor | None
) -> None:
    """Change the feed-forward sub-layer of one surviving block; ``scale_D`` is what averages of router rows are scaled by."""
    if plan.drop == "moe":
        _set(undo, block.mlp, "forward", torch.zeros_like)
        return
    if plan.experts is None and plan.top_k is None:
        return
    router = getattr(block.mlp, "gate", None)
    weight = getattr(router, "weight", None)
    if router is None or weight is None or not hasattr(router, "top_k") or weight.shape[0] != layer.rows:
        raise PlanError(
            f"cannot realise a plan on {type(block.mlp).__name__}: expected a router `gate` with `top_k` and a weight "
            f"of {layer.rows} rows, as transformers 5.19 has it; write the checkpoint with `moebench apply` instead"
        )
    rows = torch.tensor(plan.rows if plan.rows is not None else range(layer.rows), device=weight.device)
    own: dict[str, Tensor] = {}
    if plan.rows is not None and plan.router == "mean":
        own = _averages(router, averaged_rows(plan.rows, plan.merges), layer, scale_D)
    _set(undo, router, "forward", _sliced_forward(router, rows, layer.rows, top_k, own))


def _averages(
    router: nn.Module, recipe: AveragedRows, layer: LayerInventory, scale_D: Tensor | None
) -> dict[str, Tensor]:
    """Return the averaged per-expert attributes of a router, scaled and rounded as in the written checkpoint."""
    dtypes = _dtypes(layer)
    found = {}
    for name, role in _PER_EXPERT.items():
        if (value := getattr(router, name, None)) is not None:
            mean = averaged(recipe, value.detach())
            if scale_D is not None and role in SCALED_ROLES:
                mean = scaled(mean, role, scale_D)
            found[name] = mean.to(dtypes[role]).to(value.dtype)
    return found


def _sliced_forward(
    router: nn.Module, rows: Tensor, experts: int, top_k: int, own: dict[str, Tensor]
) -> Callable[[Tensor], Any]:
    """Return a forward that routes among ``rows`` only and answers in the numbering of the source."""
    sliced = _SlicedRouter(router, rows, top_k, own)
    original: Callable[..., tuple[Tensor, Tensor, Tensor]] = type(router).forward

    def forward(hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TS, weights_TK, chosen_TK = original(sliced, hidden_TD)
        here = rows.to(chosen_TK.device)
        # Consumers of router logits (`output_router_logits`) count experts by column, so removed ones stay as -inf.
        logits_TE = logits_TS.new_full((logits_TS.shape[0], experts), float("-inf"))
        logits_TE[:, here] = logits_TS
        return logits_TE, weights_TK, here[chosen_TK]

    return forward


def _dtypes(layer: LayerInventory) -> dict[str, torch.dtype]:
    """Return the dtype on disk by role, to which computed tensors are rounded before they take the model's."""
    return {entry.role: TORCH_DTYPES[entry.dtype] for entry in layer.tensors}


@torch.no_grad()
def _overwrite(
    undo: ExitStack, block: nn.Module, plan: LayerPlan, index: int, inventory: Inventory, moments: Stats | None
) -> Tensor | None:
    """Write experts of decoder layer ``index`` that are computed in their places, and register what stood there.

    Returns:
        What their inputs are scaled by; None where they are not.
    """
    layer, experts = inventory.layers[index], block.get_submodule("mlp.experts")
    gate_up = getattr(experts, "gate_up_proj", None)
    down = getattr(experts, "down_proj", None)
    if gate_up is None or down is None or gate_up.shape[0] != layer.experts:
        raise PlanError(
            f"cannot change experts in {type(experts).__name__}: expected `gate_up_proj` and `down_proj` of {layer.experts} "
            "experts, as transformers 5.19 has it; write the checkpoint with `moebench apply` instead"
        )
    # Places that were overwritten already, since one expert may be made of others.
    before: dict[int, ExpertMatrices] = {}

    def read(expert: int) -> ExpertMatrices:
        if expert in before:
            return before[expert]
        gate, up = gate_up[expert].chunk(2)
        return ExpertMatrices(gate, up, down[expert])

    dtypes = [_dtypes(layer)[role] for role in EXPERT_ROLES]
    merges = {merge.into: merge for merge in plan.merges}
    maker = None
    if plan.inside:
        # In its type on disk, since the scale of the inputs makes up for how the scaled norm is rounded there.
        norm = block.get_parameter("post_attention_layernorm.weight").to(_dtypes(layer)["norm.mlp"])
        maker = LayerMaker(plan, index, inventory, read, moments, dtypes, lambda: norm)
    kept = range(layer.experts) if plan.experts is None else plan.experts
    for expert in kept if plan.inside else merges:
        if maker is not None:
            made = _widened(maker.whole(expert), plan, list(kept).index(expert), down.shape[2])
        else:
            merge = merges[expert]
            computed = merged(merge, lazily(read, merge.members))
            made = ExpertMatrices(*(matrix.to(dtype) for matrix, dtype in zip(computed, dtypes, strict=True)))
        saved = (gate_up[expert].clone(), down[expert].clone())
        old_gate, old_up = saved[0].chunk(2)
        before[expert] = ExpertMatrices(old_gate, old_up, saved[1])
        gate, up, below = (matrix.to(gate_up.dtype) for matrix in made)
        values = (torch.cat([gate, up]), below)
        for place, old, value in zip((gate_up[expert], down[expert]), saved, values, strict=True):
            undo.callback(_write, place, old)
            place.copy_(value)
    if maker is None or plan.bits is None or plan.bits.kernel != "awq":
        return None
    # Averages of router rows are scaled where they are made, so that they are rounded once.
    averages = plan.rows is not None and plan.router == "mean"
    roles = [role for role in SCALED_ROLES if not (averages and role == "router.weight")]
    _scale(undo, block, layer, roles, maker.input_scale_D)
    return maker.input_scale_D


def _widened(made: ExpertMatrices, plan: LayerPlan, place: int, width: int) -> ExpertMatrices:
    """Return an expert with zeros for the channels that ``plan`` cut, which then add nothing."""
    if plan.channels is None:
        return made
    kept_F = torch.tensor(plan.channels[place], device=made.gate_FD.device)
    gate, up = (matrix.new_zeros(width, matrix.shape[1]).index_copy(0, kept_F, matrix) for matrix in made[:2])
    down = made.down_DF.new_zeros(made.down_DF.shape[0], width).index_copy(1, kept_F, made.down_DF)
    return ExpertMatrices(gate, up, down)


def _scale(undo: ExitStack, block: nn.Module, layer: LayerInventory, roles: Sequence[str], scale_D: Tensor) -> None:
    """Scale the norm before the experts and everything else that reads it, as AWQ does; of these ``roles``."""
    dtypes = _dtypes(layer)
    for role in roles:
        if role not in dtypes:
            continue
        weight = next(found for name in _SCALED[role] if (found := _parameter(block, name)) is not None)
        undo.callback(_write, weight, weight.clone())
        weight.copy_(scaled(weight, role, scale_D).to(dtypes[role]))


_SCALED = {
    "norm.mlp": ("post_attention_layernorm.weight",),
    "router.weight": ("mlp.gate.weight",),
    "shared.gate": ("mlp.shared_experts.gate_proj.weight", "mlp.shared_expert.gate_proj.weight"),
    "shared.up": ("mlp.shared_experts.up_proj.weight", "mlp.shared_expert.up_proj.weight"),
    "shared.scalar_gate": ("mlp.shared_expert_gate.weight",),
}
"""Names that transformers gives, inside a decoder layer, to what a scale of the experts' inputs reaches."""


def _parameter(block: nn.Module, name: str) -> Tensor | None:
    try:
        return block.get_parameter(name)
    except AttributeError:
        return None


@torch.no_grad()
def _write(place: Tensor, value: Tensor) -> None:
    place.copy_(value)


def _map(undo: ExitStack, mlp: nn.Module, plan: LayerPlan, experts: int, constants_CD: Tensor | None) -> None:
    """Lead the rows that the router chose, in the numbering of the source, to the experts or constants of ``plan``."""
    assert plan.experts is not None and plan.rows is not None and plan.expert_map is not None
    stays = len(plan.experts)
    places = list(range(experts))
    for row, place in zip(plan.rows, plan.expert_map, strict=True):
        places[row] = plan.experts[place] if place < stays else experts + place - stays
    mapped = ExpertMap(places, experts)
    module: Any = mlp.experts
    original: Callable[..., Tensor] = type(module).forward
    vectors_CD = None if constants_CD is None else constants_CD.to(module.down_proj)

    def forward(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return mapped(lambda *inputs: original(module, *inputs), hidden_TD, index_TK, weights_TK, vectors_CD)

    if vectors_CD is not None:
        _set(undo, module, SKIPS, True)
    _set(undo, module, "forward", forward)


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
