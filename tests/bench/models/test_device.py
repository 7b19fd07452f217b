"""The device that a user names is the one on which everything is computed; elsewhere there is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.computed import Recipes
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.device import resolved_device
from bench.running.calibrator import Calibrator
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from methods.framework.errors import ConfigError
from methods.registry import method_class


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert resolved_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolved_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "quantum"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="give cpu, cuda"):
        resolved_device(name)


def test_the_default_device_does_not_change_the_identity_of_a_run() -> None:
    assert "device" not in CalibrationConfig().model_dump(mode="json")
    assert CalibrationConfig(device="cpu").model_dump(mode="json")["device"] == "cpu"
    assert CalibrationConfig.model_validate(CalibrationConfig().model_dump()).device == "auto"


def test_experts_are_read_to_the_device_on_which_they_are_computed() -> None:
    # Nothing can be computed on the meta device, but a tensor that is there shows where the reads of a writer go.
    recipes = Recipes(Checkpoint.open("pocket-mixtral"), None, "meta")
    assert {matrix.device.type for matrix in recipes._reader(0)(0)} == {"meta"}


def test_a_run_computes_where_its_calibration_says(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open("pocket-mixtral")
    settings = CalibrationConfig(corpus="pocket", sequences=2, length=16, device="cuda:99")
    calibrator = Calibrator(checkpoint, settings, Store(tmp_path), frozenset({"routed_tokens"}))
    with pytest.raises(ConfigError, match="cuda:99"):
        calibrator.stats_for(method_class("frequency").configured({"keep": 0.5}))
