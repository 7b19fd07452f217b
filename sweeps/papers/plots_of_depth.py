"""Which decoder layers a method drops, by how many it may: decided from statistics alone, so nothing is run for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.papers.depth_maps import Gone, depth_maps
from analysis.papers.plot_text import plot_csv
from bench.calibration.code_digest import decision_digest
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import CalibrationConfig
from sweeps.papers.asked import filled
from sweeps.papers.plot_file import CountsFile
from sweeps.papers.recorded import Source
from sweeps.papers.shown import Question, answer
from sweeps.papers.stand_in import StandIn
from sweeps.papers.wanted import NOWHERE, Drawn, Wanted, differences_of_text, named, words_of_text

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from methods.framework.stats import Stats


@dataclass(frozen=True)
class _Dropping:
    """A method at every number of layers, as it is spelled on the command line."""

    label: str
    spelled: Sequence[str]


def gone(wanted: Wanted) -> Drawn:
    """Draw which layers each method drops, by how many."""
    found: dict[str, dict[str, Gone]] = {}
    missing = []
    for one in wanted.measured:
        for counts in wanted.plot.counts:
            layers = _gone(_dropping(counts, one), one, wanted.settings.calibration, wanted.source)
            if layers is None:
                missing.append(f"{one.paper.title}, {counts.label}: {NOWHERE}")
            else:
                found.setdefault(counts.label, {})[named(one)] = layers
    lines = [
        (name, label, len(layers), " ".join(map(str, layers)))
        for label, models in found.items()
        for name, drawn in models.items()
        for layers in drawn.gone
    ]
    orders = [
        f"{name}, {label}: {', '.join(map(str, order))}"
        for label, models in found.items()
        for name, drawn in models.items()
        if (order := order_of(drawn.gone)) is not None
    ]
    caption = [words_of_text(wanted.settings.calibration)]
    if orders:
        caption.append(f"Order in which they go: {'; '.join(orders)}.")
    numbers = plot_csv(("model", "method", "dropped", "layers"), lines)
    return Drawn(depth_maps(found, wanted.exhibit.x), numbers, caption, differences_of_text(wanted), missing)


def order_of(gone: Sequence[Sequence[int]]) -> list[int] | None:
    """Return the layers in the order in which they go; None where a layer that went at fewer stays at more.

    Args:
        gone: the layers that go, first one of them, then two, and so on.
    """
    steps = [set(new) - set(old) for old, new in itertools.pairwise([(), *gone])]
    return [layer for (layer,) in steps] if all(len(step) == 1 for step in steps) else None


def _dropping(counts: CountsFile, one: StandIn) -> _Dropping:
    total, most = (int(filled(str(value), one.words)) for value in (counts.total, counts.most))
    keeps = [f"{1 - count / total:.6g}" for count in range(1, most + 1)]
    return _Dropping(counts.label, [filled(counts.method, {**one.words, "keep": keep}) for keep in keeps])


def _gone(dropping: _Dropping, one: StandIn, calibration: CalibrationConfig, source: Source) -> Gone | None:
    """Return the layers that go at each number; None where they are not kept and nothing may be run.

    Args:
        dropping: the method.
        one: the model.
        calibration: the text that its statistics are measured on.
        source: the store that keeps them, and whether to measure.
    """
    methods = [parse_method(text).configured() for text in dropping.spelled]

    def values(checkpoint: Checkpoint, stats: Stats) -> Mapping[str, Any]:
        inventory = checkpoint.inventory
        plans = [method.plan(inventory, stats) for method in methods]
        every = range(len(inventory.layers))
        whole = any(layer.drop == "block" for plan in plans for layer in plan.layers)
        return {
            "layers": len(inventory.layers),
            "droppable": list(every if whole else inventory.droppable_layers),
            "gone": [[layer for layer in every if plan.layers[layer].drop != "none"] for plan in plans],
        }

    needs = frozenset().union(*(method.needs for method in methods))
    question = Question({"layers that go": list(dropping.spelled)}, needs, values, (decision_digest(type(methods[0])),))
    found = answer(question, one, calibration, source.store, run=source.run is not None)
    return None if found is None else Gone(**found.values)
