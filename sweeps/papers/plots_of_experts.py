"""Plots of experts: which ones go at which share, how their scores are distributed, and how alike they are.

Shape letters: A all routed experts of a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.papers.expert_maps import drop_maps, importance_maps, score_histograms
from analysis.papers.likeness_maps import across_maps, likeness_maps, off_diagonal
from analysis.papers.plot_text import interval_words, plot_csv
from bench.settings.timing_settings import TimingConfig
from methods.framework.outside import read_text
from methods.framework.plan import Plan
from sweeps.papers.asked import asked, filled, places
from sweeps.papers.expert_values import Layers, across, likeness, scored
from sweeps.papers.laid_out import sheet
from sweeps.papers.recorded import filled_blocks, runs_of
from sweeps.papers.wanted import NOWHERE, Drawn, Wanted, differences_of_text, named, words_of_text

_STAYS = 101.0
"""Percent of the experts at which one goes that stays at every share that was tried."""
STATISTICS: Mapping[str, str] = {
    "output_cka": "linear CKA of outputs",
    "output_cosine": "cosine of outputs",
    "weight_cka": "linear CKA of weights",
}


def dropped(wanted: Wanted) -> Drawn:
    """Draw at which share each expert goes, from the plans of runs at several shares."""
    rows = [(one, asked(wanted.paper.file, wanted.exhibit, one, wanted.settings)) for one in wanted.models]
    laid = sheet(wanted.paper, wanted.name, rows, wanted.settings)
    blocks = filled_blocks(laid, rows, wanted.settings, wanted.source, TimingConfig(enabled=False))
    maps: dict[str, Layers] = {}
    shares: dict[str, list[float]] = {}
    missing: list[str] = []
    for (one, _), block in zip(rows, blocks, strict=True):
        if one.model is None:
            continue
        assert wanted.exhibit.points is not None
        total = int(filled(str(wanted.exhibit.points.total), one.words))
        plans: dict[float, Plan] = {}
        for row in block.rows:
            if row.line.x and row.record is not None and row.record.plan is not None:
                path = wanted.source.store / "plans" / f"{row.record.plan}.json"
                if path.is_file():
                    plans[100 * row.line.x / total] = Plan.loads(read_plan(path))
                else:
                    missing.append(f"{one.paper.title}, {row.line.label}: its plan is not in the store")
        missing += block.missing
        if plans:
            maps[named(one)] = smallest_shares(plans, total)
            shares[named(one)] = sorted(plans)
    lines = _lines(maps, shown=lambda value: None if value == _STAYS else float(value))
    heads = ("model", "layer", "expert", "goes_at_percent")
    text = [sentence for sentence in laid.departs if sentence.startswith("calibration.")]
    caption = [words_of_text(wanted.settings.calibration)]
    return Drawn(drop_maps(maps, shares), plot_csv(heads, lines), caption, text, missing, runs_of(blocks))


def read_plan(path: Path) -> str:
    """Return the text of a plan in a store."""
    from methods.framework.errors import RecordError

    return read_text(path, RecordError)


def smallest_shares(plans: Mapping[float, Plan], experts: int) -> Layers:
    """Return for each layer and expert the smallest share at which a plan leaves it out.

    Layers of which no plan says anything have no experts, or none that go: they count as having none.

    Args:
        plans: by the share of the experts that go, in percent.
        experts: of a layer.
    """
    depth = len(next(iter(plans.values())).layers)
    stated = [any(plan.layers[layer].experts is not None for plan in plans.values()) for layer in range(depth)]
    found: list[list[float] | None] = [[_STAYS] * experts if one else None for one in stated]
    for share in sorted(plans, reverse=True):
        for row, layer in zip(found, plans[share].layers, strict=True):
            if row is not None and layer.experts is not None:
                for expert in set(range(experts)) - set(layer.experts):
                    row[expert] = share
    return found


def scores(wanted: Wanted) -> Drawn:
    """Draw how the scores of all experts are distributed, and which share of them goes first."""
    found, missing = _scored(wanted)
    relative = {name: to_even_share(layers) for name, layers in found.items()}
    shares = {
        named(one): [100 * (1 - keep) for _, keep in places(wanted.exhibit.points, one)]
        for one in wanted.measured
        if wanted.exhibit.points is not None
    }
    pictures = score_histograms(relative, {name: shares.get(name, []) for name in relative}, wanted.exhibit.x)
    numbers = plot_csv(("model", "layer", "expert", "score_to_even_share"), _lines(relative))
    caption = [
        words_of_text(wanted.settings.calibration),
        "A score of 1 is that of an expert when all of a layer have the same.",
    ]
    return Drawn(pictures, numbers, caption, differences_of_text(wanted), missing)


def to_even_share(layers: Layers) -> Layers:
    """Return scores divided by the mean over their layer."""
    return [
        None if row is None else [len(row) * value / total for value in row] if (total := sum(row)) else list(row)
        for row in layers
    ]


def importance(wanted: Wanted) -> Drawn:
    """Draw a method's scores of experts as a map, and their sum in each layer."""
    found, missing = _scored(wanted)
    pictures = importance_maps(found, wanted.plot.y)
    numbers = plot_csv(("model", "layer", "expert", "importance"), _lines(found))
    return Drawn(pictures, numbers, [words_of_text(wanted.settings.calibration)], differences_of_text(wanted), missing)


