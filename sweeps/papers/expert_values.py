"""Numbers of experts that figures show, layer by layer: a method's scores, and how alike experts are.

They are measured once for a model and a text, and kept in the store as plain numbers. Shape letters: E routed experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.calibration.code_digest import ROOMS, code_digest, decision_digest, module_digest, statistic_digest
from bench.models.device import resolved_device
from bench.settings.method_settings import parse_method
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from bench.store.versions import versions
from methods.framework.stats import CATALOGUE, Array, Stats
from sweeps.papers.recorded import Source
from sweeps.papers.scored_experts import score_needs, scores_of
from sweeps.papers.stand_in import StandIn
from sweeps.papers.weights_across import weights_across

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus

_KIND = "figures"
"""Folder of the cache in which the numbers of figures lie."""

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
    needs = score_needs(method)
    asked = {
        "method": method.name,
        "knobs": dict(method.knobs),
        "decided by": [decision_digest(type(method)), module_digest(("sweeps.papers.scored_experts",))],
    }

    def values(stats: Stats, layer: int) -> Any:
        return [float(value) for value in scores_of(method, stats, layer)]

    return _measured(asked, needs, values, one, calibration, source)


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

    return _measured({"statistic": statistic}, frozenset({statistic}), values, one, calibration, source)


def across(one: StandIn, source: Source) -> Mapping[str, Any] | None:
    """Return how alike the weights of every two experts of the model are: linear CKA, hidden dimensions as samples.

    Args:
        one: the model.
        source: the store that keeps it, and whether to measure; without that, the result is None where there is none.

    Returns:
        ``matrix``, rows of all experts of the model, layer by layer, and ``layers``, the layer of each; None where nothing
        was kept.

    Raises:
        RefusedError: experts of unequal form, whose weights cannot be compared.
    """
    checkpoint, store = _opened(one), Store(source.store)
    device = resolved_device("auto")
    key = {
        "model": checkpoint.content,
        "asked": "weights across layers",
        "device": device.partition(":")[0],
        "libraries": versions(),
        "code": [code_digest(ROOMS), module_digest(("sweeps.papers.weights_across",))],
    }
    found = store.recall(_KIND, key)
    if found is None and source.run is not None:
        layers, matrix = weights_across(checkpoint, device)
        found = {"layers": layers, "matrix": _rows(matrix)}
        store.remember(_KIND, key, found)
    return found


def _measured(
    asked: Mapping[str, Any],
    needs: frozenset[str],
    values: Callable[[Stats, int], Any],
    one: StandIn,
    calibration: CalibrationConfig,
    source: Source,
) -> Layers | None:
    """Return the numbers of each layer with experts, recalled or measured.

    Args:
        asked: what they are, as JSON values.
        needs: statistics that they are made of.
        values: makes the numbers of one layer.
        one: the model.
        calibration: the text.
        source: the store, and whether to measure.
    """
    checkpoint, store = _opened(one), Store(source.store)
    reads = any(CATALOGUE[name].cost != "weights" for name in needs)
    corpus = _corpus(checkpoint, calibration) if reads else None
    device = resolved_device(calibration.device)
    key = {
        "model": checkpoint.content,
        "asked": dict(asked),
        "text": corpus.digest if corpus is not None else None,
        "sampled": calibration.sampled_tokens,
        "device": device.partition(":")[0],
        "libraries": versions(),
        "code": [
            code_digest(ROOMS),
            {name: statistic_digest(name) for name in sorted(needs)},
        ],
    }
    found = store.recall(_KIND, key)
    if found is None and source.run is not None:
        stats = _stats(checkpoint, corpus, needs, calibration, store, device)
        inventory = checkpoint.inventory
        moe = set(inventory.moe_layers)
        layers = range(len(inventory.layers))
        found = {"layers": [values(stats, layer) if layer in moe else None for layer in layers]}
        store.remember(_KIND, key, found)
    return None if found is None else found["layers"]


def _stats(
    checkpoint: Checkpoint,
    corpus: Corpus | None,
    needs: frozenset[str],
    calibration: CalibrationConfig,
    store: Store,
    device: str,
) -> Stats:
    from bench.calibration.calibrate import calibrate

    return calibrate(
        checkpoint,
        corpus,
        needs,
        cache=store.cache / "stats",
        device=device,
        sampled_tokens=calibration.sampled_tokens,
    )


def _opened(one: StandIn) -> Checkpoint:
    from bench.checkpoint.checkpoint import Checkpoint

    assert one.model is not None
    return Checkpoint.open(one.model)


def _corpus(checkpoint: Checkpoint, text: CalibrationConfig) -> Corpus:
    from bench.text.corpus import parse

    return parse(text.corpus, checkpoint, text.sequences, text.length, text.seed, text.bos, text.answers_only)


def _rows(values: Array) -> list[list[float]]:
    """Return a matrix as JSON values, rounded to what a figure can show."""
    return [[round(float(value), 4) for value in row] for row in values]
