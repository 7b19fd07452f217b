"""Plans that change experts inside, one for each form in which experts are stored, for tiny models of every family."""

from __future__ import annotations

from typing import Any

from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan

PAIR = Merge(into=1, members=(1, 2), weights=(0.5, 0.5))
WIDTHS = (1, 8, 16, 24, 32, 2, 3, 4)
CHANNELS = tuple(tuple(range(32 - width, 32)) for width in WIDTHS)
PACKABLE = tuple(tuple(range(width)) for width in (8, 16, 24, 32) * 2)
EVERYONE = tuple(range(8))
EVENLY = (0.125,) * 8


def base(columns: float = 1.0) -> SharedBase:
    return SharedBase(members=EVERYONE, weights=EVENLY, columns=columns)


FORMS: dict[str, LayerPlan] = {
    "channels": LayerPlan(channels=CHANNELS),
    "factors": LayerPlan(rank=LowRank(ranks=((5, 6, 7), (0, 6, 0)) * 4)),
    "channels and factors": LayerPlan(channels=CHANNELS, rank=LowRank(ranks=((1, 0, 1),) * 8)),
    "base": LayerPlan(rank=LowRank(ranks=((5, 6, 7),) * 8, base=base())),
    "columns of a base": LayerPlan(rank=LowRank(ranks=((5, 6, 7),) * 8, base=base(0.4))),
    "base by entry": LayerPlan(
        rank=LowRank(ranks=((5, 6, 7),) * 8, base=SharedBase(members=EVERYONE, kernel="fisher"))
    ),
    "bases": LayerPlan(bases=Bases(count=3, rank=9, steps=20)),
    "4 bits": LayerPlan(bits=Quantisation(bits=4, group=8)),
    "8 bits": LayerPlan(bits=Quantisation(bits=8, group=16, kernel="gptq")),
    "scaled inputs": LayerPlan(bits=Quantisation(bits=4, group=32, kernel="awq")),
    "channels in 4 bits": LayerPlan(channels=PACKABLE, bits=Quantisation(bits=4, group=8)),
    "sparse in 4 bits": LayerPlan(sparsity=Sparsity(share=0.5), bits=Quantisation(bits=4, group=8)),
}


SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "some": {"experts": (1, 2, 5, 6)},
    "merged": {"experts": (0, 1, 4, 5), "merges": (PAIR,), "router": "mean"},
    "mapped": {"experts": (0, 1, 4, 5), "merges": (PAIR,), "constants": (7,), "router": "map"},
}


def fitting(form: str, selection: dict[str, Any]) -> LayerPlan:
    """Return the plan of ``form`` for the experts that ``selection`` leaves."""
    plan = FORMS[form]
    kept = selection.get("experts", EVERYONE)
    inside: dict[str, Any] = {name: getattr(plan, name) for name in ("bases", "sparsity", "bits")}
    if plan.channels is not None:
        inside["channels"] = tuple(plan.channels[expert] for expert in kept)
    if plan.rank is not None:
        own = plan.rank.base
        if own is not None:
            weights = () if own.kernel == "fisher" else (1 / len(kept),) * len(kept)
            own = SharedBase(members=kept, kernel=own.kernel, weights=weights, columns=own.columns)
        ranks = tuple(plan.rank.ranks[expert] for expert in kept)
        inside["rank"] = plan.rank.model_copy(update={"ranks": ranks, "base": own})
    return LayerPlan(**selection, **inside)


def everywhere(inventory: Inventory, layer: LayerPlan) -> Plan:
    return Plan.of(inventory, [layer if old.mlp == "moe" else LayerPlan() for old in inventory.layers])
