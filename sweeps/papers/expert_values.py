"""Numbers of experts that figures show, layer by layer: a method's scores, and how alike experts are.

Shape letters: E routed experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.calibration.code_digest import decision_digest, module_digest
from bench.models.device import resolved_device
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import CalibrationConfig
from methods.framework.stats import Array, Stats
from sweeps.papers.recorded import Source
from sweeps.papers.scored_experts import score_needs, scores_of
from sweeps.papers.shown import Question, answer
from sweeps.papers.stand_in import StandIn
from sweeps.papers.weights_across import weights_across

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

Layers = Sequence[Any]
"""For each decoder layer a list of numbers, or of lists of numbers; None where a layer has no routed experts."""


def scored(text: str, one: StandIn, calibration: CalibrationConfig, source: Source) -> Layers | None:
    """Return a method's scores of the experts of each layer.

    Args:
        text: the method, spelled as on the command line.
        one: the model.
        calibration: the text that they are measured on.
        source: the store that keeps them, and whether to measure; without that, the result is None where there are none.

    Raises:
        ConfigError: the method scores no experts.
    """
    method = parse_method(text).configured()

    def values(stats: Stats, layer: int) -> Any:
        return [float(value) for value in scores_of(method, stats, layer)]

    asked = {"scores of": method.name, "knobs": dict(method.knobs)}
    code = (decision_digest(type(method)), module_digest(("sweeps.papers.scored_experts",)))
    question = Question(asked, score_needs(method), _by_layer(values), code)
    return _layers(question, one, calibration, source)


def likeness(statistic: str, one: StandIn, calibration: CalibrationConfig, source: Source) -> Layers | None:
    """Return how alike every two experts of each layer are, as rows of a matrix (E, E).

    Args:
        statistic: of the catalogue.
        one: the model.
        calibration: the text that it is measured on.
        source: the store that keeps it, and whether to measure; without that, the result is None where there is none.
    """

    def values(stats: Stats, layer: int) -> Any:
        return _rows(stats.layer(statistic, layer))

    question = Question({"statistic of experts": statistic}, frozenset({statistic}), _by_layer(values))
    return _layers(question, one, calibration, source)


def across(one: StandIn, calibration: CalibrationConfig, source: Source) -> Mapping[str, Any] | None:
    """Return how alike the weights of every two experts of the model are: linear CKA, hidden dimensions as samples.

    Args:
        one: the model.
        calibration: whose device computes.
        source: the store that keeps it, and whether to measure; without that, the result is None where there is none.

    Returns:
        ``matrix``, rows of all experts of the model, layer by layer, and ``layers``, the layer of each; None where nothing
        was kept.

    Raises:
        RefusedError: experts of unequal form, whose weights cannot be compared.
    """

    def values(checkpoint: Checkpoint, _: Stats) -> Any:
        layers, matrix = weights_across(checkpoint, resolved_device(calibration.device))
        return {"layers": layers, "matrix": _rows(matrix)}

    asked = {"weights of experts": "across layers"}
    question = Question(asked, frozenset(), values, (module_digest(("sweeps.papers.weights_across",)),))
    found: Mapping[str, Any] | None = _found(question, one, calibration, source)
    return found


def _layers(question: Question, one: StandIn, calibration: CalibrationConfig, source: Source) -> Layers | None:
    found: Layers | None = _found(question, one, calibration, source)
    return found


def _found(question: Question, one: StandIn, calibration: CalibrationConfig, source: Source) -> Any:
    found = answer(question, one, calibration, source.store, run=source.run is not None)
    return None if found is None else found.values


def _by_layer(values: Callable[[Stats, int], Any]) -> Callable[[Checkpoint, Stats], Any]:
    """Return what makes the numbers of all layers: those of each layer with experts, and None for the others."""

    def of_model(checkpoint: Checkpoint, stats: Stats) -> Any:
        moe, depth = set(checkpoint.inventory.moe_layers), len(checkpoint.inventory.layers)
        return [values(stats, layer) if layer in moe else None for layer in range(depth)]

    return of_model


def _rows(values: Array) -> list[list[float]]:
    """Return a matrix as JSON values, rounded to what a figure can show."""
    return [[round(float(value), 4) for value in row] for row in values]