def likeness_of_layers(wanted: Wanted) -> Drawn:
    """Draw how alike the experts of each layer are."""
    statistic = wanted.plot.statistic
    assert statistic is not None
    models: dict[str, dict[int, Any]] = {}
    missing = []
    for one in wanted.measured:
        layers = likeness(statistic, one, wanted.settings.calibration, wanted.source)
        if layers is None:
            missing.append(f"{one.paper.title}: {NOWHERE}")
        else:
            models[named(one)] = {layer: matrix for layer, matrix in enumerate(layers) if matrix is not None}
    lines = [
        (name, layer, first, second, float(matrix[first][second]))
        for name, layers in models.items()
        for layer, matrix in layers.items()
        for first in range(len(matrix))
        for second in range(first)
    ]
    caption = [
        f"{name}: {interval_words(*_spread(layers))} between layers (mean over pairs)."
        for name, layers in models.items()
    ]
    reads_text = statistic != "weight_cka"
    told = [words_of_text(wanted.settings.calibration)] if reads_text else []
    pictures = likeness_maps(models, STATISTICS[statistic])
    numbers = plot_csv(("model", "layer", "expert", "other", statistic), lines)
    return Drawn(pictures, numbers, [*told, *caption], differences_of_text(wanted) if reads_text else (), missing)


def across_layers(wanted: Wanted) -> Drawn:
    """Draw how alike the weights of every two experts of a model are."""
    models: dict[str, tuple[Sequence[int], Any]] = {}
    missing = []
    for one in wanted.measured:
        found = across(one, wanted.settings.calibration, wanted.source)
        if found is None:
            missing.append(f"{one.paper.title}: {NOWHERE}")
        else:
            models[named(one)] = (found["layers"], found["matrix"])
    lines, caption = [], []
    for name, (layers, matrix) in models.items():
        within, between = pair_means(layers, matrix)
        caption.append(f"{name}: mean {within:.3f} within a layer, {between:.3f} between layers.")
        lines += [(name, *of_two) for of_two in spans_of_layers(layers, matrix)]
    heads = ("model", "layer", "other_layer", "lowest", "mean", "highest")
    caption.append("The file holds lowest, mean and highest of every two layers, the picture every two experts.")
    return Drawn(across_maps(models, STATISTICS["weight_cka"]), plot_csv(heads, lines), caption, (), missing)


def pair_means(layers: Sequence[int], matrix: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean similarity of two experts of one layer, and of two of different layers.

    Args:
        layers: the layer of each expert.
        matrix: similarity of every two experts.
    """
    sums = {True: [0.0, 0], False: [0.0, 0]}
    for a in range(len(layers)):
        for b in range(a):
            part = sums[layers[a] == layers[b]]
            part[0] += matrix[a][b]
            part[1] += 1
    within, between = (part[0] / max(part[1], 1) for part in (sums[True], sums[False]))
    return within, between


def spans_of_layers(
    layers: Sequence[int], matrix: Sequence[Sequence[float]]
) -> list[tuple[int, int, float, float, float]]:
    """Return for every two layers, and each alone, lowest, mean and highest similarity of two different experts of them.

    Args:
        layers: the layer of each expert.
        matrix: similarity of every two experts.
    """
    value_AA, layer_A = np.asarray(matrix, dtype=float), np.asarray(layers)
    different_AA = ~np.eye(len(layers), dtype=bool)
    found = []
    for first, second in itertools.combinations_with_replacement(dict.fromkeys(layers), 2):
        of_two_AA = (layer_A[:, None] == first) & (layer_A[None, :] == second) & different_AA
        if of_two_AA.any():
            pairs = value_AA[of_two_AA]
            found.append((first, second, float(pairs.min()), float(pairs.mean()), float(pairs.max())))
    return found


def _spread(layers: Mapping[int, Any]) -> tuple[float, float]:
    means = [off_diagonal(matrix)[1] for matrix in layers.values()]
    return min(means), max(means)


def _scored(wanted: Wanted) -> tuple[dict[str, Layers], list[str]]:
    assert wanted.plot.method is not None
    found: dict[str, Layers] = {}
    missing = []
    for one in wanted.measured:
        method = filled(wanted.plot.method, one.words)
        layers = scored(method, one, wanted.settings.calibration, wanted.source)
        if layers is None:
            missing.append(f"{one.paper.title}: {NOWHERE}")
        else:
            found[named(one)] = layers
    return found, missing


def _lines(models: Mapping[str, Layers], shown: Any = float) -> list[tuple[Any, ...]]:
    return [
        (name, layer, expert, shown(value))
        for name, layers in models.items()
        for layer, row in enumerate(layers)
        if row is not None
        for expert, value in enumerate(row)
    ]
