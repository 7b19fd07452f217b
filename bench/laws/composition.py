"""The law of composition: one method after another is one plan, or is refused for a reason that the first plan gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from bench.laws.cases import Case
from bench.laws.decisions import applies, decide, planned, tried
from methods.framework.allocation import expert_counts
from methods.framework.compose import compose
from methods.framework.errors import PlanError, RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import INSIDE
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from methods.registry import method_class, names


def composition(cls: type[Method], case: Case) -> None:
    """Composes and validates after every kind of first plan, on sliced statistics, or refuses for a reason that it has."""
    applies(cls, case)
    for other in firsts(cls, case):
        first = planned(method_class(other), case)
        method = tried(cls)
        after = After(first, result(first, case.inventory), case.stats.restricted(first), method)
        try:
            second = decide(method, case, after.inventory, after.stats)
            both = compose(first, second, case.inventory)
        except (RefusedError, PlanError) as error:
            assert reason(str(error), after), f"refuses after {other}, where nothing asks for it: {error}"
            continue
        assert both.normalised(case.inventory) == both
        assert result(both, case.inventory) == result(second, after.inventory), (
            f"after {other}: not the same checkpoint"
        )


def firsts(cls: type[Method], case: Case) -> list[str]:
    """Return one method of each kind of plan, another for each ``cls``, so that every method comes first somewhere."""
    place = names().index(cls.name) if cls.name in names() else 0
    return [kind[place % len(kind)] for kind in _kinds(case)]


@cache
def _kinds(case: Case) -> list[list[str]]:
    """Return the names of all methods that apply to the model, those together whose plans compose alike."""
    kinds: dict[frozenset[str], list[str]] = {}
    for name in names():
        if tried(method_class(name)).refuse(case.inventory) is not None:
            continue
        kinds.setdefault(kind_of(planned(method_class(name), case)), []).append(name)
    return list(kinds.values())


def kind_of(plan: Plan) -> frozenset[str]:
    """Return what of ``plan`` makes a difference to a plan that follows it."""
    marks = set(plan.stages)
    for layer in plan.layers:
        marks |= {f"router {layer.router}", *(f"merged {merge.kernel}" for merge in layer.merges)}
        marks |= {"constants"} if layer.constants else set()
        marks |= {"bases"} if layer.bases is not None else set()
        marks |= {"base"} if layer.rank is not None and layer.rank.base is not None else set()
        marks |= {"scaled inputs"} if layer.bits is not None and layer.bits.kernel == "awq" else set()
    return frozenset(marks)


@dataclass(frozen=True)
class After:
    """What a first plan leaves to a second method: a model, and statistics as far as they still hold."""

    plan: Plan
    inventory: Inventory
    stats: Stats
    method: Method

    @property
    def mapped(self) -> bool:
        """Whether router rows share experts, and the method selects or merges experts."""
        rows = any(layer.expert_map is not None for layer in self.inventory.layers)
        return rows and "experts" in self.method.stages

    @property
    def unmeasured(self) -> bool:
        """Whether something that the method reads, or asks a probe, no longer describes this model."""
        merged = any(layer.merges or layer.constants for layer in self.plan.layers)
        return bool(self.method.needs & self.stats.stale) or (self.method.probing and merged)

    @property
    def changed_inside(self) -> bool:
        """Whether experts are no longer what they were inside, and the method changes or merges what is left of them."""
        return bool(self.plan.stages & INSIDE) and bool(self.method.stages & (INSIDE | {"experts"}))

    @property
    def too_few(self) -> bool:
        """Whether the share that the method keeps is less than the routers need."""
        if "experts" not in self.method.stages:
            return False
        try:
            expert_counts(self.inventory, self.method.keep)
        except RefusedError:
            return True
        return False


REASONS: tuple[tuple[str, Callable[[After], bool]], ...] = (
    (r"measure (it|them) anew on", lambda after: after.unmeasured),
    (r"share experts already", lambda after: after.mapped),
    (r"stored (in another form already|with )", lambda after: after.changed_inside),
    (r"share a base, which was made for all of them", lambda after: after.changed_inside),
    (r"the first plan (left the experts|made a base|scaled the inputs)", lambda after: after.changed_inside),
    (r"are of different widths|inputs, which do not divide", lambda after: after.changed_inside),
    (
        r"every decoder layer with attention",
        lambda after: len(after.inventory.attending_layers) < len(after.inventory.layers),
    ),
    (r"fewer than the \d+ that its router needs", lambda after: after.too_few),
)
"""What a refusal says, and when there is such a reason."""


def reason(message: str, after: After) -> bool:
    """Return whether ``message`` states a reason, and the reason exists."""
    return any(re.search(words, message) and exists(after) for words, exists in REASONS)
