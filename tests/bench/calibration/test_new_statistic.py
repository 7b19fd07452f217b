"""A statistic from outside costs one file: dropped into the folder, or brought by another distribution."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import methods.stats
from bench.calibration.calibrate import calibrate
from bench.calibration.decide import LayerwiseDecision
from bench.calibration.streaming import StreamedPass
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError, UnknownNameError
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from tests.support.distribution import announce
from tests.support.streamed_pass import RAGGED, plain_model

SOURCE = '''"""How large router logits are.  Shape letters: R router rows, E routed experts."""

from methods.framework.accumulator import Accumulator
from methods.framework.stat_spec import StatSpec


class LogitSquare(Accumulator):
    """Squares, added up."""

    specs = (
        StatSpec("logit_square", ("E",), "moe", "routed", "mean over all tokens of z_i^2", "logit^2", of_rows=True),
    )

    def __init__(self, needs, place):
        super().__init__(needs, place)
        self._sum_E = place.zeros(place.layer.experts)

    def decided(self, logits_NR, scores_NR, indices_NK):
        self._sum_E += logits_NR.double().square().sum(dim=0)

    def finished(self, seen):
        return {"logit_square": self._sum_E.cpu().numpy() / seen.tokens}
'''


class Loud(LayerwiseMethod):
    """Keeps the experts with the largest logits."""

    name: ClassVar[str] = "loud"
    title: ClassVar[str] = "Loud"
    source: ClassVar[str] = "none"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    @property
    def needs(self):
        return frozenset({"logit_square"})

    def decide_layer(self, inventory, stats, layer):
        order = np.argsort(-stats.layer("logit_square", layer))
        return LayerPlan(experts=tuple(sorted(int(expert) for expert in order[: inventory.layers[layer].experts // 2])))


@pytest.fixture(params=["file", "distribution"])
def outside(request, tmp_path, monkeypatch):
    """Bring the statistic in one of two ways, and forget it in the end."""
    if request.param == "file":
        folder = tmp_path / "stats"
        shutil.copytree(Path(methods.stats.__path__[0]), folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "logits_squared.py").write_text(SOURCE)
        monkeypatch.setattr(methods.stats, "__path__", [str(folder)])
        module = "methods.stats.logits_squared"
    else:
        (tmp_path / "loudness.py").write_text(SOURCE)
        monkeypatch.syspath_prepend(announce(tmp_path, "moebench.statistics", "logit_square", "loudness:LogitSquare"))
        module = "loudness"
    vars(CATALOGUE).pop("_kinds", None)
    yield
    vars(CATALOGUE).pop("_kinds", None)
    sys.modules.pop(module, None)
    vars(methods.stats).pop("logits_squared", None)


def test_it_is_measured_cached_sliced_and_named_by_a_method(outside, qwen, tmp_path, monkeypatch):
    assert CATALOGUE["logit_square"].definition == "mean over all tokens of z_i^2"
    needs = Loud().needs | {"block_cosine"}
    stats = calibrate(qwen, RAGGED, needs, cache=tmp_path / "cache")
    logits = [[] for _ in range(3)]
    model = plain_model(qwen)
    for layer, seen in zip(model.model.layers, logits, strict=True):
        layer.mlp.gate.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[0]))
    for window in RAGGED.windows:
        with torch.no_grad():
            model.model(torch.tensor([window]), use_cache=False)
    for layer in range(3):
        byhand = sum(row.double().numpy() ** 2 for rows in logits[layer] for row in rows) / RAGGED.tokens
        np.testing.assert_allclose(stats.layer("logit_square", layer), byhand, rtol=1e-5)
    plan = Loud().plan(qwen.inventory, stats)
    kept = [layer.experts for layer in plan.layers]
    assert all(len(experts) == 4 for experts in kept)
    np.testing.assert_array_equal(
        stats.restricted(plan).layer("logit_square", 1), stats.layer("logit_square", 1)[list(kept[1])]
    )
    calibrate(qwen, RAGGED, Loud().needs, decide=LayerwiseDecision(Loud(), qwen.inventory))
    monkeypatch.setattr(StreamedPass, "run", lambda *args: pytest.fail("measured again"))
    again = calibrate(qwen, RAGGED, Loud().needs, cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.layer("logit_square", 2), stats.layer("logit_square", 2))


def test_what_nobody_brings_is_unknown(qwen):
    with pytest.raises(UnknownNameError, match="logit_gram"):
        calibrate(qwen, RAGGED, Loud().needs)
    with pytest.raises((UnknownNameError, StatsError)):
        Loud().plan(qwen.inventory, calibrate(qwen, RAGGED, {"block_cosine"}))
