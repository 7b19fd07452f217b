"""Run a plan on one resident transformers model without writing a checkpoint, and undo it exactly.

Letters: T tokens, E experts of the source layer, S router rows that stay, K experts per token, D hidden size, C constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.applying.computed import scaled
from bench.applying.layer_maker import LayerMaker, Read
from bench.applying.linear_maker import LinearMaker
from bench.applying.made_experts import MadeExperts
from bench.applying.moments import constants
from bench.applying.resident_biases import overwrite_biases
from bench.applying.resident_layer import ResidentLayer, nothing
from bench.applying.sliced_router import let_choose
from bench.applying.written_moments import check_moments
from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.experts.lazy import lazily
from bench.experts.mapped import SKIPS, ExpertMap
from bench.models.decoder import decoder_of
from methods.framework.errors import PlanError
from methods.framework.inventory import EXPERT_ROLES, Inventory, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import SCALED_ROLES, AveragedRows, averaged_rows, result
from methods.kernels.merging import ExpertMatrices, averaged, merged

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_FLAG = "_moebench_plan"


@contextmanager
def realised(
    model: PreTrainedModel,
    inventory: Inventory,
    plan: Plan,
    moments: Stats | None = None,
    made: MadeExperts | None = None,
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
        made: keeps experts that are changed inside from one plan of this model and these statistics to the next.

    Raises:
        PlanError: the plan does not fit the model, or another plan is realised on it at the moment.
        StatsError: the plan needs ``moments`` that are missing or of another model.
    """
    plan = plan.normalised(inventory)
    blocks = decoder_of(model).layers
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
            resident = ResidentLayer(model, inventory, index)
            _realise_layer(undo, resident, plan.layers[index], after[number].top_k, moments, made)
        if len(survivors) < len(blocks):
            _leave_out(undo, model, survivors)
        yield model


def _realise_layer(
    undo: ExitStack,
    resident: ResidentLayer,
    plan: LayerPlan,
    top_k: int,
    moments: Stats | None,
    made: MadeExperts | None,
) -> None:
    """Change the feed-forward sub-layer of one surviving block, after which each token is routed to ``top_k`` experts."""
    changes = resident.layer.mlp == "moe" and bool(plan.merges or plan.inside)
    beside = _linear_maker(resident, plan, moments) if plan.linear else None
    scale_D = _overwrite(undo, resident, plan, moments, made, beside) if changes else None
    if beside is not None:
        _overwrite_linears(undo, resident, beside)
    if plan.drop == "moe":
        _set(undo, resident.block, "forward", partial(nothing, resident.family.file.block_outputs))
    elif plan.experts is not None or plan.top_k is not None:
        _slice_router(undo, resident, plan, top_k, scale_D)
    if plan.expert_map is not None:
        _map(undo, resident, plan, moments)


def _slice_router(
    undo: ExitStack, resident: ResidentLayer, plan: LayerPlan, top_k: int, scale_D: Tensor | None
) -> None:
    """Let the router choose among the rows that stay; ``scale_D`` is what averages of them are scaled by."""
    layer, router = resident.layer, resident.router()
    rows = torch.tensor(
        plan.rows if plan.rows is not None else range(layer.rows), device=next(router.parameters()).device
    )
    own: dict[str, Tensor] = {}
    if plan.rows is not None and plan.router == "mean":
        own = _averages(resident, averaged_rows(plan.rows, plan.merges), scale_D)
    _set(undo, router, "forward", let_choose(resident, router, rows, top_k, own))
    if resident.family.file.router.in_block:
        _set(undo, resident.block, "top_k", top_k)


def _averages(resident: ResidentLayer, recipe: AveragedRows, scale_D: Tensor | None) -> dict[str, Tensor]:
    """Return the averaged per-expert attributes of a router, scaled and rounded as in the written checkpoint."""
    found: dict[str, Tensor] = {}
    for name, role in resident.family.router_attributes().items():
        for entry in resident.layer.with_role(role):
            value = resident.tensor(entry)
            mean = averaged(recipe, value.detach().reshape(entry.shape))
            if scale_D is not None and role in SCALED_ROLES:
                mean = scaled(mean, role, scale_D)
            found[name] = mean.to(resident.dtypes[role]).to(value.dtype)[(None,) * entry.unit_axes]
    for role in resident.family.router_arguments():
        for entry in resident.layer.with_role(role):
            value = resident.tensor(entry)
            found[role] = averaged(recipe, value.detach()).to(resident.dtypes[role]).to(value.dtype)
    return found


