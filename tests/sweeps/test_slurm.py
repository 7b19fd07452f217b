"""The script of a Slurm array."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods.framework.errors import ConfigError
from sweeps.slurm import slurm_script
from tests.support.tiny_sweeps import sweep


def test_slurm_script_has_one_worker_for_each_array_task(tmp_path: Path) -> None:
    script = slurm_script(sweep(tmp_path), store=tmp_path, jobs=3, gpus=2, partition="long")
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert "#SBATCH --array=0-2\n" in script and "--gres=gpu:2" in script and "--partition=long" in script
    assert "-m sweeps.worker " in script and '--worker "$SLURM_ARRAY_TASK_ID"' in script
    assert (tmp_path / "sweeps" / "s" / "config.json").exists()
    with pytest.raises(ConfigError, match="jobs must be at least 1"):
        slurm_script(sweep(tmp_path), store=tmp_path, jobs=0)
