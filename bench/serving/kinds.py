"""Kinds of compression that vLLM is asked to serve: an example plan of each, and the kinds that a plan consists of."""

from __future__ import annotations

from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result

KINDS = {
    "base": "nothing compressed",
    "counts": "expert counts and top-k differ between layers",
    "sublayer": "a MoE sub-layer dropped",
    "block": "a decoder layer dropped, counts differ",
    "merged": "experts and router rows averaged",
    "mapped": "several router rows lead to one expert",
    "constants": "experts replaced by vectors, beside merged ones",
    "channels": "experts of unequal widths",
    "factored": "experts as factors of unequal ranks, some matrices whole",
    "shared_base": "experts as factors beside a base that they share",
    "bases": "gate and up as mixtures of shared bases",
    "packed4": "experts in 4 bits, all layers alike",
    "packed8": "experts in 8 bits, all layers alike",
    "packed_counts": "experts in 4 and 8 bits, counts differ",
    "packed_channels": "experts of unequal widths in 4 bits",
    "mapped_factored": "several router rows lead to one expert, as factors; vectors",
    "sparse24": "two of four successive weights are zero",
}
"""Kinds of compression that are tried, and what the checkpoint holds then."""

GROUP = 16
"""Inputs that share a scale in the examples, whose matrices are small."""


def compression(checkpoint: Checkpoint, kind: str) -> Plan:
    """Return a plan of ``kind`` for a tiny model of 8 experts, whose MoE layers then differ from each other.

    Kinds of few bits or zeros alone leave all layers alike, as stock classes need them.
    """
    inventory = checkpoint.inventory
    first, *_, last = moe = inventory.moe_layers
    layers = [LayerPlan() for _ in inventory.layers]
    # With router groups, each group of four consecutive experts keeps as many rows as the other.
    few, many = LayerPlan(experts=(1, 2, 5, 6)), LayerPlan(experts=(0, 2, 3, 4, 5, 7))
    mapped = (
        Merge(into=0, members=(0, 3, 6), weights=(0.5, 0.3, 0.2)),
        Merge(into=2, members=(1, 2), weights=(0.25, 0.75), kernel="aligned"),
    )
    everyone = LayerPlan(
        experts=(3,), merges=(Merge(into=3, members=tuple(range(8)), weights=(0.125,) * 8),), router="map"
    )
    match kind:
        case "counts":
            for index in moe:
                layers[index] = many if index == last else few
            if checkpoint.inventory.router.score != "sparsemixer":  # which always takes two
                layers[first] = few.model_copy(update={"top_k": 1})
        case "sublayer":
            layers[first] = LayerPlan(drop="moe")
        case "block":
            layers[first], layers[last] = LayerPlan(drop="block"), few
        case "merged":
            pairs = (
                Merge(into=1, members=(1, 3), weights=(0.5, 0.5)),
                Merge(into=5, members=(4, 5), weights=(0.9, 0.1)),
            )
            layers[last] = LayerPlan(experts=(0, 1, 2, 5, 6, 7), merges=pairs, router="mean")
        case "mapped":
            layers[first] = everyone
            layers[last] = LayerPlan(experts=(0, 2, 4, 5, 7), merges=mapped, router="map")
        case "constants":
            layers[first] = LayerPlan(experts=(0, 2, 4, 5, 7), merges=mapped[:1], constants=(1,), router="map")
            layers[last] = LayerPlan(experts=(0, 2, 7), constants=(1, 3, 4, 5, 6), router="map")
        case "channels":
            layers[first] = LayerPlan(channels=_channels(8, step=1))
            layers[last] = few.model_copy(update={"channels": _channels(4, step=1)})
        case "factored":
            layers[first] = LayerPlan(rank=LowRank(ranks=tuple((e + 2, 0, 9 - e) for e in range(8))))
            layers[last] = few.model_copy(
                update={"rank": LowRank(ranks=((12, 5, 0), (0, 0, 0), (1, 32, 7), (4, 4, 4)))}
            )
        case "shared_base":
            whole = SharedBase(members=tuple(range(8)), weights=(0.125,) * 8)
            part = SharedBase(members=(1, 2, 5), weights=(0.5, 0.3, 0.2), columns=0.5)
            layers[first] = LayerPlan(rank=LowRank(ranks=tuple((e + 1, 3, 8 - e) for e in range(8)), base=whole))
            layers[last] = few.model_copy(update={"rank": LowRank(ranks=((6, 5, 4),) * 4, base=part)})
        case "bases":
            layers[first] = LayerPlan(bases=Bases(count=3, rank=16, steps=50))
            layers[last] = few.model_copy(update={"bases": Bases(count=2, rank=8, activation="tanh", steps=50)})
        case "packed4" | "packed8":
            for index in moe:
                layers[index] = LayerPlan(bits=Quantisation(bits=8 if kind == "packed8" else 4, group=GROUP))
        case "packed_counts":
            layers[first] = many.model_copy(update={"bits": Quantisation(bits=8, group=2 * GROUP)})
            layers[last] = few.model_copy(update={"bits": Quantisation(bits=4, group=GROUP)})
        case "packed_channels":
            layers[first] = LayerPlan(channels=_channels(8, step=8), bits=Quantisation(group=8))
            layers[last] = many.model_copy(update={"channels": _channels(6, step=16), "bits": Quantisation(group=16)})
        case "mapped_factored":
            layers[first] = everyone.model_copy(update={"rank": LowRank(ranks=((20, 20, 0),))})
            vectors = LayerPlan(experts=(0, 2, 4, 5, 7), merges=mapped[:1], constants=(1,), router="map")
            layers[last] = vectors.model_copy(update={"rank": LowRank(ranks=((9, 8, 7),) * 5)})
        case "sparse24":
            for index in moe:
                layers[index] = LayerPlan(sparsity=Sparsity(share=0.5, pattern="2:4"))
    return Plan.of(inventory, layers)