@torch.no_grad()
def _overwrite(
    undo: ExitStack,
    resident: ResidentLayer,
    plan: LayerPlan,
    moments: Stats | None,
    kept: MadeExperts | None,
    beside: LinearMaker | None,
) -> Tensor | None:
    """Write experts that are computed in their places, and register what stood there.

    Args:
        undo: takes what stood there.
        resident: the layer.
        plan: what becomes of it.
        moments: statistics of the model.
        kept: keeps experts from one plan to the next.
        beside: makes the linear layers beside the experts, if they change; they are written later.

    Returns:
        What their inputs are scaled by; None where they are not.
    """
    resident.check_experts()
    before: dict[int, ExpertMatrices] = {}  # places that are overwritten, since one expert may be made of others

    def read(expert: int) -> ExpertMatrices:
        return before[expert] if expert in before else resident.matrices(expert)

    maker = _maker(resident, plan, read, moments, beside) if plan.inside else None
    for expert, made in (
        _merged(resident, plan, read) if maker is None else _changed_inside(resident, plan, maker, kept)
    ):
        places = resident.matrices(expert)
        before[expert] = ExpertMatrices(*(place.clone() for place in places))
        for place, old, value in zip(places, before[expert], made, strict=True):
            undo.callback(_write, place, old)
            place.copy_(value)
    overwrite_biases(undo, resident, plan, read)
    if maker is None or plan.bits is None or plan.bits.kernel != "awq":
        return None
    # Averages of router rows are scaled where they are made, so that they are rounded once.
    averages = plan.rows is not None and plan.router == "mean"
    own = () if beside is None else beside.roles
    roles = [role for role in SCALED_ROLES if not (averages and role == "router.weight") and role not in own]
    if beside is not None:
        beside.know(maker.input_scale_D)
    _scale(undo, resident, roles, maker.input_scale_D)
    return maker.input_scale_D


def _merged(resident: ResidentLayer, plan: LayerPlan, read: Read) -> Iterator[tuple[int, ExpertMatrices]]:
    """Yield the experts of ``plan`` that are made of several, in the types of the checkpoint."""
    dtypes = [resident.dtypes[role] for role in EXPERT_ROLES]
    for merge in plan.merges:
        computed = merged(merge, lazily(read, merge.members))
        yield merge.into, ExpertMatrices(*(matrix.to(dtype) for matrix, dtype in zip(computed, dtypes, strict=True)))


def _changed_inside(
    resident: ResidentLayer, plan: LayerPlan, maker: LayerMaker, kept: MadeExperts | None
) -> Iterator[tuple[int, ExpertMatrices]]:
    """Yield every expert that stays as the matrices that what is stored of it stands for."""
    width = next(resident.layer.with_role("expert.gate")).shape[0]
    for place, expert in enumerate(range(resident.layer.experts) if plan.experts is None else plan.experts):
        make = partial(_whole, maker, expert, plan, place, width)
        yield expert, make() if kept is None else kept.made((resident.index, expert, *maker.decisive(expert)), make)


def _linear_maker(resident: ResidentLayer, plan: LayerPlan, moments: Stats | None) -> LinearMaker:
    """Return what computes the linear layers beside the experts of a layer."""

    def read(entry: TensorEntry) -> Tensor:
        return resident.tensor(entry).to(TORCH_DTYPES[entry.dtype])

    return LinearMaker(plan, resident.index, resident.inventory, read, moments)


@torch.no_grad()
def _overwrite_linears(undo: ExitStack, resident: ResidentLayer, maker: LinearMaker) -> None:
    """Write linear layers and what follows their scales in their places, and register what stood there."""
    values = [(resident.tensor(entry), maker.value(entry.role)) for entry in maker.changed]
    for place, value in values:
        undo.callback(_write, place, place.clone())
        _write(place, value)


