"""Sequential propagation of experts that are changed inside: each layer is measured behind the layers that are compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.layers.layer_experts import LayerExperts
from bench.checkpoint.checkpoint import Checkpoint
from bench.running.calibrator import Calibrator
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from bench.text.corpus import Corpus
from methods.framework.errors import RefusedError
from methods.framework.inside import Sparsity
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.registry import method
from tests.support.tiny import tiny_checkpoint

WINDOWS = [[(7 * i * (w + 3)) % 90 + 3 for i in range(24)] for w in range(4)]


def _calibrator(checkpoint: Checkpoint, place: Path, asked: Any, propagation: str) -> Calibrator:
    text = place / "ids.json"
    text.write_text(str(WINDOWS))
    settings = {"corpus": str(text), "sequences": len(WINDOWS), "length": 24, "device": "cpu"}
    config = CalibrationConfig(**settings, propagation=propagation)
    return Calibrator(checkpoint, config, Store(place / "store"), asked.measured)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "gptq", "awq"])
def test_a_layer_is_measured_behind_the_compressed_one_before_it(name: str, tmp_path: Path) -> None:
    """By hand: compress the first layer alone, write that, and measure the second layer of what was written."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral", num_hidden_layers=2))
    asked = method(name)
    stats = _calibrator(checkpoint, tmp_path, asked, "sequential").stats_for(asked)
    first, *rest = asked.plan(checkpoint.inventory, stats).layers
    assert len(rest) == 1 and first.inside
    by_hand = Plan.of(checkpoint.inventory, [first, LayerPlan()])
    before = calibrate(checkpoint, Corpus.of(torch.tensor(WINDOWS), "ids"), asked.moments)
    written = Checkpoint.open(apply(checkpoint, by_hand, tmp_path / "first", moments=before))
    after = calibrate(written, Corpus.of(torch.tensor(WINDOWS), "ids"), asked.moments)
    for statistic in sorted(asked.moments):
        np.testing.assert_array_equal(stats.layer(statistic, 0), before.layer(statistic, 0))
        found, plain, expected = (one.layer(statistic, 1) for one in (stats, before, after))
        if statistic == "routed_tokens":
            np.testing.assert_array_equal(found, expected)
            continue
        near, far = np.abs(found - expected).max(), np.abs(plain - expected).max()
        assert near < 0.02 * far, (statistic, near, far)


def test_what_several_blocks_need_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.applying.computed import Recipes

    checkpoint, asked = Checkpoint.open(tiny_checkpoint("mixtral", num_hidden_layers=2)), method("gptq")
    made: list[tuple[int, int]] = []
    own = Recipes.expert
    monkeypatch.setattr(
        Recipes, "expert", lambda self, layer, plan, e: made.append((layer, e)) or own(self, layer, plan, e)
    )
    monkeypatch.setattr(Calibrator, "_effort", Effort(hidden_bytes=1, batch_tokens=24))
    _calibrator(checkpoint, tmp_path, asked, "sequential").stats_for(asked)
    assert len(made) == len(set(made)) == 2 * checkpoint.inventory.layers[0].experts


def test_what_is_not_built_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral", num_hidden_layers=2))
    everywhere = method("gptq", scope="all")
    with pytest.raises(RefusedError, match="scope=experts or one_shot"):
        _calibrator(checkpoint, tmp_path, everywhere, "sequential").stats_for(everywhere)


def test_a_running_layer_refuses_a_sparse_plan_that_nothing_makes() -> None:
    layer = Checkpoint.open("pocket-mixtral").inventory.layers[0]
    with pytest.raises(RefusedError, match="write the checkpoint and open it"):
        LayerExperts(None, layer, LayerPlan(sparsity=Sparsity(share=0.5)))  # type: ignore[arg-type]  # nothing is read
