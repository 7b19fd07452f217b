"""Laws about decisions: they need shapes and statistics only. Each function raises AssertionError with what it saw."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.laws.cases import Case, cases
from bench.laws.cases import case as case_of
from methods.framework.cost import cost, cost_of, zeros
from methods.framework.errors import RefusedError, StatsError
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.knob_space import draw
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import slimmed
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats, by_expert
from methods.framework.transfer import result

KEEPS = (0.25, 0.5, 0.75, 1.0)


def case_for(cls: type[Method], family: str) -> Case:
    """Return the case of ``family`` on which ``cls`` is tried."""
    return case_of(family, experts=cls.law_experts)


def tried(cls: type[Method], **knobs: Any) -> Method:
    """Return ``cls`` with its settings for the laws, and ``knobs`` on top."""
    return cls.configured({**cls.law_knobs, **knobs})


@cache
def planned(cls: type[Method], case: Case) -> Plan:
    """Return the plan of ``cls`` that most laws look at; it is decided once."""
    return decide(tried(cls), case)


def purity(cls: type[Method], case: Case) -> None:
    """The same question has the same answer, twice, and leaves the global random state alone."""
    state = _global_random_state()
    first = decide(tried(cls), case)
    again = decide(tried(cls), case)
    assert first.digest == again.digest, f"digest {first.digest[:8]} became {again.digest[:8]}"
    assert _global_random_state() == state, "the global random state was touched"


def decide(method: Method, case: Case, inventory: Inventory | None = None, stats: Stats | None = None) -> Plan:
    """Return the plan of ``method``, with a synthetic probe where it asks for one.

    Args:
        method: a configured method.
        case: an architecture with synthetic statistics for everything in the catalogue.
        inventory: the model to decide for, instead of the case's.
        stats: statistics of that model, instead of the case's.

    Raises:
        RefusedError: the method does not apply.
    """
    inventory = case.inventory if inventory is None else inventory
    stats = case.stats if stats is None else stats
    probe = None
    if method.probing:
        from bench.laws.synthetic_probe import SyntheticProbe

        probed = (
            stats if "token_gram" in stats.values else case.stats
        )  # a probe answers whatever a method's `needs` are
        probe = SyntheticProbe(inventory, probed)
    return method.plan(inventory, stats, probe)


def _global_random_state() -> str:
    """Return the state of numpy's, Python's and torch's global generators, to be compared."""
    legacy: Any = np.random.get_state(legacy=False)
    words = (legacy["state"]["key"].tobytes(), legacy["state"]["pos"], random.getstate(), torch.get_rng_state().numpy())
    return repr([word.tobytes() if isinstance(word, np.ndarray) else word for word in words])


def json_round_trip(cls: type[Method], case: Case) -> None:
    """A plan survives JSON byte for byte."""
    plan = planned(cls, case)
    read = Plan.loads(plan.dumps())
    assert read == plan, "the plan that is read is another"
    assert read.dumps() == plan.dumps(), "it is written otherwise the second time"


def validity(cls: type[Method], case: Case) -> None:
    """The plan is a normal form that fits the model it was made for."""
    plan = planned(cls, case)
    assert plan.normalised(case.inventory) == plan, "not in normal form"


def applies(cls: type[Method], case: Case) -> None:
    """Raise the refusal where the method does not apply to this model; laws that try several settings ask this first.

    Raises:
        RefusedError: with the reason.
    """
    if (reason := tried(cls).refuse(case.inventory)) is not None:
        raise RefusedError(reason)


def budget(cls: type[Method], case: Case) -> None:
    """What is asked to remain remains, within one unit, and a larger ``keep`` never gives a smaller model, zeros not counted."""
    applies(cls, case)
    previous = reached = 0
    for keep in KEEPS:
        try:
            plan = decide(tried(cls, keep=keep), case)
        except RefusedError as error:
            assert str(error) and keep < 1.0, f"keep={keep} is refused"
            continue
        reached += 1
        asked, found, unit = _remaining(plan, case.inventory, keep)
        assert abs(asked - found) <= unit, f"keep={keep}: {asked:.1f} should remain, {found} do (unit {unit})"
        after = cost(plan, case.inventory)
        size = after.bytes if "bits" in cls.stages else after.parameters - zeros(plan, case.inventory)
        size = after.active_parameters if _routes_to_fewer(plan) else size
        assert size >= previous, f"keep={keep} gives a smaller model than the keep before it"
        previous = size
    if reached < 2:
        raise RefusedError(f"only {reached} of the keeps {KEEPS} can be reached on this model")