def _maker(
    resident: ResidentLayer, plan: LayerPlan, read: Read, moments: Stats | None, beside: LinearMaker | None
) -> LayerMaker:
    """Return what computes the experts of a layer that are changed inside.

    Args:
        resident: the layer.
        plan: what becomes of it.
        read: gives experts of the source.
        moments: statistics of the model.
        beside: makes the linear layers beside the experts, if they change.
    """
    dtypes = [resident.dtypes[role] for role in EXPERT_ROLES]
    entry = next(resident.layer.with_role("norm.mlp"))
    # In its type on disk, since the scale of the inputs makes up for how the scaled norm is rounded there.
    norm_D = resident.tensor(entry).to(resident.dtypes["norm.mlp"])
    own = None if beside is None else lambda: beside
    return LayerMaker(plan, resident.index, resident.inventory, read, moments, dtypes, lambda: norm_D, own)


def _whole(maker: LayerMaker, expert: int, plan: LayerPlan, place: int, width: int) -> ExpertMatrices:
    return _widened(maker.whole(expert), plan, place, width)


def _widened(made: ExpertMatrices, plan: LayerPlan, place: int, width: int) -> ExpertMatrices:
    """Return an expert with zeros for the channels that ``plan`` cut, which then add nothing.

    Args:
        made: gate, up and down with the channels that stay.
        plan: of its layer.
        place: its place among the experts that stay.
        width: channels in the source, F.
    """
    if plan.channels is None:
        return made
    kept_F = torch.tensor(plan.channels[place], device=made.gate_FD.device)
    gate, up = (matrix.new_zeros(width, matrix.shape[1]).index_copy(0, kept_F, matrix) for matrix in made[:2])
    down = made.down_DF.new_zeros(made.down_DF.shape[0], width).index_copy(1, kept_F, made.down_DF)
    return ExpertMatrices(gate, up, down)


def _scale(undo: ExitStack, resident: ResidentLayer, roles: Sequence[str], scale_D: Tensor) -> None:
    """Scale the norm before the experts and everything else that reads it, as AWQ does; of these ``roles``."""
    for entry in resident.layer.with_role(*roles):
        weight = resident.tensor(entry)
        undo.callback(_write, weight, weight.clone())
        weight.copy_(scaled(weight, entry.role, scale_D).to(resident.dtypes[entry.role]))


@torch.no_grad()
def _write(place: Tensor, value: Tensor) -> None:
    place.copy_(value)


def _map(undo: ExitStack, resident: ResidentLayer, plan: LayerPlan, moments: Stats | None) -> None:
    """Lead the rows that the router chose, in the numbering of the source, to the experts or constants of ``plan``."""
    assert plan.experts is not None and plan.rows is not None and plan.expert_map is not None
    experts, stays = resident.layer.experts, len(plan.experts)
    places = list(range(experts))
    for row, place in zip(plan.rows, plan.expert_map, strict=True):
        places[row] = plan.experts[place] if place < stays else experts + place - stays
    mapped = ExpertMap(places, experts)
    module = resident.experts
    original: Callable[..., Tensor] = type(module).forward
    vectors_CD = _vectors(resident, plan, moments) if plan.constants else None

    def forward(hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return mapped(lambda *inputs: original(module, *inputs), hidden_TD, index_TK, weights_TK, vectors_CD)

    if vectors_CD is not None:
        _set(undo, module, SKIPS, True)
    _set(undo, module, "forward", forward)


def _vectors(resident: ResidentLayer, plan: LayerPlan, moments: Stats | None) -> Tensor:
    """Return the constants of a layer, rounded as in the written checkpoint, in the type of the model, shape (C, D)."""
    values_CD = torch.from_numpy(constants(moments, resident.inventory, resident.index, plan.constants))
    return values_CD.to(resident.dtypes["router.weight"]).to(resident.matrices(0).down_DF)


def _leave_out(undo: ExitStack, model: PreTrainedModel, survivors: list[int]) -> None:
    """Leave only the blocks ``survivors`` in the stack, with consecutive numbers and a config to match."""
    stack = decoder_of(model)
    blocks = list(stack.layers)
    _set(undo, stack, "layers", torch.nn.ModuleList(blocks[index] for index in survivors))
    for number, index in enumerate(survivors):
        for module in blocks[index].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                _set(undo, module, "layer_idx", number)
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
