"""Opening what all trials share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from methods.framework.errors import ConfigError
from sweeps.opening import open_resident
from sweeps.resident import Resident
from tests.support.tiny import tiny_tokens
from tests.support.tiny_sweeps import objectives, sweep


def test_windows_shared_with_the_calibration_are_refused(home: Path, tmp_path: Path) -> None:
    windows = {"corpus": str(home / "calibration.json"), "sequences": 8, "length": 16, "seed": 9}
    with pytest.raises(ConfigError, match="objective nll: 8 of 8 held-out windows are also calibration windows"):
        open_resident(sweep(home, objectives=[{"kind": "nll", "windows": windows}]), tmp_path)


def test_a_study_is_bound_to_its_model_and_its_texts(home: Path, resident: Resident) -> None:
    assert set(resident.identity) == {"model", "calibration", "windows of nll"}
    assert len(set(resident.identity.values())) == 3
    assert torch.equal(resident.calibration, tiny_tokens(8, 16, seed=0))
    held_out = sweep(home).objectives[0].held_out
    assert held_out is not None
    assert torch.equal(resident.windows(held_out), tiny_tokens(8, 16, seed=1))


def test_a_method_of_weights_alone_reads_no_text(home: Path, tmp_path: Path) -> None:
    absent = {"corpus": "absent.txt", "sequences": 8, "length": 16}
    own = {"keep": {"knots": 3, "low": 0.1, "high": 1.0}}
    config = sweep(home, method="weight_norm", space=own, calibration=absent, objectives=objectives(home, "size"))
    opened = open_resident(config, tmp_path)
    assert opened.identity["calibration"] is None and opened.calibration.numel() == 0


def test_an_objective_on_the_calibration_text_counts_every_token(home: Path, tmp_path: Path) -> None:
    config = sweep(home, objectives=objectives(home, "kl"))
    own = config.calibration.model_copy(update={"answers_only": True})
    with pytest.raises(ConfigError, match=r"kl reads whole windows .*answers_only: false"):
        open_resident(config.model_copy(update={"calibration": own}), tmp_path)
