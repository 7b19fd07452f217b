"""What ``moebench sweep`` does."""

from __future__ import annotations

from pathlib import Path

from sweeps.sweep_config import load_sweep


def run_from_command_line(file: Path, store: Path) -> None:
    """Run or continue the sweep in ``file``, and show it in the terminal."""
    from rich.console import Console

    from sweeps.terminal import show_sweep

    show_sweep(load_sweep(file), store, Console())
