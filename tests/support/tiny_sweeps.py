"""A sweep of a tiny model, with changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweeps.outcome import TrialRow
from sweeps.sweep_config import SweepConfig, parse_sweep
from tests.support.tiny import tiny_checkpoint, tiny_tokens


def settle(folder: Path) -> Path:
    """Write a tiny model (three layers of 8 experts) and two files of token ids into ``folder``, and return it."""
    tiny_checkpoint("olmoe", folder / "model")
    for name, seed in (("calibration", 0), ("held_out", 1)):
        (folder / f"{name}.json").write_text(json.dumps(tiny_tokens(8, 16, seed=seed).tolist()))
    return folder


def sweep(home: Path, **changes: Any) -> SweepConfig:
    base: dict[str, Any] = {
        "name": "s",
        "model": str(home / "model"),
        "method": "criterion",
        "space": {"b": "auto", "alpha": "auto", "beta": "auto", "keep": {"knots": 3, "low": 0.1, "high": 1.0}},
        "budget": {"of": "experts", "keep": 0.5},
        "calibration": {"corpus": str(home / "calibration.json"), "sequences": 8, "length": 16},
        "objectives": objectives(home, "nll"),
        "sampler": {"startup": 4},
        "trials": 6,
    }
    return parse_sweep({**base, **changes})


def objectives(home: Path, *kinds: str) -> list[dict[str, Any]]:
    known = {
        "nll": {"kind": "nll", "windows": {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16}},
        "kl": {"kind": "kl", "sequences": 2},
        "size": {"kind": "size", "of": "bytes"},
    }
    return [known[kind] for kind in kinds]


def drawn(rows: tuple[TrialRow, ...]) -> list[tuple[Any, ...]]:
    """Return what complete trials drew and found."""
    return [(row.parameters, row.plan, row.scores) for row in rows if row.state == "complete"]