def _channels(experts: int, step: int, width: int = 32) -> tuple[tuple[int, ...], ...]:
    """Return channels that stay, in multiples of ``step``, some experts keeping half and some nearly all."""
    choices = width // step // 2
    return tuple(tuple(range(e % step, e % step + step * (choices + e % choices))) for e in range(experts))


def kinds_of(plan: Plan, inventory: Inventory) -> tuple[str, ...]:
    """Return the kinds that ``plan`` consists of, in the order of ``KINDS``; ``base`` where it changes nothing."""
    plan = plan.normalised(inventory)
    made = [layer for layer in result(plan, inventory).layers if layer.mlp == "moe"]
    found = {"block" for layer in plan.layers if layer.drop == "block"}
    found |= {"sublayer" for layer in plan.layers if layer.drop == "moe"}
    if len({(layer.rows, layer.top_k) for layer in made}) > 1:
        found.add("counts")
    for layer in plan.layers:
        found |= {"merged"} if layer.merges and layer.router != "map" else set()
        found |= {"sparse24"} if layer.sparsity is not None else set()
    for stored in made:
        found |= _kinds_of_layer(stored)
    linears = (layer.linear_bits for layer in result(plan, inventory).layers)
    found |= {f"packed{packing.bits}" for packing in linears if packing is not None}
    return tuple(kind for kind in KINDS if kind in found) or ("base",)


def _kinds_of_layer(layer: LayerInventory) -> set[str]:
    """Return the kinds that the experts of a layer of the result are stored in."""
    form = layer.form
    found = {"mapped"} if layer.expert_map is not None else set()
    found |= {"constants"} if layer.constants else set()
    if form is None:
        return found
    stated = {
        "channels": form.widths is not None,
        "factored": form.ranks is not None and form.base is None,
        "shared_base": form.base is not None,
        "bases": form.bases is not None,
        "packed4": form.bits is not None and form.bits.bits == 4,
        "packed8": form.bits is not None and form.bits.bits == 8,
    }
    return found | {kind for kind, true in stated.items() if true}
