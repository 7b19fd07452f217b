"""What ``moebench sweep`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.outcome import SweepResult
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from bench.records.mirror import Tracker


def run_from_command_line(config: SweepConfig, store: Path, tracker: Tracker) -> SweepResult:
    """Run or continue a sweep, show it in the terminal, mirror it, and return how it ended.

    Args:
        config: the sweep.
        store: folder of the store.
        tracker: gets the study when the search is over.
    """
    from rich.console import Console

    from sweeps.terminal import show_sweep
    from sweeps.tracking import track_study

    result = show_sweep(config, store, Console())
    with tracker:
        track_study(config, result, store, tracker)
    return result
