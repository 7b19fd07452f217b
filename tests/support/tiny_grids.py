"""A grid of a pocket model, with changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.settings.strict import validated
from sweeps.grid_config import GridConfig


def grid(folder: Path, **changes: Any) -> GridConfig:
    document: dict[str, Any] = {
        "models": ["pocket-mixtral"],
        "methods": ["random", "weight_norm", "frequency"],
        "keeps": [0.75, 0.5],
        "calibration": {"corpora": ["pocket", "pocket:facts"], "seeds": [0, 1, 2], "sequences": 8, "length": 64},
        "evaluation": {"tasks": ["pocket_facts"], "include_path": str(folder), "limit": 4},
        "store": str(folder / "store"),
        **changes,
    }
    return validated(document, GridConfig, "test")
