"""Laws about decisions: they need shapes and statistics only. Each function raises AssertionError with what it saw."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from bench.laws.cases import Case, cases, synthetic_stats
from methods.compose import compose
from methods.cost import cost, cost_of
from methods.errors import PlanError, RefusedError, StatsError
from methods.inventory import Inventory
from methods.method import Method
from methods.plan import LayerPlan, Plan
from methods.registry import method_class, names
from methods.space import draw
from methods.stats import CATALOGUE, Stats
from methods.transfer import result

KEEPS = (0.25, 0.5, 0.75, 1.0)


def purity(cls: type[Method], case: Case) -> None:
    """The same question has the same answer, twice, and leaves the global random state alone."""
    state = _global_random_state()
    first = cls().plan(case.inventory, case.stats)
    again = cls().plan(case.inventory, case.stats)
    assert first.digest == again.digest, f"digest {first.digest[:8]} became {again.digest[:8]}"
    assert _global_random_state() == state, "the global random state was touched"


def _global_random_state() -> str:
    """Return the state of numpy's, Python's and torch's global generators, to be compared."""
    legacy: Any = np.random.get_state(legacy=False)
    words = (legacy["state"]["key"].tobytes(), legacy["state"]["pos"], random.getstate(), torch.get_rng_state().numpy())
    return repr([word.tobytes() if isinstance(word, np.ndarray) else word for word in words])


def purity_across_processes(cls: type[Method], case: Case) -> None:
    """Another process, with another hash seed, finds the same digest."""
    code = (
        "from bench.laws.cases import case; from methods.registry import method_class; "
        f"c = case({case.family!r}); print(method_class({cls.name!r})().plan(c.inventory, c.stats).digest)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == cls().plan(case.inventory, case.stats).digest, "another process decides otherwise"


def json_round_trip(cls: type[Method], case: Case) -> None:
    """A plan survives JSON byte for byte."""
    plan = cls().plan(case.inventory, case.stats)
    assert Plan.loads(plan.dumps()) == plan and Plan.loads(plan.dumps()).dumps() == plan.dumps()


def validity(cls: type[Method], case: Case) -> None:
    """The plan is a normal form that fits the model it was made for."""
    plan = cls().plan(case.inventory, case.stats)
    assert plan.normalised(case.inventory) == plan, "not in normal form"


def budget(cls: type[Method], case: Case) -> None:
    """What is asked to remain remains, within one unit, and a larger ``keep`` never gives a smaller model."""
    previous = 0
    for keep in KEEPS:
        plan = cls.configured({"keep": keep}).plan(case.inventory, case.stats)
        asked, found, unit = _remaining(plan, case.inventory, keep)
        assert abs(asked - found) <= unit, f"keep={keep}: {asked:.1f} should remain, {found} do (unit {unit})"
        parameters = cost(plan, case.inventory).parameters
        assert parameters >= previous, f"keep={keep} gives a smaller model than the keep before it"
        previous = parameters


def _remaining(plan: Plan, inventory: Inventory, keep: float) -> tuple[float, int, int]:
    """Return units asked for, units that remain, and the size of one unit, by the stage that the plan uses."""
    if "blocks" in plan.stages:
        return keep * len(inventory.layers), sum(layer.drop != "block" for layer in plan.layers), 1
    if "sublayers" in plan.stages:
        moe = inventory.moe_layers
        return keep * len(moe), sum(plan.layers[index].drop == "none" for index in moe), 1
    if not plan.stages:
        return 1.0, 1, 0 if keep == 1.0 else 1
    return keep * inventory.num_experts, result(plan, inventory).num_experts, inventory.router.groups


def neutral_identity(cls: type[Method], case: Case) -> None:
    """The neutral setting is the identity."""
    plan = cls.neutral().plan(case.inventory, case.stats)
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
            value[permutations[index]] if value is not None and CATALOGUE[name].dims[:1] == ("E",) else value
            for index, value in enumerate(values)
        )
        for name, values in case.stats.values.items()
    }
    before = cls().plan(case.inventory, case.stats)
    after = cls().plan(case.inventory, Stats(relabelled, case.stats.tokens))
    for index, (old, new) in enumerate(zip(before.layers, after.layers, strict=True)):
        mapped = new
        if new.experts is not None:
            mapped = LayerPlan(experts=tuple(sorted(int(permutations[index][e]) for e in new.experts)), top_k=new.top_k)
        assert mapped == old, f"layer {index}: {old} became {mapped}"


def needs_and_stages(cls: type[Method], case: Case) -> None:
    """Reads only its ``needs`` (all in the catalogue), and uses them; writes only its ``stages``."""
    method = cls()
    assert method.needs <= set(CATALOGUE), f"unknown statistics {sorted(method.needs - set(CATALOGUE))}"
    plan = method.plan(case.inventory, case.stats)
    assert plan.digest == method.plan(case.inventory, case.stats.only(method.needs)).digest
    assert plan.stages <= cls.stages, f"writes {sorted(plan.stages)}, declares {sorted(cls.stages)}"
    for need in method.needs:
        try:
            method.plan(case.inventory, case.stats.only(method.needs - {need}))
        except StatsError:
            continue
        raise AssertionError(f"declares {need!r} and never reads it")


def composition(cls: type[Method], case: Case) -> None:
    """Composes and validates after every other method, on sliced statistics, or refuses with a reason."""
    for other in names():
        first = method_class(other)().plan(case.inventory, case.stats)
        middle = result(first, case.inventory)
        try:
            second = cls().plan(middle, case.stats.restricted(first))
            both = compose(first, second, case.inventory)
        except (RefusedError, PlanError) as error:
            assert str(error), f"refuses after {other} without a reason"
            continue
        assert both.normalised(case.inventory) == both
        assert result(both, case.inventory) == result(second, middle), f"after {other}: not the same checkpoint"


def random_draws(cls: type[Method], case: Case) -> None:
    """Twenty random draws of its own space plan or refuse, and at least one plans."""
    rng = np.random.default_rng(11)
    planned = 0
    for _ in range(20):
        method = draw(cls, rng)
        try:
            method.plan(case.inventory, synthetic_stats(case.inventory, 1)).validate_for(case.inventory)
            planned += 1
        except RefusedError as error:
            assert str(error), "refuses without a reason"
    assert planned, "every one of twenty draws was refused"


def applies_somewhere(cls: type[Method]) -> None:
    """Not refused on every architecture."""
    reasons = {case.family: cls().refuse(case.inventory) for case in cases()}
    assert any(reason is None for reason in reasons.values()), f"refused everywhere: {reasons}"
