"""Whether what a plan states about the inside of experts fits a layer, and which of it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from methods.framework.forms import parts, restricted
from methods.framework.inventory import EXPERT_ROLES, MLP_PREFIXES, ExpertForm, LayerInventory, Packing, TensorEntry
from methods.framework.linears import linears, unknown_readers

if TYPE_CHECKING:
    from methods.framework.inside import SharedBase
    from methods.framework.layer_plan import LayerPlan


def stays(plan: LayerPlan, layer: LayerInventory) -> tuple[int, ...]:
    """Return the experts of the source that stay, as indices."""
    return tuple(range(layer.experts)) if plan.experts is None else plan.experts


def matrix_shapes(layer: LayerInventory) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the shapes of a whole gate, up and down: (F, D), (F, D), (D, F)."""
    first = {entry.role: entry.shape for entry in layer.kinds[0].tensors}
    gate, up, down = ((first[role][0], first[role][1]) for role in EXPERT_ROLES)
    return gate, up, down


def normal_form(plan: LayerPlan, layer: LayerInventory) -> dict[str, Any]:
    """Return ``channels``, ``rank`` and ``bits`` of ``plan`` without what is true anyway."""
    channels, rank, bits = plan.channels, plan.rank, plan.bits
    if bits is not None and (bits.members == stays(plan, layer) or layer.mlp != "moe"):
        bits = bits.model_copy(update={"members": None})
    if channels is not None:
        width = matrix_shapes(layer)[0][0]
        channels = None if all(len(kept) == width for kept in channels) else channels
    if rank is not None and rank.base is None and not any(any(ranks) for ranks in rank.ranks):
        rank = None
    return {"channels": channels, "rank": rank, "bits": bits}


def form_of(plan: LayerPlan, layer: LayerInventory) -> ExpertForm | None:
    """Return how the experts that ``plan`` changes inside are stored; None: as whole matrices of the layer's own width."""
    if not plan.inside or layer.mlp != "moe":
        return None
    before = restricted(layer.form, plan.experts) or ExpertForm()
    base = plan.rank.base if plan.rank is not None else None
    bases = plan.bases
    form = ExpertForm(
        widths=before.widths if plan.channels is None else tuple(len(kept) for kept in plan.channels),
        ranks=None if plan.rank is None else plan.rank.ranks,
        base=None if base is None else _stored_columns(base, layer),
        bases=None if bases is None else (bases.count, bases.rank, bases.activation),
        bits=packing_of(plan),
    )
    return None if form == ExpertForm() else form


def packing_of(plan: LayerPlan) -> Packing | None:
    """Return how ``plan`` packs matrices in few bits; None where it leaves their type."""
    return None if plan.bits is None else Packing(plan.bits.bits, plan.bits.group, plan.bits.symmetric)


def linear_bits_of(plan: LayerPlan, layer: LayerInventory) -> Packing | None:
    """Return how the linear layers beside the experts are packed once ``plan`` is applied to ``layer``."""
    return packing_of(plan) if plan.bits is not None and plan.bits.scope == "all" else layer.linear_bits


def left_linears(plan: LayerPlan, layer: LayerInventory) -> tuple[TensorEntry, ...]:
    """Return the linear layers beside the experts that ``plan`` does not drop."""
    dropped = MLP_PREFIXES if plan.drop == "moe" else ()
    return tuple(entry for entry in linears(layer.tensors) if not entry.role.startswith(dropped))


def linear_misfit(plan: LayerPlan, layer: LayerInventory) -> str | None:
    """Return why ``plan`` cannot be applied to the linear layers of ``layer`` beside the routed experts, or None."""
    if layer.linear_bits is not None and (plan.inside or plan.linear):
        return "its linear layers are stored with few bits already; state this step before that one, in one recipe on the source"
    if not plan.linear:
        return None
    awq = plan.bits is not None and plan.bits.scope == "all" and plan.bits.kernel == "awq"
    if awq and (unknown := unknown_readers(layer)):
        return f"AWQ scales the inputs of all linear layers, and nobody knows which ones {unknown[0]} reads"
    for entry in left_linears(plan, layer):
        for what, size in _input_sizes(plan, everywhere=True):
            if entry.shape[1] % size:
                return f"{what} needs inputs in multiples of {size}, {entry.role} has {entry.shape[1]}"
    return None


def _stored_columns(base: SharedBase, layer: LayerInventory) -> tuple[int, int, int]:
    gate, up, down = (base.stored_columns(inputs) for _, inputs in matrix_shapes(layer))
    return gate, up, down


def has_whole_matrices(form: ExpertForm | None) -> bool:
    """Return whether experts of ``form`` are three whole matrices each, though their widths may differ."""
    return form is None or form == ExpertForm(widths=form.widths)


