"""``moebench demo``: the three embedded models, from checkpoint to leaderboard."""

from __future__ import annotations

from pathlib import Path

from bench.commands.options import StoreOption, TrackOption


def demo(store: StoreOption = Path("runs/demo"), track: TrackOption = None) -> None:
    """Run the demo in a store of its own."""
    from bench.commands.demo import run_demo

    run_demo(store, track)