def _remaining(plan: Plan, inventory: Inventory, keep: float) -> tuple[float, int, int]:
    """Return units asked for, units that remain, and the size of one unit, by the stage that the plan uses."""
    if "blocks" in plan.stages:
        return keep * len(inventory.layers), sum(layer.drop != "block" for layer in plan.layers), 1
    if "sublayers" in plan.stages:
        moe = inventory.moe_layers
        return keep * len(moe), sum(plan.layers[index].drop == "none" for index in moe), 1
    if not plan.stages:
        return 1.0, 1, 0 if keep == 1.0 else 1
    if _routes_to_fewer(plan):
        moe = inventory.moe_layers
        numbers = sum(inventory.layers[index].top_k for index in moe)
        return keep * numbers, sum(plan.layers[index].top_k or inventory.layers[index].top_k for index in moe), 1
    if plan.stages == {"sparsity"}:
        scopes = {layer.sparsity.scope for layer in plan.layers if layer.sparsity is not None}
        matrices = [entry for layer in inventory.layers for entry in slimmed(layer, *scopes)]
        weights = sum(entry.numel for entry in matrices)
        rows = sum(entry.shape[0] for entry in matrices)  # each row rounds on its own
        return keep * weights, weights - zeros(plan, inventory), rows
    if plan.stages == {"channels"}:
        after = cost(plan, inventory)
        return keep * cost_of(inventory).channels, after.channels, 1
    if plan.stages == {"rank"}:
        before, after = cost_of(inventory), cost(plan, inventory)
        return keep * before.routed_parameters, after.routed_parameters, _rank_unit(plan, inventory)
    if plan.stages == {"bits"}:
        held = {16 * keep, *(float(layer.bits.bits) for layer in plan.layers if layer.bits is not None)}
        return 16 * keep, int(max(held)), 0
    return keep * inventory.num_experts, result(plan, inventory).num_experts, inventory.router.groups


def _routes_to_fewer(plan: Plan) -> bool:
    """Return whether all experts stay and tokens are routed to fewer of them, which no other method does."""
    return plan.stages == {"experts"} and all(layer.experts is None for layer in plan.layers)


def _rank_unit(plan: Plan, inventory: Inventory) -> int:
    """Return the parameters by which one more rank (of all experts at once where they share bases or a base) changes a model."""
    sizes = [sum(entry.shape) for layer in inventory.layers for entry in layer.with_role(*EXPERT_ROLES)]
    shares = any(layer.bases is not None or (layer.rank is not None and layer.rank.base) for layer in plan.layers)
    if not shares:
        return max(sizes)
    bases = sum(layer.bases.rank * inventory.hidden * 2 for layer in plan.layers if layer.bases is not None)
    return sum(sizes) + bases


def neutral_identity(cls: type[Method], case: Case) -> None:
    """The neutral setting is the identity."""
    plan = decide(cls.neutral(), case)
    assert plan == Plan.identity(case.inventory), f"the neutral setting changes {sorted(plan.stages)}"
    assert cost(plan, case.inventory) == cost_of(case.inventory)


def relabelling(cls: type[Method], case: Case) -> None:
    """Relabelling experts (within their group) relabels the plan."""
    if not cls.equivariant:
        raise RefusedError("the method draws by index and says so (equivariant = False)")
    rng = np.random.default_rng(7)
    permutations = {}
    for index in case.inventory.moe_layers:
        experts, groups = case.inventory.layers[index].experts, case.inventory.router.groups
        size = experts // groups
        permutations[index] = np.concatenate([group * size + rng.permutation(size) for group in range(groups)])
    relabelled = {
        name: tuple(
            by_expert(name, value, permutations[index].tolist())
            if value is not None and index in permutations
            else value
            for index, value in enumerate(values)
        )
        for name, values in case.stats.values.items()
    }
    before = planned(cls, case)
    after = decide(tried(cls), case, stats=Stats(relabelled, case.stats.tokens))
    for index, (old, new) in enumerate(zip(before.layers, after.layers, strict=True)):
        mapped = _relabelled(new, permutations[index]) if index in permutations else new
        assert _close(mapped, old), f"layer {index}: {old} became {mapped}"