def inside_misfit(plan: LayerPlan, layer: LayerInventory) -> str | None:
    """Return why ``plan`` cannot be applied to the inside of the experts of ``layer``, or None."""
    if layer.form is not None and (reason := _stored_misfit(plan, layer.form)):
        return reason
    if not plan.inside:
        return None
    if plan.bits is not None and (stored := next((entry.stored for entry in layer.tensors if entry.stored), None)):
        return (
            f"it is stored as {stored.format} already, and one config cannot state two ways of quantising; put the experts "
            "of the 16-bit checkpoint in few bits"
        )
    kept = stays(plan, layer)
    shapes = matrix_shapes(layer)
    width = shapes[0][0]
    if plan.channels is not None:
        if len(plan.channels) != len(kept):
            return f"channels are stated for {len(plan.channels)} experts, {len(kept)} stay"
        if max(channels[-1] for channels in plan.channels) >= width:
            return f"channel {max(channels[-1] for channels in plan.channels)} does not exist; experts have {width}"
        if plan.bases is not None or (plan.rank is not None and plan.rank.base is not None):
            return "experts that share a base or bases need all of their channels"
    members = plan.bits.members if plan.bits is not None else None
    if members is not None and members[-1] >= layer.experts:
        return (
            f"expert {members[-1]}, by which AWQ is to choose its scale, does not exist; the layer has {layer.experts}"
        )
    return _rank_misfit(plan, layer, kept) or _input_misfit(plan, layer)


def _stored_misfit(plan: LayerPlan, form: ExpertForm) -> str | None:
    """Return why experts that are stored in ``form`` cannot become what ``plan`` says."""
    found = {"fewer channels": form.widths, "factors": form.ranks, "shared bases": form.bases, "few bits": form.bits}
    kind = " and ".join(name for name, value in found.items() if value is not None)
    if has_whole_matrices(form) and (plan.rank is not None or plan.bases is not None):
        return "its experts are of different widths, for which no method chooses ranks; factor experts that are whole"
    if plan.inside and (plan.channels is not None or not has_whole_matrices(form)):
        return (
            f"its experts are stored with {kind} already; state this step before that one, in one recipe on the source"
        )
    if plan.merges:
        return f"its experts are stored with {kind}, of which no average can be stored; merge first"
    if plan.experts is not None and (form.base is not None or form.bases is not None):
        return "its experts share a base, which was made for all of them; select experts first"
    return None


def _rank_misfit(plan: LayerPlan, layer: LayerInventory, kept: tuple[int, ...]) -> str | None:
    """Return why the experts cannot be factored as ``plan`` says, or None."""
    shapes = matrix_shapes(layer)
    if plan.bases is not None and plan.bases.rank > min(shapes[0]):
        return f"bases of rank {plan.bases.rank} exceed gate and up, which are {list(shapes[0])}"
    if plan.rank is None:
        return None
    if len(plan.rank.ranks) != len(kept):
        return f"ranks are stated for {len(plan.rank.ranks)} experts, {len(kept)} stay"
    if plan.rank.base is not None and (gone := set(plan.rank.base.members) - set(kept)):
        return f"the base is an average of experts that do not stay: {sorted(gone)}"
    for place, ranks in enumerate(plan.rank.ranks):
        channels = shapes[0][0] if plan.channels is None else len(plan.channels[place])
        for role, rank, shape in zip(EXPERT_ROLES, ranks, shapes, strict=True):
            most = min(channels, shape[1] if role != "expert.down" else shape[0])
            if rank > most:
                return f"rank {rank} of {role} of expert {kept[place]} exceeds its size, {most}"
    return None


def _input_misfit(plan: LayerPlan, layer: LayerInventory) -> str | None:
    """Return why patterns of zeros or groups of few bits cannot be laid over the inputs of the matrices, or None."""
    needs = _input_sizes(plan, everywhere=False)
    places = {expert: place for place, expert in enumerate(stays(plan, layer))}
    widths = ExpertForm(widths=None if plan.channels is None else tuple(len(kept) for kept in plan.channels))
    for entry in layer.with_role(*EXPERT_ROLES) if needs else ():
        if entry.expert not in places:
            continue
        (whole,) = parts(replace(entry, expert=places[entry.expert]), widths)
        inputs = whole.shape[1]
        for what, size in needs:
            if inputs % size:
                return f"{what} needs inputs in multiples of {size}, {entry.role} has {inputs}"
    return None


def _input_sizes(plan: LayerPlan, everywhere: bool) -> list[tuple[str, int]]:
    """Return what must divide the inputs of a matrix, and why.

    Args:
        plan: of the layer.
        everywhere: whether the matrix stands beside the experts, where only what has the scope of all linear layers counts.
    """
    needs: list[tuple[str, int]] = []
    sparsity, bits = plan.sparsity, plan.bits
    if sparsity is not None and sparsity.pattern != "unstructured" and not (everywhere and sparsity.scope != "all"):
        needs.append((f"pattern {sparsity.pattern}", int(sparsity.pattern.partition(":")[2])))
    if bits is not None and not (everywhere and bits.scope != "all"):
        needs += [(f"group size {bits.group}", bits.group), ("packing", 32 // bits.bits)]
    return needs
