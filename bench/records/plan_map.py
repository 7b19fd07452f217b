"""A plan as a map: one line a layer, one letter an expert of the source, and in words what else becomes of the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from methods.framework.errors import PlanError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan

LEGEND = "# stays, m merged into one that stays, M the one that it is merged into, c replaced by a constant, . removed"
"""What the letters mean."""

ALL = "all experts stay"


def plan_map(plan: Plan) -> tuple[str, ...]:
    """Return a line for each run of decoder layers that are alike: their numbers, the map of the experts, and the rest."""
    named = [index for layer in plan.layers for index in _named(layer)]
    width = max(named, default=-1) + 1
    lines = [f"{_experts(layer, width)}  {_rest(layer)}".rstrip() for layer in plan.layers]
    found: list[tuple[int, int, str]] = []
    for place, line in enumerate(lines):
        if found and found[-1][2] == line:
            found[-1] = (found[-1][0], place, line)
        else:
            found.append((place, place, line))
    labels = [str(first) if first == last else f"{first}-{last}" for first, last, _ in found]
    wide = max(map(len, labels))
    return tuple(f"{label:>{wide}}  {line}" for label, (_, _, line) in zip(labels, found, strict=True))


def _named(layer: LayerPlan) -> list[int]:
    merged = [member for merge in layer.merges for member in merge.members]
    return [*(layer.experts or ()), *layer.constants, *merged]


def _experts(layer: LayerPlan, width: int) -> str:
    if layer.drop != "none":
        return {"block": "the whole layer is removed", "moe": "the experts' sub-layer is removed"}[layer.drop]
    if layer.experts is None:
        return ALL
    letters = dict.fromkeys(layer.experts, "#") | dict.fromkeys(layer.constants, "c")
    for merge in layer.merges:
        letters |= dict.fromkeys((member for member in merge.members if member not in letters), "m")
        letters[merge.into] = "M"
    return "".join(letters.get(index, ".") for index in range(width))


def _rest(layer: LayerPlan) -> str:
    told = []
    if layer.top_k is not None:
        told.append(f"top-{layer.top_k}")
    if layer.channels is not None:
        told.append(f"channels {_span([len(own) for own in layer.channels])}")
    if layer.rank is not None:
        told.append(f"rank {_ranks(layer)}")
    if layer.bases is not None:
        told.append("bases that the experts share")
    if layer.sparsity is not None:
        pattern = layer.sparsity.pattern
        told.append(f"{100 * layer.sparsity.share:g} % zeros" + ("" if pattern == "unstructured" else f" ({pattern})"))
    if layer.bits is not None:
        told.append(f"{layer.bits.bits} bits")
    return ", ".join(told)


def _ranks(layer: LayerPlan) -> str:
    numbers = [rank for expert in layer.rank.ranks for rank in expert if rank] if layer.rank else []
    return _span(numbers) if numbers else "whole"


def _span(numbers: Sequence[int]) -> str:
    """Return one number where all are alike, else the smallest and the largest."""
    counts = Counter(numbers)
    return str(numbers[0]) if len(counts) == 1 else f"{min(numbers)} to {max(numbers)}"


def drawn_plan(path: Path) -> tuple[str, ...] | None:
    """Return the map of the plan in a file; None where there is none that can be read."""
    try:
        return plan_map(Plan.loads(path.read_bytes()))
    except (OSError, PlanError):
        return None
