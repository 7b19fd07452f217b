"""A measurement in a process of its own, with one thread, so that neither imports nor what ran before count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def run_alone(module: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run one measurement; where it fails, this process ends with what it said.

    Args:
        module: run as ``python -m module``.
        arguments: of its command line.
        variables: further ones of its environment.

    Returns:
        What the last line of its output holds as JSON.
    """
    alone = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")}
    environment = {**os.environ, **alone, **(variables or {})}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