def _relabelled(plan: LayerPlan, label: NDArray[np.int64]) -> LayerPlan:
    """Return ``plan`` with expert e called ``label[e]``."""
    merges = []
    for merge in plan.merges:
        pairs = sorted((int(label[m]), w) for m, w in zip(merge.members, merge.weights, strict=True))
        members, weights = zip(*pairs, strict=True)
        merges.append(merge.model_copy(update={"into": int(label[merge.into]), "members": members, "weights": weights}))
    if plan.drop != "none":
        return plan
    return LayerPlan(
        experts=None if plan.experts is None else tuple(sorted(int(label[e]) for e in plan.experts)),
        merges=tuple(sorted(merges, key=lambda merge: merge.into)),
        constants=tuple(sorted(int(label[e]) for e in plan.constants)),
        router=plan.router,
        top_k=plan.top_k,
        **_relabelled_inside(plan, label),
    )


def _relabelled_inside(plan: LayerPlan, label: NDArray[np.int64]) -> dict[str, Any]:
    """Return what ``plan`` states about the inside of experts, with expert e called ``label[e]``."""
    kept = range(len(label)) if plan.experts is None else plan.experts
    order = np.argsort([label[expert] for expert in kept])
    channels, rank = plan.channels, plan.rank
    if rank is not None:
        base = rank.base
        if base is not None:
            called = [int(label[member]) for member in base.members]
            weights = tuple(base.weights[place] for place in np.argsort(called)) if base.weights else ()
            base = base.model_copy(update={"members": tuple(sorted(called)), "weights": weights})
        rank = rank.model_copy(update={"ranks": tuple(rank.ranks[i] for i in order), "base": base})
    return {
        "channels": None if channels is None else tuple(channels[i] for i in order),
        "rank": rank,
        "bases": plan.bases,
        "sparsity": plan.sparsity,
        "bits": plan.bits,
    }


def _close(one: LayerPlan, other: LayerPlan) -> bool:
    """Return whether two plans agree, weights of merges and bases up to rounding (sums over experts run in another order)."""
    bases = [plan.rank.base for plan in (one, other) if plan.rank is not None and plan.rank.base is not None]
    if len(bases) == 2:
        if (bases[0].members, bases[0].kernel) != (bases[1].members, bases[1].kernel) or not np.allclose(
            bases[0].weights, bases[1].weights, rtol=1e-9, atol=1e-12
        ):
            return False
        assert one.rank is not None
        one = one.model_copy(update={"rank": one.rank.model_copy(update={"base": bases[1]})})
    if len(one.merges) != len(other.merges):
        return False
    for a, b in zip(one.merges, other.merges, strict=True):
        if a.model_copy(update={"weights": b.weights}) != b or not np.allclose(
            a.weights, b.weights, rtol=1e-9, atol=1e-12
        ):
            return False
    return one.model_copy(update={"merges": other.merges}) == other


def needs_and_stages(cls: type[Method], case: Case) -> None:
    """Reads only its ``needs`` (all in the catalogue), and uses them; writes only its ``stages``."""
    method = tried(cls)
    assert method.needs <= set(CATALOGUE), f"unknown statistics {sorted(method.needs - set(CATALOGUE))}"
    plan = planned(cls, case)
    assert plan.digest == decide(method, case, stats=case.stats.only(method.needs)).digest
    assert plan.stages <= cls.stages, f"writes {sorted(plan.stages)}, declares {sorted(cls.stages)}"
    for need in method.needs:
        try:
            decide(method, case, stats=case.stats.only(method.needs - {need}))
        except StatsError:
            continue
        raise AssertionError(f"declares {need!r} and never reads it")


def random_draws(cls: type[Method], case: Case) -> None:
    """Twenty random draws of its own space plan or refuse, and at least one plans."""
    rng = np.random.default_rng(11)
    stats = case_of(case.family, 1, cls.law_experts).stats
    plans, none_applies = 0, True
    for _ in range(20):
        method = draw(cls, rng).model_copy(update=dict(cls.law_knobs))
        none_applies &= method.refuse(case.inventory) is not None
        try:
            decide(method, case, stats=stats).validate_for(case.inventory)
            plans += 1
        except RefusedError as error:
            assert str(error), "refuses without a reason"
    if none_applies:
        applies(cls, case)
    assert plans, "every one of twenty draws was refused"


def applies_somewhere(cls: type[Method]) -> None:
    """Not refused on every architecture."""
    reasons = {case.family: tried(cls).refuse(case.inventory) for case in cases()}
    assert any(reason is None for reason in reasons.values()), f"refused everywhere: {reasons}"
