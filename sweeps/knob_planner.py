"""Plans of recipes whose knobs all layers share: planned anew for each draw, shifted onto the budget by their shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from methods.framework.allocation import expert_counts
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from sweeps.planner import Drawn, Planner, prefix, shared_distributions, shared_knobs
from sweeps.space.composed import composed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_HALVINGS = 24
"""Bisection steps: shares are found to 2^-24, finer than one expert of any model."""

_Found = tuple[tuple[Method, ...], Plan]


class KnobPlanner(Planner):
    """Plans of one recipe for one model, on the configured budget."""

    @cached_property
    def _shifted(self) -> list[int]:
        """Numbers of the steps whose shares are shifted onto the budget."""
        searched = [number for number, step in enumerate(self.steps) if "keep" in step.space]
        return searched or list(range(len(self.steps)))

    @cached_property
    def _counted(self) -> dict[tuple[int, ...], Mapping[str, int]]:
        """Sizes of numbers of experts that were counted so far."""
        return {}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Every searched knob; of depth knots one entry each."""
        return shared_distributions(self.steps)

    def drawn(self, parameters: Mapping[str, Any], as_stated: bool = False) -> Drawn:
        """Return the plan of drawn parameters, on the budget where that projects."""
        knobs = shared_knobs(self.steps, parameters)
        methods = tuple(step.kind.configured(own) for step, own in zip(self.steps, knobs, strict=True))
        if self.limits.projecting and not as_stated:
            methods, plan = self._projected(methods)
        else:
            methods = methods if as_stated else self._shift(methods, 0.0)  # lifts shares to what routers need
            plan = self._planned(methods)
        named = {
            f"{prefix(self.steps, number)}{name}": value
            for number, method in enumerate(methods)
            for name, value in method.knobs.items()
        }
        return Drawn(named, plan, self.limits.sizes(plan))

    def _planned(self, methods: Sequence[Method]) -> Plan:
        return composed(enumerate(methods), self.inventory, self.stats, self._probe)

    def _projected(self, methods: tuple[Method, ...]) -> _Found:
        """Return the largest shift of the searched shares whose plan meets the limits.

        Each share s becomes min(1, max(floor, s + shift)), the floor being what the routers need; sizes grow with the
        shift, hence bisection. A shift at which a method refuses counts as too small.
        """
        if (quick := self._by_counts(methods)) is not None:
            return quick
        low, high = -1.0, 1.0
        fits, best, reason = self._try(methods, high)
        if fits:
            assert best is not None
            return best
        fits, best, reason = self._try(methods, low)
        for _ in range(_HALVINGS if fits is not False else 0):
            middle = (low + high) / 2
            fits, found, why = self._try(methods, middle)
            if fits is False:
                high = middle
            else:
                low, best, reason = middle, found or best, why or reason
        if best is None or self.limits.excess(self.limits.sizes(best[1])) > 0:
            names = " + ".join(method.name for method in methods)
            raise RefusedError(
                f"method {names} cannot be brought to {self.limits}{f' ({reason})' if reason else ''}; "
                "allow a larger budget"
            )
        return best

    def _try(self, methods: tuple[Method, ...], shift: float) -> tuple[bool | None, _Found | None, str]:
        """Return whether the shifted methods meet the limits (None: one refuses), their plan, and the refusal."""
        shifted = self._shift(methods, shift)
        try:
            plan = self._planned(shifted)
        except RefusedError as error:
            return None, None, str(error)
        return self.limits.excess(self.limits.sizes(plan)) <= 0, (shifted, plan), ""

    def _by_counts(self, methods: tuple[Method, ...]) -> _Found | None:
        """Return what bisection would find for a method that keeps a number of whole experts, from one planning.

        Sizes follow from the counts alone, so that only the plan at the end is made; None where it has other sizes than that.
        """
        if len(methods) != 1 or methods[0].stages != {"experts"}:
            return None
        low, high, known = -1.0, 1.0, False
        for step in range(_HALVINGS + 1):
            middle = high if step == 0 else (low + high) / 2
            try:
                fits = self.limits.excess(self._sizes_of_counts(self._shift(methods, middle)[0])) <= 0
            except RefusedError:
                fits, here = True, False
            else:
                here = fits
            low, high, known = (middle, high, known or here) if fits else (low, middle, known)
            if step == 0 and fits:
                break
        shifted = self._shift(methods, low)
        if not known:
            return None
        try:
            plan = self._planned(shifted)
            counted = self._sizes_of_counts(shifted[0])
        except RefusedError:
            return None
        return (shifted, plan) if dict(counted) == self.limits.sizes(plan) else None

    def _sizes_of_counts(self, method: Method) -> Mapping[str, int]:
        counts = expert_counts(self.inventory, method.keep)
        key = tuple(counts.values())
        if key not in self._counted:
            layers = [
                LayerPlan(experts=self._first(index, counts[index])) if index in counts else LayerPlan()
                for index in range(len(self.inventory.layers))
            ]
            self._counted[key] = self.limits.sizes(Plan.of(self.inventory, layers))
        return self._counted[key]

    def _first(self, layer: int, count: int) -> tuple[int, ...]:
        """Return some ``count`` experts of a layer, the same number in each group of the router."""
        groups = self.inventory.router.groups
        size = self.inventory.layers[layer].experts // groups
        return tuple(group * size + index for group in range(groups) for index in range(count // groups))

    def _shift(self, methods: tuple[Method, ...], shift: float) -> tuple[Method, ...]:
        """Return the methods with the searched shares shifted."""
        moved = list(methods)
        for number in self._shifted:
            keep, floor = methods[number].keep, methods[number].least_keep(self.inventory)
            shares = (keep,) if isinstance(keep, (int, float)) else keep
            new = tuple(min(1.0, max(floor, share + shift)) for share in shares)
            update = {"keep": new[0] if isinstance(keep, (int, float)) else new}
            moved[number] = methods[number].model_copy(update=update)
        return tuple(moved)
