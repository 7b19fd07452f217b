"""What ``moebench sweep`` does."""

from __future__ import annotations

from pathlib import Path

from sweeps.outcome import SweepResult
from sweeps.sweep_config import load_sweep


def run_from_command_line(file: Path, store: Path) -> SweepResult:
    """Run or continue the sweep in ``file``, show it in the terminal, and return how it ended."""
    from rich.console import Console

    from sweeps.terminal import show_sweep

    return show_sweep(load_sweep(file), store, Console())
