"""Sequential propagation of sparse experts does not exist, and says so instead of measuring dense ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.calibration.layers.layer_experts import LayerExperts
from bench.checkpoint.checkpoint import Checkpoint
from bench.running.calibrator import Calibrator
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from methods.framework.errors import RefusedError
from methods.framework.inside import Sparsity
from methods.framework.layer_plan import LayerPlan
from methods.registry import method


def test_sparse_methods_refuse_sequential_calibration(tmp_path: Path) -> None:
    checkpoint, wanda = Checkpoint.open("pocket-mixtral"), method("wanda")
    settings = CalibrationConfig(corpus="pocket", sequences=2, length=16, propagation="sequential")
    with pytest.raises(RefusedError, match="is not built"):
        Calibrator(checkpoint, settings, Store(tmp_path), wanda.measured).stats_for(wanda)


def test_a_running_layer_refuses_a_sparse_plan() -> None:
    layer = Checkpoint.open("pocket-mixtral").inventory.layers[0]
    with pytest.raises(RefusedError, match="write the checkpoint and open it"):
        LayerExperts(None, layer, LayerPlan(sparsity=Sparsity(share=0.5)))  # type: ignore[arg-type]  # nothing is read
