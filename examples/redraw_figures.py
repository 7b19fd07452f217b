"""Draw leaderboard and figures of a store again: the same records give the same bytes.

    python examples/redraw_figures.py runs/demo --out report
    python examples/redraw_figures.py

Without a store, one is made first: two methods on a pocket model, a few items of one task, nothing timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import report


def small_store(folder: Path) -> Path:
    """Run two methods at half of the experts, and return the store with their records."""
    from bench.commands.live import run_with_table
    from bench.settings.run_settings import RunConfig

    settings = {
        "model": "pocket-mixtral",
        "methods": [{"name": name, "knobs": {"keep": 0.5}} for name in ("random", "reap")],
        "calibration": {"corpus": "pocket", "sequences": 16, "length": 128},
        "evaluation": {"tasks": ["pocket"], "limit": 10},
        "timing": {"enabled": False},
    }
    run_with_table([RunConfig.model_validate(settings)], folder, track="disabled")
    return folder


def main() -> None:
    """Write the report, and say where its parts lie."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", nargs="?", type=Path, help="store, or folder of records")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write to")
    given = parser.parse_args()

    written = report(given.store or small_store(Path("runs/example")), given.out, title="Redrawn")
    for message in written.messages:
        print(message)
    for path in (written.page, written.csv, *written.figures):
        print(path)


if __name__ == "__main__":
    main()
